"""Random shapes, layouts, masks and types, beside PyTorch in double precision."""

import random

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

import headwise  # noqa: E402

TOLERANCE = {
    torch.float32: 3e-5,
    torch.float64: 1e-11,
    torch.float16: 3e-3,
    torch.bfloat16: 3e-2,
}


def laid_out(x, rng):
    """The same numbers in another layout."""
    kind = rng.randrange(5)
    if kind == 0:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 1:
        return torch.stack([x, x], dim=-1)[..., 0]
    if kind == 2:
        return torch.cat([torch.zeros_like(x), x], dim=-1)[..., x.shape[-1] :]
    if kind == 3:
        order = [*rng.sample(range(x.dim() - 1), x.dim() - 1), x.dim() - 1]
        back = [order.index(axis) for axis in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    return x


def some_ones(shape, rng, chance):
    return [1 if rng.random() < chance else extent for extent in shape]


def problem(rng):
    """A query, key and value with leading axes that broadcast, and keywords."""
    dtype = rng.choice(list(TOLERANCE))
    lead = [rng.randrange(1, 4) for _ in range(rng.randrange(5))]
    seq_q, seq_kv = rng.randrange(1, 20), rng.randrange(1, 20)
    leads = [some_ones(lead, rng, 0.2) for _ in range(3)]
    keywords = {}
    if lead and rng.random() < 0.4:
        leads = [[*of[:-1], lead[-1]] for of in leads]
        leads[0][-1] *= rng.randrange(1, 4)
        keywords["enable_gqa"] = True
    dims = (seq_q, d := rng.choice([1, 3, 8, 33])), (seq_kv, d), (seq_kv, rng.choice([1, 8, 20]))
    inputs = [torch.randn(*of, *dim).to(dtype) for of, dim in zip(leads, dims, strict=True)]
    if rng.random() < 0.3:
        keywords["scale"] = rng.uniform(-1, 1)
    if rng.random() < 0.3:
        keywords["is_causal"] = True
    elif rng.random() < 0.6:
        # PyTorch's masks do not stretch scores along axes that the value alone has.
        scores = torch.broadcast_shapes(leads[0][:-1], leads[1][:-1])
        grouped = "enable_gqa" in keywords
        heads = [leads[0][-1] if grouped else max(leads[0][-1], leads[1][-1])] if lead else []
        shape = some_ones([*scores, *heads, seq_q, seq_kv], rng, 0.4)
        mask = torch.randn(shape[rng.randrange(len(shape) - 1) :])
        keywords["attn_mask"] = laid_out(mask > -0.8 if rng.random() < 0.5 else mask, rng)
    return inputs, keywords


def in_pytorch(inputs, keywords):
    mask = keywords.get("attn_mask")
    if mask is not None and mask.dtype != torch.bool:
        keywords = {**keywords, "attn_mask": mask.double()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(*(x.double() for x in inputs), **keywords)


@pytest.mark.parametrize("seed", range(10))
def test_random_problems(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    compared = 0
    for _ in range(50):
        inputs, keywords = problem(rng)
        try:
            right = in_pytorch(inputs, keywords)
        except RuntimeError:
            continue
        laid = [laid_out(x, rng) for x in inputs]
        out = headwise.scaled_dot_product_attention(*laid, **keywords)
        assert out.shape == right.shape
        assert out.dtype == inputs[0].dtype
        tolerance = TOLERANCE[out.dtype] * max(1.0, right.abs().max().item())
        torch.testing.assert_close(out.double(), right, atol=tolerance, rtol=0)
        compared += 1
    assert compared > 40
