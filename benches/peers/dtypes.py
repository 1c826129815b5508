"""The types of a suite's tensors: `float32` and narrower, by the names of `headwise bench`."""

import numpy as np

# How far a peer's output may be off, relative to the largest magnitude of the checked rows: a few
# roundings of the type, of probabilities and sums as well as of the output. Another problem is off by far more.
TOLERANCE = {"f32": 1e-3, "f16": 2e-2, "bf16": 3e-2, "int8": 3e-2}


def dtype(shape):
    return shape.get("dtype", "f32")


def rounded(values, name):
    """The nearest numbers of a type, the even of two as near, as `float32`; those of `int8` are rounded
    by whoever stores them."""
    if name == "f16":
        return values.astype(np.float16).astype(np.float32)
    if name == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def bfloat16_bits(values):
    """Numbers that are `bf16` already, by their bits."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)
