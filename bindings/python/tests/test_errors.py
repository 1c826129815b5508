"""Every refusal names the argument, what came and what was expected."""

import numpy as np
import pytest

import headwise

X = np.ones((1, 2, 4, 8), np.float32)


def sdpa(*arguments, **keywords):
    return headwise.scaled_dot_product_attention(*arguments, **keywords)


def refused(kind, *parts):
    """That a message has these parts, in this order."""
    return pytest.raises(kind, match=".*".join(parts))


def test_objects_that_are_no_arrays():
    with refused(TypeError, "query: a list", "torch.Tensor", "__dlpack__"):
        sdpa([1.0], X, X)
    with refused(TypeError, "key: a NoneType"):
        sdpa(X, None, X)


def test_types_of_elements():
    with refused(TypeError, "query: elements of int64", "float32"):
        sdpa(*3 * [X.astype(np.int64)])
    with refused(TypeError, "key: elements of float64", "float32, as the query"):
        sdpa(X, X.astype(np.float64), X)
    with refused(TypeError, "query: elements of buffer format"):
        sdpa(X.astype(">f4"), X, X)
    with refused(TypeError, "attn_mask: elements of int32"):
        sdpa(X, X, X, attn_mask=np.ones((4, 4), np.int32))
    with refused(TypeError, "mask: elements of float32", "bool"):
        headwise.attention(X, X, X, mask=np.ones((4, 4), np.float32))


def test_shapes():
    with refused(ValueError, "query: .8.", "two axes"):
        sdpa(X[0, 0, 0], X, X)
    with refused(ValueError, "key: 3 heads", "2 as the query", "enable_gqa"):
        sdpa(X, np.ones((1, 3, 4, 8), np.float32), np.ones((1, 3, 4, 8), np.float32))
    with refused(ValueError, "key: axis 0 of 3", "2 or 1"):
        sdpa(np.ones((2, 2, 4, 8), np.float32), np.ones((3, 2, 4, 8), np.float32), X)
    with refused(ValueError, "key"):
        sdpa(X, X[..., :4], X)
    with refused(ValueError, "value"):
        sdpa(X, X, X[:, :, :3])
    with refused(ValueError, "attn_mask: shape .1, 1, 3, 4."):
        sdpa(X, X, X, attn_mask=np.ones((3, 4), bool))
    with refused(ValueError, "query: 9 axes", "at most 8"):
        sdpa(X.reshape(1, 1, 1, 1, 1, 1, 2, 4, 8), X, X)


def test_what_pytorch_has_and_headwise_has_not():
    with refused(ValueError, "dropout_p: 0.1", "0.0"):
        sdpa(X, X, X, dropout_p=0.1)
    with refused(ValueError, "attn_mask: a mask beside is_causal=True"):
        sdpa(X, X, X, attn_mask=np.ones((4, 4), bool), is_causal=True)


def test_outputs():
    with refused(ValueError, "out: memory that overlaps that of query"):
        query = X.copy()
        sdpa(query, X, X, out=query)
    with refused(ValueError, "out: memory that overlaps that of value"):
        value = X.copy()
        sdpa(X, X, value, out=value[:, :, ::-1])
    with refused(TypeError, "out: elements of float64", "float32, as the query"):
        sdpa(X, X, X, out=X.astype(np.float64))
    with refused(ValueError, r"out: \[1, 2, 5, 8\]", r"\[1, 2, 4, 8\]"):
        sdpa(X, X, X, out=np.empty((1, 2, 5, 8), np.float32))
    with refused(ValueError, "output view", "every index an element of its own"):
        out = np.lib.stride_tricks.as_strided(np.empty(64, np.float32), X.shape, (0, 0, 0, 4))
        sdpa(X, X, X, out=out)
    for strides in [(0, 0, 0, 8), (0, 64, 8, 8), (0, 256, 64, -4)]:
        # None of these is written where it is, for the last axis is not contiguous.
        out = np.lib.stride_tricks.as_strided(np.empty(512, np.float32)[256:], X.shape, strides)
        if strides[-1] < 0:
            sdpa(X, X, X, out=out)
            continue
        with refused(ValueError, "out: distances", "every index an element of its own"):
            sdpa(X, X, X, out=out)


def test_devices():
    class Cuda:
        def __dlpack_device__(self):
            return (2, 1)

        def __dlpack__(self, **keywords):
            raise AssertionError("not asked for")

    with refused(ValueError, "key: on cuda:1", "CPU"):
        sdpa(X, Cuda(), X)


