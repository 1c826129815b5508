"""Caches, beside the same keys and values in arrays."""

import numpy as np
import pytest

import headwise

SHAPE = {"kv_heads": 2, "head_dim": 8}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def made(kind, sequences, capacity=32, dtype=None):
    """A cache of a kind and the names of its sequences."""
    if kind == "paged":
        cache = headwise.KvCache.paged(pages=32, page_size=4, dtype=dtype, **SHAPE)
        return cache, [cache.create() for _ in range(sequences)]
    make = getattr(headwise.KvCache, kind)
    return make(batch=sequences, capacity=capacity, dtype=dtype, **SHAPE), list(range(sequences))


def named(cache, names):
    return names if cache.kind == "paged" else None


@pytest.mark.parametrize("kind", ["contiguous", "ring", "paged"])
def test_prefill_then_token_by_token(kind):
    cache, names = made(kind, 2)
    assert cache.kind == kind
    query, key, value = random(2, 4, 9, 8), random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    right = headwise.attention(query, key, value, causal=True).out
    for part in (slice(0, 6), slice(6, 7), slice(7, 9)):
        cache.append(key[:, :, part], value[:, :, part], named(cache, names))
        result = cache.attend(query[:, :, part], named(cache, names), return_lse=True)
        assert np.array_equal(result.out, right[:, :, part])
        assert result.lse.shape == (2, 4, part.stop - part.start)
    assert [cache.length(name) for name in names] == [9, 9]
    assert kind in repr(cache)


@pytest.mark.parametrize("kind", ["contiguous", "ring", "paged"])
def test_drafts_are_cut_off(kind):
    cache, names = made(kind, 1)
    key, draft, query = random(1, 2, 5, 8), random(1, 2, 3, 8, seed=1), random(1, 4, 1, 8, seed=2)
    cache.append(key, key, names)
    before = cache.attend(query, named(cache, names)).out
    cache.append(draft, draft, names)
    assert not np.array_equal(cache.attend(query, named(cache, names)).out, before)
    cache.truncate(names[0], 5)
    assert np.array_equal(cache.attend(query, named(cache, names)).out, before)
    cache.free(names[0])
    if kind == "paged":
        with pytest.raises(ValueError, match="sequence"):
            cache.length(names[0])
    else:
        assert cache.lengths == [0]


def test_forks_share_pages():
    cache, (first,) = made("paged", 1)
    prompt, query = random(1, 2, 6, 8), random(2, 4, 1, 8, seed=1)
    cache.append(prompt, prompt, [first])
    free = cache.free_pages
    second = cache.fork(first)
    assert cache.free_pages == free
    assert first != second
    tokens = random(2, 2, 1, 8, seed=2)
    cache.append(tokens, tokens, [first, second])
    assert cache.free_pages == free - 1
    out = cache.attend(query, [second, first]).out
    for row, token in enumerate((1, 0)):
        keys = np.concatenate([prompt, tokens[token : token + 1]], axis=2)
        alone = headwise.attention(query[row : row + 1], keys, keys).out
        assert np.array_equal(out[row : row + 1], alone)
    cache.evict(second, 4)
    cache.free(first)
    assert len({first, second}) == 2


def test_a_ring_keeps_the_last():
    cache, _ = made("ring", 1, capacity=4)
    key, query = random(1, 2, 10, 8), random(1, 4, 1, 8, seed=1)
    for part in (slice(0, 3), slice(3, 10)):
        cache.append(key[:, :, part], key[:, :, part])
    right = headwise.attention(query, key, key, key_starts=[6]).out
    assert np.array_equal(cache.attend(query).out, right)


def test_some_prefill_while_others_decode():
    cache, names = made("paged", 2)
    key, query = random(1, 2, 6, 8), random(1, 4, 6, 8, seed=1)
    cache.append(key, key, names, offsets=[0, 5, 6])
    out = cache.attend(query, names, query_offsets=[0, 5, 6]).out
    for part in (slice(0, 5), slice(5, 6)):
        alone = headwise.attention(
            query[:, :, part], key[:, :, part], key[:, :, part], causal=True
        ).out
        assert np.array_equal(out[:, :, part], alone)


def test_half_precision_is_widened():
    cache, _ = made("contiguous", 1)
    key, query = random(1, 2, 5, 8).astype(np.float16), random(1, 4, 2, 8).astype(np.float16)
    cache.append(key, key)
    result = cache.attend(query, return_lse=True)
    assert result.out.dtype == np.float16
    assert result.lse.dtype == np.float32
    wide = headwise.attention(*(x.astype(np.float32) for x in (query, key, key)), causal=True)
    assert np.array_equal(result.out, wide.out.astype(np.float16))


