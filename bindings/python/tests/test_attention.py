"""What a call may ask for by keyword, beside a naive computation in double precision."""

import numpy as np
import pytest

import headwise
import reference
from reference import positions

BATCH, HEADS, KV, SEQ_Q, SEQ_KV, DIM = 2, 4, 2, 7, 13, 8


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


QUERY = random(BATCH, HEADS, SEQ_Q, DIM, seed=1)
KEY = random(BATCH, KV, SEQ_KV, DIM, seed=2)
VALUE = random(BATCH, KV, SEQ_KV, DIM + 4, seed=3)
P, J = positions(SEQ_Q, SEQ_KV)


def check(options, query=QUERY, key=KEY, value=VALUE, dtype=np.float32, **terms):
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    result = headwise.attention(query, key, value, return_lse=True, return_weights=True, **options)
    out, lse, weights = reference.attention(query, key, value, **terms)
    tolerance = {"atol": 3e-5 if dtype == np.float32 else 1e-6}
    np.testing.assert_allclose(result.out, out, **tolerance)
    np.testing.assert_allclose(result.lse, lse, **tolerance)
    np.testing.assert_allclose(result.weights, weights, **tolerance)
    assert result.isa in headwise.available_isas()
    return result


MASKS = {
    "bottom right": ({"causal": True}, P >= J),
    "named": ({"causal": "bottom_right"}, P >= J),
    "top left": ({"causal": "top_left"}, positions(SEQ_Q, SEQ_KV, 0)[0] >= J),
    "offset": ({"causal_offset": 3}, positions(SEQ_Q, SEQ_KV, 3)[0] >= J),
    "window": ({"window": (2, 1)}, (P - 2 <= J) & (J <= P + 1)),
    "left window": ({"window": (3, None), "causal": True}, (P - 3 <= J) & (P >= J)),
    "prefix": ({"causal": True, "prefix": 9}, (P >= J) | (J < 9)),
    "prefixes": (
        {"causal": True, "prefix": [9, 8]},
        (P >= J) | (np.array([9, 8])[:, None, None, None] > J),
    ),
    "lengths": ({"key_lengths": [13, 6]}, np.array([13, 6])[:, None, None, None] > J),
    "starts": ({"key_starts": np.array([0, 5])}, np.array([0, 5])[:, None, None, None] <= J),
    "documents": (
        {"documents": ([0, 0, 0, 1, 1, 1, 2], [0] * 5 + [1] * 4 + [2] * 4)},
        np.array([0, 0, 0, 1, 1, 1, 2])[:, None] == np.array([0] * 5 + [1] * 4 + [2] * 4),
    ),
    "document offsets": (
        {"document_offsets": ([0, 3, 7], np.array([0, 5, 13], np.int32))},
        (np.arange(SEQ_Q)[:, None] < 3) == (J < 5),
    ),
    "mask": ({"mask": (P * 7 + J * 3) % 4 > 0}, (P * 7 + J * 3) % 4 > 0),
    "packed mask": (
        {"packed_mask": np.packbits((P * 7 + J * 3) % 4 > 0, axis=-1, bitorder="little")},
        (P * 7 + J * 3) % 4 > 0,
    ),
    "blocks": (
        {"blocks": (4, 8, np.array([[True, False], [True, True]]))},
        (J < 8) | (np.arange(SEQ_Q)[:, None] >= 4),
    ),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks(name, dtype):
    options, visible = MASKS[name]
    check(options, visible=visible, dtype=dtype)


def test_at_length():
    lengths = np.array([13, 9])
    offsets = (lengths - SEQ_Q)[:, None, None, None]
    rows = np.arange(SEQ_Q)[:, None] + offsets
    check(
        {"causal": "at_length", "key_lengths": lengths},
        visible=(rows >= J) & (lengths[:, None, None, None] > J),
    )


@pytest.mark.parametrize("roots", [[None, 0, 1, 0], np.array([-1, 0, 1, 0])])
def test_trees(roots):
    seen = np.tri(SEQ_Q, SEQ_KV, SEQ_KV - SEQ_Q, dtype=bool)
    seen[-4:, -4:] = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    check({"tree": roots, "causal": True}, visible=seen)


TERMS = {
    "scale": ({"scale": 0.3}, {"scale": 0.3}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "alibi": (
        {"alibi": [0.5, 0.25, 0.125, 0.0625]},
        {"bias": np.array([0.5, 0.25, 0.125, 0.0625])[:, None, None] * (J - P)},
    ),
    "standard alibi": (
        {"alibi": True},
        {"bias": 2.0 ** -np.array([2, 4, 6, 8])[:, None, None] * (J - P)},
    ),
    "sinks": ({"sinks": [0.0, 1.0, -1.0, 2.0]}, {"sinks": np.array([0.0, 1.0, -1.0, 2.0])}),
    "bias": (
        {"bias": random(HEADS, SEQ_Q, SEQ_KV, seed=5)},
        {"bias": random(HEADS, SEQ_Q, SEQ_KV, seed=5)},
    ),
    "half bias": (
        {"bias": random(SEQ_Q, SEQ_KV, seed=5).astype(np.float16)},
        {"bias": random(SEQ_Q, SEQ_KV, seed=5).astype(np.float16)},
    ),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms(name, dtype):
    options, terms = TERMS[name]
    check(options, dtype=dtype, **terms)


def test_relative_bias():
    table = random(HEADS, 5, seed=6)
    bias = headwise.RelativeBias.by_distance(table, -3)
    assert bias.heads == HEADS
    distances = np.clip(J - P, -3, 1) + 3
    check({"relative_bias": bias}, bias=table[:, distances])
    assert headwise.RelativeBias.t5(random(32, 6), 128, True).heads == 6


def test_a_scale_of_doubles_is_not_rounded():
    query, key, value = (x.astype(np.float64) for x in (QUERY, KEY, VALUE))
    result = headwise.attention(query, key, value, scale=0.1)
    np.testing.assert_allclose(
        result.out, reference.attention(query, key, value, scale=0.1)[0], atol=1e-13
    )


def test_ragged():
    query, key = random(1, HEADS, 9, DIM, seed=7), random(1, KV, 11, DIM, seed=8)
    ragged = headwise.attention(query, key, key, causal=True, ragged=([0, 4, 9], [0, 5, 11])).out
    for q, k in ((slice(0, 4), slice(0, 5)), (slice(4, 9), slice(5, 11))):
        alone = headwise.attention(query[:, :, q], key[:, :, k], key[:, :, k], causal=True).out
        assert np.array_equal(ragged[:, :, q], alone)
    same = headwise.attention(query, query, query, ragged=[0, 4, 9], return_weights=True)
    assert same.weights.shape == (1, HEADS, 9, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_divided_by_factors(dtype):
    scales = np.exp(random(KV, DIM + 4, seed=9))
    query, key, value = (x.astype(dtype) for x in (QUERY, KEY, VALUE))
    right = headwise.attention(query, key, value).out * scales.repeat(HEADS // KV, axis=0)[:, None]
    for given in (scales, scales.T.copy().T, scales.astype(np.float64), scales.ravel().tolist()):
        out = headwise.attention(query, key, value, value_scales=given).out
        assert np.array_equal(out, right)
    one = headwise.attention(QUERY[0, 0], KEY[0, 0], VALUE[0, 0], value_scales=scales[0]).out
    assert np.array_equal(
        one, headwise.attention(QUERY[0, 0], KEY[0, 0], VALUE[0, 0]).out * scales[0]
    )


def test_bshd():
    turned = [x.transpose(0, 2, 1, 3).copy() for x in (QUERY, KEY, VALUE)]
    right = headwise.attention(QUERY, KEY, VALUE, causal=True, return_lse=True)
    result = headwise.attention(*turned, layout="bshd", causal=True, return_lse=True)
    assert np.array_equal(result.out, right.out.transpose(0, 2, 1, 3))
    assert result.out.flags.c_contiguous
    assert np.array_equal(result.lse, right.lse)
    out = np.empty((BATCH, SEQ_Q, HEADS, DIM + 4), np.float32)
    given = headwise.attention(*turned, layout="bshd", causal=True, out=out)
    assert given.out is out
    assert np.array_equal(out, result.out)
    packed = headwise.attention(*(x[0] for x in turned), layout="bshd", causal=True)
    assert np.array_equal(packed.out, result.out[0])


def test_parts_of_weights_and_scores():
    everything = headwise.attention(
        QUERY, KEY, VALUE, causal=True, return_weights=True, scores="final"
    )
    part = headwise.attention(
        QUERY,
        KEY,
        VALUE,
        causal=True,
        weights_of=([0, 3], range(5, 7)),
        scores="final",
        scores_of=(None, [2]),
    )
    assert np.array_equal(part.weights, everything.weights[:, [0, 3], 5:7])
    assert np.array_equal(part.scores, everything.scores[:, :, [2]])
    scaled = headwise.attention(QUERY, KEY, VALUE, scores="scaled", softcap=2.0).scores
    capped = headwise.attention(QUERY, KEY, VALUE, scores="capped", softcap=2.0).scores
    np.testing.assert_allclose(capped, 2 * np.tanh(scaled / 2), atol=1e-5)


def test_column_sums_and_largest_keys():
    result = headwise.attention(
        QUERY, KEY, VALUE, causal_offset=1, return_weights=True, column_sums=True, top_k=3
    )
    np.testing.assert_allclose(result.column_sums, result.weights.sum(2), atol=1e-6)
    keys, weights = result.top_k
    assert keys.dtype == np.int64
    # The first query sees two keys.
    assert (keys[:, :, 0, 2] == -1).all()
    assert (weights[:, :, 0, 2] == 0).all()
    order = np.argsort(-result.weights, axis=-1, kind="stable")[..., :3]
    assert np.array_equal(keys[:, :, 2:], order[:, :, 2:])
    by_group = headwise.attention(QUERY, KEY, VALUE, causal_offset=1, column_sums="kv_heads")
    grouped = result.column_sums.reshape(BATCH, KV, HEADS // KV, SEQ_KV).sum(2)
    np.testing.assert_allclose(by_group.column_sums, grouped, atol=1e-5)


def test_results_of_two_and_three_axes():
    result = headwise.attention(QUERY[0, 0], KEY[0, 0], VALUE[0, 0], return_lse=True, top_k=2)
    assert result.out.shape == (SEQ_Q, DIM + 4)
    assert result.lse.shape == (SEQ_Q,)
    assert result.top_k[0].shape == (SEQ_Q, 2)
    result = headwise.attention(QUERY[0], KEY[0], VALUE[0], return_weights=True)
    assert result.weights.shape == (HEADS, SEQ_Q, SEQ_KV)
    query = np.broadcast_to(QUERY, (3, *QUERY.shape))
    assert headwise.attention(query, KEY, VALUE, return_lse=True).lse.shape == query.shape[:-1]


def test_settings_change_no_bit():
    right = headwise.attention(QUERY, KEY, VALUE, causal=True)
    again = headwise.attention(QUERY, KEY, VALUE, causal=True, threads=1, isa=right.isa)
    assert np.array_equal(right.out, again.out)
    plain = headwise.attention(QUERY, KEY, VALUE, causal=True, algorithm="unfused")
    np.testing.assert_allclose(plain.out, right.out, atol=1e-5)
    assert "isa='" in repr(right)
    assert right.lse is None
    assert right.top_k is None


@pytest.mark.parametrize("isa", headwise.available_isas())
def test_precisions(isa):
    query, key, value = (random(1, HEADS, 64, 64, seed=seed) for seed in (10, 11, 12))

    def outs(precision):
        cache = headwise.KvCache.contiguous(batch=1, capacity=64, kv_heads=HEADS, head_dim=64)
        cache.append(key, value)
        options = {"causal": True, "isa": isa, "precision": precision}
        called = headwise.attention(query, key, value, **options).out
        return called, cache.attend(query, **options).out

    full, fast = outs("full"), outs("fast")
    for right, out, plain in zip(full, fast, outs(None), strict=True):
        assert np.array_equal(plain, right)
        assert np.abs(out - right).sum() < 0.02 * np.abs(right).sum()
        # All processors with this one have dot products of integers, and some with avx512 or avx2.
        if isa == "avx512bf16":
            assert not np.array_equal(out, right)
        elif isa in ("neon", "portable"):
            assert np.array_equal(out, right)


def test_masked_is_masked():
    key, value = KEY.copy(), VALUE.copy()
    key[:, :, 6:], value[:, :, 6:] = np.nan, np.inf
    lengths = {"key_lengths": [6, 6]}
    dirty = headwise.attention(QUERY, key, value, **lengths).out
    assert np.array_equal(dirty, headwise.attention(QUERY, KEY, VALUE, **lengths).out)