def test_keywords():
    with refused(TypeError, "windows: an unknown keyword", "attention"):
        headwise.attention(X, X, X, windows=3)
    with refused(TypeError, "causal: 3", "causal_offset"):
        headwise.attention(X, X, X, causal=3)
    with refused(ValueError, "causal: .upper.", "bottom_right"):
        headwise.attention(X, X, X, causal="upper")
    with refused(ValueError, "layout: .sbhd."):
        headwise.attention(X, X, X, layout="sbhd")
    with refused(TypeError, "window", "pair"):
        headwise.attention(X, X, X, window=3)
    with refused(ValueError, "softcap: -1"):
        headwise.attention(X, X, X, softcap=-1.0)
    with refused(ValueError, "key_lengths"):
        headwise.attention(X, X, X, key_lengths=[9])
    with refused(ValueError, "key_lengths: -1"):
        headwise.attention(X, X, X, key_lengths=[-1])
    with refused(ValueError, "scores_of: no scores"):
        headwise.attention(X, X, X, scores_of=([0], None))
    with refused(ValueError, "top_k|keys"):
        headwise.attention(X, X, X, top_k=9)
    with refused(ValueError, "isa"):
        headwise.attention(X, X, X, isa="mmx")
    with refused(ValueError, "threads: 0"):
        headwise.attention(X, X, X, threads=0)


def test_precisions():
    cache = headwise.KvCache.contiguous(batch=1, capacity=8, kv_heads=2, head_dim=8)
    cache.append(X, X)
    for call in (
        lambda precision: headwise.attention(X, X, X, precision=precision),
        lambda precision: cache.attend(X, precision=precision),
    ):
        with refused(ValueError, "precision: .exact.", '"full" or "fast"'):
            call("exact")
        with refused(TypeError, "precision: 8", '"full" or "fast"'):
            call(8)


def test_factors_of_channels():
    cache = headwise.KvCache.contiguous(batch=1, capacity=8, kv_heads=2, head_dim=8)
    right = np.full((2, 8), 2.0, np.float32)
    for call in (
        lambda scales: headwise.attention(X, X, X, value_scales=scales),
        lambda scales: cache.append(X, X, value_scales=scales),
        lambda scales: cache.attend(X, value_scales=scales),
    ):
        call(right)
        with refused(ValueError, r"value_scales: shape \[8, 2\]", r"\[2, 8\], as the values"):
            call(right.T)
        with refused(ValueError, r"value_scales: shape \[15\]", "2 kv heads of 8"):
            call([1.0] * 15)
        with refused(ValueError, r"value_scales: \[1, 2, 8\]", "two axes"):
            call(right[None])
        for number in (0.0, -1.0, np.nan, np.inf):
            wrong = right.copy()
            wrong[1, 3] = number
            with refused(ValueError, "value_scales: ", "positive, finite"):
                call(wrong)
        with refused(TypeError, "value_scales: int64s", "floats"):
            call(right.astype(np.int64))
        with refused(TypeError, "value_scales: ", "floats"):
            call(3.0)
    assert cache.lengths == [4]


def test_keywords_that_contradict_each_other():
    for causal in (True, "top_left"):
        with refused(ValueError, "causal_offset: .*beside causal", "one of them"):
            headwise.attention(X, X, X, causal=causal, causal_offset=1)
    headwise.attention(X, X, X, causal=None, causal_offset=1)


def test_trees():
    for tree in ([-5, 0, 0, 0], np.array([-1, -5, 0, 0])):
        with refused(ValueError, "tree: -5", "None or -1 for a root"):
            headwise.attention(X, X, X, tree=tree)
    with refused(TypeError, "tree: .*int", "None or -1"):
        headwise.attention(X, X, X, tree=5)
    headwise.attention(X, X, X, tree=[-1, None, 0, 1])


def test_more_keys_than_there_are():
    with refused(ValueError, "top_k: 5", "at most 4"):
        headwise.attention(X, X, X, top_k=5)
    with refused(ValueError, "top_k"):
        headwise.attention(X, X, X, top_k=2**40)


def test_keywords_of_append():
    cache = headwise.KvCache.contiguous(batch=1, capacity=8, kv_heads=2, head_dim=8)
    with refused(TypeError, "rope: 3", "headwise.Rope"):
        cache.append(X, X, rope=3)
    with refused(TypeError, "norm: 3", "headwise.QkNorm"):
        cache.append(X, X, norm=3)
    with refused(TypeError, "layout: 3", "a string"):
        cache.append(X, X, layout=3)