@pytest.mark.parametrize("kind", ["contiguous", "ring", "paged"])
def test_caches_of_half_precision(kind):
    cache, names = made(kind, 2, dtype="float16")
    assert cache.dtype == "float16"
    assert "dtype=float16" in repr(cache)
    key, value, query = random(2, 2, 5, 8), random(2, 2, 5, 8, seed=1), random(2, 4, 3, 8, seed=2)
    cache.append(key, value.astype(np.float16), named(cache, names))
    rounded = [x.astype(np.float16).astype(np.float32) for x in (key, value)]
    right = headwise.attention(query, *rounded, causal=True).out
    result = cache.attend(query, named(cache, names))
    assert result.out.dtype == np.float32
    assert np.array_equal(result.out, right)
    cache.truncate(names[0], 3)
    assert cache.length(names[0]) == 3


@pytest.mark.parametrize("kind", ["contiguous", "ring", "paged"])
def test_caches_of_integers(kind):
    cache, names = made(kind, 2, dtype="int8")
    key, value, query = random(2, 2, 5, 8), random(2, 2, 5, 8, seed=1), random(2, 4, 3, 8, seed=2)
    cache.append(key, value, named(cache, names))

    def rounded(x):
        scale = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True) / 127
        return np.rint(x / scale).astype(np.float32) * scale.astype(np.float32)

    right = headwise.attention(query, rounded(key), rounded(value), causal=True).out
    assert np.allclose(cache.attend(query, named(cache, names)).out, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["contiguous", "ring", "paged"])
def test_values_divided_by_factors(kind, dtype):
    key, value, query = random(2, 2, 5, 8), random(2, 2, 5, 8, seed=1), random(2, 4, 3, 8, seed=2)
    scales = np.exp(random(2, 8, seed=3)).astype(np.float32)
    (by_hand, names), (cache, _) = made(kind, 2, dtype=dtype), made(kind, 2, dtype=dtype)
    names = named(by_hand, names)
    by_hand.append(key, value / scales[:, None], names)
    cache.append(key, value, names, value_scales=scales)
    right = by_hand.attend(query, names).out * scales.repeat(2, axis=0)[:, None]
    assert np.array_equal(cache.attend(query, names, value_scales=scales).out, right)
    swapped = query.swapaxes(1, 2).copy()
    out = cache.attend(swapped, names, layout="bshd", value_scales=scales.ravel()).out
    assert np.array_equal(out, right.swapaxes(1, 2))


def test_powers_of_two_change_no_bit():
    key, value, query = random(1, 2, 5, 8), random(1, 2, 5, 8, seed=1), random(1, 4, 3, 8, seed=2)
    scales = 2.0 ** np.arange(-8, 8).reshape(2, 8)
    (plain, _), (cache, _) = made("contiguous", 1), made("contiguous", 1)
    plain.append(key, value)
    # Factors in double precision are rounded to single.
    cache.append(key.swapaxes(1, 2), value.swapaxes(1, 2), layout="bshd", value_scales=scales)
    out = cache.attend(query, value_scales=scales).out
    assert np.array_equal(out, plain.attend(query).out)


def test_a_large_channel_takes_nothing_from_the_others():
    key, value, query = random(1, 2, 30, 8), random(1, 2, 30, 8, seed=1), random(1, 4, 1, 8, seed=2)
    value[..., 5] *= 1000
    scales = np.full((2, 8), 4.0, np.float32)
    scales[:, 5] = 4000
    exact = headwise.attention(query, key, value).out
    errors = []
    for given in (None, scales):
        cache, _ = made("contiguous", 1, dtype="int8")
        cache.append(key, value, value_scales=given)
        far = np.abs(cache.attend(query, value_scales=given).out - exact)
        errors.append(np.delete(far, 5, axis=-1).max())
    assert errors[1] < 0.05 * errors[0]


def test_types_of_caches():
    for dtype in ("float32", None, np.float32, np.dtype("float32")):
        assert made("ring", 1, dtype=dtype)[0].dtype == "float32"
    for dtype in (np.float16, np.dtype("float16")):
        assert made("paged", 1, dtype=dtype)[0].dtype == "float16"
    assert made("contiguous", 1, dtype="bfloat16")[0].dtype == "bfloat16"
    assert made("ring", 1, dtype=np.int8)[0].dtype == "int8"
    for dtype in ("float64", "half", "", np.uint8, 3):
        with pytest.raises(ValueError, match=r"dtype: .*float32, float16, bfloat16 or int8"):
            made("contiguous", 1, dtype=dtype)


