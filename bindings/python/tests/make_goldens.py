"""Makes ``goldens.npz``, PyTorch's answers for machines without it.

Inputs are in single precision, the answers computed in double by PyTorch's plain implementation.
"""

import pathlib

import numpy as np
import torch

SHAPES = {
    "self": ((2, 3, 5, 8), (2, 3, 5, 8), {}),
    "causal": ((2, 3, 5, 8), (2, 3, 9, 8), {"is_causal": True}),
    "scaled": ((3, 5, 8), (3, 7, 8), {"scale": 0.3}),
    "grouped": ((1, 6, 4, 16), (1, 2, 7, 16), {"enable_gqa": True}),
    "two_axes": ((5, 8), (9, 8), {}),
    "boolean": ((2, 3, 5, 8), (2, 3, 9, 8), {"attn_mask": torch.bool}),
    "additive": ((2, 3, 5, 8), (2, 3, 9, 8), {"attn_mask": torch.float32}),
}


def main():
    generator = torch.Generator().manual_seed(7)
    arrays = {"torch_version": np.array(torch.__version__)}
    for name, (of_query, of_key, keywords) in SHAPES.items():
        query, key, value = (
            torch.randn(shape, generator=generator) for shape in (of_query, of_key, of_key)
        )
        mask = None
        if kind := keywords.get("attn_mask"):
            mask = torch.randn(of_query[-2], of_key[-2], generator=generator)
            mask = mask > 0 if kind == torch.bool else mask
            arrays[f"{name}.attn_mask"] = mask.numpy()
            mask = mask if kind == torch.bool else mask.double()
        settings = {**keywords, "attn_mask": mask}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = torch.nn.functional.scaled_dot_product_attention(
                query.double(), key.double(), value.double(), **settings
            )
        for part, tensor in {"query": query, "key": key, "value": value, "out": out}.items():
            arrays[f"{name}.{part}"] = tensor.numpy()
        for keyword, setting in keywords.items():
            if keyword != "attn_mask":
                arrays[f"{name}.keyword.{keyword}"] = np.array(setting)
    np.savez_compressed(pathlib.Path(__file__).with_name("goldens.npz"), **arrays)


if __name__ == "__main__":
    main()
