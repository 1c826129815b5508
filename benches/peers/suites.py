"""What is measured beside whom."""

from typing import NamedTuple


class Suite(NamedTuple):
    # Suites of `headwise bench`, and some of their shapes, or all.
    rows: tuple
    shapes: tuple | None
    peers: tuple
    # The name of the file of results.
    results: str


SUITES = {
    "prefill": Suite(("prefill",), None, ("torch", "onnxruntime", "openvino", "candle"),
                     "results.json"),
    "structure": Suite(("masks", "terms"), ("window-8k-d64", "long-8k-own"), ("flex",),
                       "structure.json"),
    "decode": Suite(("decode",), None, ("torch", "onnxruntime", "openvino", "candle", "llama"),
                    "decode.json"),
    # PyTorch's own call, and the same call patched.
    "python": Suite(("prefill", "decode"), None, ("patched", "torch"), "python.json"),
    # What a peer computes in the same types; of `int8` a cache of some kind in a byte a number.
    "precision": Suite(("precision",), None, ("torch", "openvino", "llama"), "precision.json"),
}
