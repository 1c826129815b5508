"""The function with PyTorch's signature, beside PyTorch's."""

import itertools

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

import headwise  # noqa: E402

TOLERANCE = {
    torch.float32: 2e-5,
    torch.float64: 1e-11,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def expected(query, *rest, **keywords):
    """PyTorch's answer, in double precision, without its fused kernels."""
    wide = [x.double() for x in (query, *rest)]
    mask = keywords.pop("attn_mask", None)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(*wide, attn_mask=mask, **keywords)


def check(query, key, value, **keywords):
    out = headwise.scaled_dot_product_attention(query, key, value, **keywords)
    right = expected(query, key, value, **keywords)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == query.dtype
    assert out.shape == right.shape
    torch.testing.assert_close(out.double(), right, atol=TOLERANCE[query.dtype], rtol=0)
    return out


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + len(shape) * 1000 + shape[-1])
    return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3), (1, 2, 2, 3)])
def test_axes_in_front(dtype, causal, lead):
    query, key, value = (random(*lead, s, 16, dtype=dtype, seed=n) for n, s in enumerate((7, 9, 9)))
    check(query, key, value, is_causal=causal)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scale_and_value_dim(dtype):
    query, key = random(2, 3, 5, 8, dtype=dtype), random(2, 3, 11, 8, dtype=dtype, seed=1)
    value = random(2, 3, 11, 24, dtype=dtype, seed=2)
    for scale in (None, 1.0, 0.3, -0.7, 0.0):
        check(query, key, value, scale=scale)


@pytest.mark.parametrize(
    "shape", [(5, 9), (1, 9), (5, 1), (3, 5, 9), (2, 1, 5, 9), (2, 3, 1, 9), (1, 1, 5, 9)]
)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks_are_broadcast(shape, kind):
    query, key, value = random(2, 3, 5, 8), random(2, 3, 9, 8, seed=1), random(2, 3, 9, 8, seed=2)
    mask = random(*shape, seed=3)
    mask = mask > -1 if kind == torch.bool else mask
    check(query, key, value, attn_mask=mask)


def test_masks_of_other_numbers_of_axes():
    query, key, value = random(3, 5, 8), random(3, 9, 8, seed=1), random(3, 9, 8, seed=2)
    check(query, key, value, attn_mask=random(5, 9, seed=3) > 0)
    query, key, value = random(2, 2, 3, 5, 8), random(3, 9, 8, seed=1), random(3, 9, 8, seed=2)
    check(query, key, value, attn_mask=random(2, 1, 3, 5, 9, seed=3))
    check(query, key, value, attn_mask=random(2, 2, 1, 5, 9, seed=3) > 0)


def test_masks_that_lie_otherwise():
    query, key, value = random(2, 3, 5, 8), random(2, 3, 9, 8, seed=1), random(2, 3, 9, 8, seed=2)
    mask = random(2, 3, 9, 5, seed=3).transpose(2, 3)
    check(query, key, value, attn_mask=mask)
    check(query, key, value, attn_mask=mask > 0)
    check(query, key, value, attn_mask=random(2, 3, 5, 18, seed=4)[..., ::2])
    check(query, key, value, attn_mask=random(9, seed=5).expand(2, 3, 5, 9))


def test_bytes_of_a_mask_that_are_neither_0_nor_1():
    query, key, value = random(1, 1, 4, 8), random(1, 1, 6, 8, seed=1), random(1, 1, 6, 8, seed=2)
    mask = torch.tensor([0, 1, 2, 255, 0, 3], dtype=torch.uint8)
    out = headwise.scaled_dot_product_attention(query, key, value, attn_mask=mask.view(torch.bool))
    right = expected(query, key, value, attn_mask=mask.bool().expand(4, 6))
    torch.testing.assert_close(out.double(), right, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_half_precision(dtype):
    query, key, value = (random(1, 2, 6, 8, dtype=dtype, seed=n) for n in range(3))
    for kind in (dtype, torch.float32):
        mask = random(6, 6, seed=3).to(kind)
        out = headwise.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        right = expected(query, key, value, attn_mask=mask)
        torch.testing.assert_close(out.double(), right, atol=TOLERANCE[dtype], rtol=0)


def test_a_row_that_sees_nothing_is_zero():
    query, key, value = (random(1, 1, 4, 8, seed=n) for n in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    out = check(query, key, value, attn_mask=mask)
    assert (out[:, :, 0] == 0).all()


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(8, 2), (6, 1), (4, 4)])
@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_grouped_heads(q_heads, kv_heads, lead):
    query = random(*lead, q_heads, 5, 16)
    key, value = (random(*lead, kv_heads, 7, 16, seed=n) for n in (1, 2))
    check(query, key, value, enable_gqa=True)


