#!/usr/bin/env python3
"""Writes how far PyTorch's attention is from float64 on the captures of real models, in f32 and, on the
captures rounded to them, in bf16 and f16: tests/fixtures/torch_sdpa.json."""

import environment

if __name__ == "__main__":
    environment.enter()

import argparse
import json

import numpy as np
import torch
from safetensors.numpy import load_file, safe_open

import reference

OUTPUT = environment.ROOT / "tests" / "fixtures" / "torch_sdpa.json"


def captures():
    """The files that are captures."""
    for directory in ("cli/fixtures", "tests/fixtures"):
        for path in sorted((environment.ROOT / directory).glob("*.safetensors")):
            with safe_open(path, "np") as file:
                if {"q", "k", "v", "out"} <= set(file.keys()):
                    yield path


def errors(path):
    """The errors of PyTorch on a capture."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    scale, mask = float(metadata["scale"]), metadata["mask"]
    if mask not in ("none", "causal"):
        raise ValueError(f"{path.name}: mask {mask!r}, expected none or causal")
    causal = mask == "causal"
    tensors = load_file(path)
    qkv = [tensors[name].astype(np.float32) for name in ("q", "k", "v")]
    q, k, v = qkv
    # PyTorch aligns a causal mask with the first key.
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"{path.name}: causal with {q.shape[2]} queries, {k.shape[2]} keys")
    expected = reference.attention(q, k, v, scale=scale, causal=causal)
    if not np.allclose(expected, tensors["out"], rtol=0, atol=1e-6 * np.abs(expected).max()):
        raise ValueError(f"{path.name}: its own out differs from the reference")
    halves = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16)}
    return distances(qkv, torch.float32, scale, causal) | {
        name: distances(qkv, dtype, scale, causal) for name, dtype in halves.items()}


def distances(qkv, dtype, scale, causal):
    """The errors of PyTorch in a type, on tensors rounded to it."""
    rounded = [torch.from_numpy(x).to(dtype) for x in qkv]
    q, k, v = (x.float().numpy() for x in rounded)
    expected = reference.attention(q, k, v, scale=scale, causal=causal)
    out = torch.nn.functional.scaled_dot_product_attention(
        *rounded, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    error = np.abs(out.double().numpy() - expected)
    relative = error.max(axis=-1) / np.abs(expected).max(axis=-1)
    return {"rms": float(np.sqrt(np.mean(error ** 2))), "max": float(error.max()),
            "row_relative_max": float(relative.max())}


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    report = {
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "captures": {path.stem: errors(path) for path in captures()},
    }
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print(OUTPUT.read_text(), end="")


if __name__ == "__main__":
    main()