def test_options_and_out():
    cache, _ = made("contiguous", 2)
    key, query = random(2, 5, 2, 8), random(2, 3, 4, 8, seed=1)
    cache.append(key, key, layout="bshd")
    out = np.empty_like(query)
    result = cache.attend(
        query, layout="bshd", out=out, window=(1, None), softcap=3.0, return_weights=True, top_k=1
    )
    assert result.out is out
    right = headwise.attention(
        query, key, key, layout="bshd", causal=True, window=(1, None), softcap=3.0
    )
    assert np.array_equal(out, right.out)
    assert result.weights.shape == (2, 4, 3, 5)
    free = cache.attend(query, layout="bshd", causal=False).out
    assert np.array_equal(free, headwise.attention(query, key, key, layout="bshd").out)


def test_keys_are_normalised_and_rotated():
    cache, _ = made("contiguous", 1)
    rope = headwise.Rope(8, 64, base=100.0)
    assert (rope.rotary_dim, rope.positions) == (8, 64)
    key, query = random(1, 2, 5, 8), random(1, 2, 1, 8, seed=1)
    weight = random(8, seed=2)
    cache.append(key, key, rope=rope, norm=headwise.QkNorm(weight))
    normed = key / np.sqrt((key**2).mean(-1, keepdims=True) + 1e-6) * weight
    angles = np.arange(5)[:, None] * 100.0 ** (-2 * np.arange(4) / 8)
    cos, sin = np.cos(angles), np.sin(angles)
    x, y = normed[..., :4], normed[..., 4:]
    turned = np.concatenate([x * cos - y * sin, x * sin + y * cos], -1).astype(np.float32)
    right = headwise.attention(query, turned, key).out
    np.testing.assert_allclose(cache.attend(query).out, right, atol=1e-5)
    by_rope = rope.rotate(normed.astype(np.float32))
    np.testing.assert_allclose(by_rope, turned, atol=1e-5)
    later = rope.rotate(normed[:, :, 2:].astype(np.float32), starts=[2])
    assert np.array_equal(later, by_rope[:, :, 2:])
    each = rope.rotate(normed[:, :, ::-1].astype(np.float32), positions=[4, 3, 2, 1, 0])
    assert np.array_equal(each, by_rope[:, :, ::-1])
    two = random(2, 3, 5, 8, seed=4)
    for keywords in (
        {"start": 3},
        {"starts": [1, 7]},
        {"positions": [*range(5), *range(9, 4, -1)]},
    ):
        by_heads = rope.rotate(two, **keywords)
        by_positions = rope.rotate(two.swapaxes(1, 2).copy(), layout="bshd", **keywords)
        assert np.array_equal(by_positions, by_heads.swapaxes(1, 2))
    half = rope.rotate(normed.astype(np.float16), start=0)
    np.testing.assert_allclose(half, by_rope, atol=5e-3)
    with pytest.raises(ValueError, match="position: 64"):
        rope.rotate(normed.astype(np.float32), start=60)
    llama = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert headwise.Rope(64, 16, base=500_000.0, scaling=llama).rotary_dim == 64


def test_refusals():
    cache, (name,) = made("paged", 1)
    key, query = random(1, 2, 5, 8), random(1, 4, 1, 8)
    cache.append(key, key, [name])
    with pytest.raises(ValueError, match=r"sequences: None.*names"):
        cache.attend(query)
    with pytest.raises(TypeError, match=r"sequence: 0.*create"):
        cache.attend(query, [0])
    with pytest.raises(TypeError, match=r"lengths: a paged cache.*length\(sequence\)"):
        _ = cache.lengths
    with pytest.raises(TypeError, match=r"elements of float64"):
        cache.append(key.astype(np.float64), key.astype(np.float64), [name])
    with pytest.raises(TypeError, match=r"query: elements of float64.*caches"):
        cache.attend(query.astype(np.float64), [name])
    with pytest.raises(RuntimeError, match="pages_per_sequence: 50 needed, 30 free"):
        cache.append(random(1, 2, 200, 8), random(1, 2, 200, 8), [name])
    with pytest.raises(ValueError, match="key"):
        cache.append(random(1, 3, 5, 8), key, [name])
    with pytest.raises(TypeError, match="ropes: an unknown keyword"):
        cache.append(key, key, [name], ropes=3)
    flat, _ = made("contiguous", 2)
    with pytest.raises(TypeError, match="fork: a contiguous cache"):
        flat.fork(name)
    with pytest.raises(TypeError, match=r"sequence: .*one sequence for each"):
        flat.length(name)
    with pytest.raises(ValueError, match="sequences: a contiguous cache"):
        flat.attend(query, [0])
    with pytest.raises(ValueError, match=r"capacity|batch"):
        headwise.KvCache.contiguous(batch=0, capacity=4, **SHAPE)
