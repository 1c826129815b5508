"""PyTorch's answers, checked in, for machines without PyTorch."""

import pathlib

import numpy as np
import pytest

import headwise

GOLDENS = dict(np.load(pathlib.Path(__file__).with_name("goldens.npz")))
NAMES = sorted({name.split(".")[0] for name in GOLDENS} - {"torch_version"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_golden(name, dtype, tolerance):
    inputs = [GOLDENS[f"{name}.{part}"].astype(dtype) for part in ("query", "key", "value")]
    start = f"{name}.keyword."
    keywords = {k.removeprefix(start): v.item() for k, v in GOLDENS.items() if k.startswith(start)}
    mask = GOLDENS.get(f"{name}.attn_mask")
    out = headwise.scaled_dot_product_attention(*inputs, attn_mask=mask, **keywords)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, GOLDENS[f"{name}.out"], atol=tolerance, rtol=0)