def test_shapes_are_broadcast():
    for lead in itertools.product([(1, 1), (2, 1), (1, 3), (2, 3)], repeat=2):
        query, key = random(*lead[0], 5, 8), random(*lead[1], 7, 8, seed=1)
        check(query, key, random(*lead[1], 7, 8, seed=2))
    check(random(5, 8), random(2, 3, 7, 8), random(3, 7, 8))


def test_any_layout():
    heads = random(2, 5, 3, 8).transpose(1, 2)
    fused = random(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)
    backwards = random(2, 3, 5, 8).flip(2)
    spread = random(2, 3, 5, 16)[..., ::2]
    columns = random(2, 3, 8, 5).transpose(2, 3)
    repeated = random(1, 1, 5, 8).expand(2, 3, 5, 8)
    kinds = [heads, *fused, backwards, spread, columns, repeated]
    for query, key, value in itertools.product(kinds, repeat=3):
        check(query, key, value)


def test_the_output_lies_as_the_query():
    query = random(2, 5, 3, 8).transpose(1, 2)
    out = check(query, query, query)
    assert out.transpose(1, 2).is_contiguous()
    assert check(*3 * [query.contiguous()]).is_contiguous()


def test_no_copy_of_what_lies_well():
    heads = random(2, 5, 3, 8).transpose(1, 2)
    for x in (
        heads,
        *random(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4),
        heads.double(),
        heads[0],
        heads.half(),
        heads.bfloat16(),
    ):
        assert headwise.reads_in_place(x)
    assert headwise.reads_in_place(random(1, 1, 5, 8).expand(2, 3, 5, 8))
    assert headwise.reads_in_place(random(2, 2, 3, 5, 8))
    assert not headwise.reads_in_place(random(2, 3, 8, 5).transpose(2, 3))
    assert not headwise.reads_in_place(random(2, 2, 3, 5, 8).transpose(0, 1))


class WithoutFunctions(torch.Tensor):
    """A tensor as versions of PyTorch without DLPack's table of functions have it."""

    __dlpack_c_exchange_api__ = None


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_by_capsules(dtype):
    query, key, value = (random(2, 3, 5, 8, dtype=dtype, seed=n) for n in range(3))
    right = headwise.scaled_dot_product_attention(query, key, value)
    old = [x.as_subclass(WithoutFunctions) for x in (query, key, value)]
    out = headwise.scaled_dot_product_attention(*old)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, right)
    weight = torch.nn.Parameter(random(1, 2, 4, 8))
    weight = weight.as_subclass(WithoutFunctions)
    with torch.no_grad():
        headwise.scaled_dot_product_attention(weight, weight, weight)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_out(dtype):
    query, key, value = (random(2, 3, 5, 8, dtype=dtype, seed=n) for n in range(3))
    right = headwise.scaled_dot_product_attention(query, key, value)
    for out in (
        torch.full_like(query, -1),
        torch.full((2, 5, 3, 8), -1.0, dtype=dtype).transpose(1, 2),
        torch.full((2, 3, 5, 16), -1.0, dtype=dtype)[..., ::2],
        torch.full((2, 3, 8, 5), -1.0, dtype=dtype).transpose(2, 3),
    ):
        given = headwise.scaled_dot_product_attention(query, key, value, out=out)
        assert given is out
        assert torch.equal(out, right)


@pytest.mark.parametrize(
    ("q", "k"),
    [((0, 2, 5, 8), (0, 2, 5, 8)), ((2, 2, 0, 8), (2, 2, 5, 8)), ((2, 2, 5, 8), (2, 2, 0, 8))],
)
def test_nothing_to_do(q, k):
    query, key = torch.ones(q), torch.ones(k)
    out = headwise.scaled_dot_product_attention(query, key, key)
    assert out.shape == query.shape
    assert (out == 0).all()


def test_parameters_without_gradients():
    weight = torch.nn.Parameter(random(1, 2, 4, 8))
    with torch.no_grad():
        out = headwise.scaled_dot_product_attention(weight, weight, weight)
    assert not out.requires_grad
    with torch.inference_mode():
        assert torch.equal(out, headwise.scaled_dot_product_attention(weight, weight, weight))


def test_results_outlive_their_inputs():
    query = random(1, 2, 64, 8)
    out = headwise.scaled_dot_product_attention(query, query, query)
    copy = out.clone()
    del query
    torch.randn(1, 2, 64, 8)
    assert torch.equal(out, copy)
    out += 1
    assert torch.equal(out, copy + 1)
