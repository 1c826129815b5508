"""Pages of the caller's own, and states of attention over parts of the keys."""

import numpy as np
import pytest

import headwise


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pool(keys, pages, page_size, count=6):
    """A pool with the keys of one sequence in these pages, and NaN elsewhere."""
    heads, seq, dim = keys.shape
    rows = np.full((count, heads, page_size, dim), np.nan, np.float32)
    for position in range(seq):
        rows[pages[position // page_size], :, position % page_size] = keys[:, position]
    return rows


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_pages(layout):
    keys, values = random(2, 10, 8), random(2, 10, 8, seed=1)
    query = random(1, 4, 3, 8, seed=2)
    right = headwise.attention(query, keys, values, causal=True, softcap=9.0)
    pages = [4, 0, 3]
    pools = [pool(x, pages, 4) for x in (keys, values)]
    if layout == "bshd":
        pools = [x.swapaxes(1, 2).copy() for x in pools]
        query = query.swapaxes(1, 2).copy()
    tables = (pages, [0, 3], np.array([10], np.int32))
    result = headwise.paged_attention(query, *pools, tables, layout=layout, softcap=9.0)
    out = result.out.swapaxes(1, 2) if layout == "bshd" else result.out
    assert np.array_equal(out, right.out)


def test_pages_that_lie_otherwise_than_queries():
    keys, query = random(2, 10, 8), random(1, 4, 3, 8, seed=2)
    pages = pool(keys, [4, 0, 3], 4)
    tables = ([4, 0, 3], [0, 3], [10])
    right = headwise.paged_attention(query, pages, pages, tables).out
    swapped = query.swapaxes(1, 2)
    out = headwise.paged_attention(
        swapped, pages, pages, tables, layout="bshd", pages_layout="bhsd"
    ).out
    assert np.array_equal(out, right.swapaxes(1, 2))
    pages = pages.swapaxes(1, 2).copy()
    out = headwise.paged_attention(query, pages, pages, tables, pages_layout="bshd").out
    assert np.array_equal(out, right)
    with pytest.raises(ValueError, match=r"pages_layout: .HND."):
        headwise.paged_attention(query, pages, pages, tables, pages_layout="HND")


def test_positions_that_are_gone():
    keys, query = random(2, 10, 8), random(1, 4, 1, 8, seed=2)
    pages = [4, 0, 3]
    pools = pool(keys, pages, 4)
    result = headwise.paged_attention(query, pools, pools, (pages, [0, 3], [10], [5]))
    right = headwise.attention(query, keys, keys, key_starts=[5])
    np.testing.assert_array_equal(result.out, right.out)


def test_pages_of_half_precision():
    keys, query = random(2, 10, 8), random(1, 4, 3, 8, seed=2)
    pages = pool(keys, [4, 0, 3], 4).astype(np.float16)
    tables = ([4, 0, 3], [0, 3], [10])
    wide = headwise.paged_attention(
        query, pages.astype(np.float32), pages.astype(np.float32), tables
    )
    assert np.array_equal(headwise.paged_attention(query, pages, pages, tables).out, wide.out)


def test_refused_pages():
    pools, query = random(3, 2, 4, 8), random(1, 4, 1, 8)
    for tables, message in (
        (([7], [0, 1], [4]), "page"),
        (([1], [0, 1], [9]), "length|pages"),
        (([1], [0, 2], [4]), "offsets"),
    ):
        with pytest.raises(ValueError, match=message):
            headwise.paged_attention(query, pools, pools, tables)
    good = ([1], [0, 1], [4])
    with pytest.raises(TypeError, match="tables: 2 lists"):
        headwise.paged_attention(query, pools, pools, good[:2])
    with pytest.raises(TypeError, match="value_pages: elements of float32, expected float16"):
        headwise.paged_attention(query, pools.astype(np.float16), pools, good)
    with pytest.raises(TypeError, match="key_pages: elements of float64"):
        headwise.paged_attention(query, pools.astype(np.float64), pools, good)
    with pytest.raises(ValueError, match="value_pages: rows"):
        headwise.paged_attention(query, pools, pools[..., ::-1], good)
    own = pools.reshape(-1)[:32].reshape(1, 4, 1, 8)
    with pytest.raises(ValueError, match="out: memory that overlaps that of key_pages"):
        headwise.paged_attention(query, pools, pools, good, out=own)


def test_states_merge_to_the_whole():
    query, key, value = random(2, 4, 3, 8), random(2, 4, 20, 8, seed=1), random(2, 4, 20, 5, seed=2)
    parts = []
    for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
        result = headwise.attention(query, key[:, :, part], value[:, :, part], return_lse=True)
        parts.append((result.out, result.lse))
    out, lse = headwise.merge_states(parts)
    whole = headwise.attention(query, key, value, return_lse=True)
    np.testing.assert_allclose(out, whole.out, atol=2e-6)
    np.testing.assert_allclose(lse, whole.lse, atol=2e-6)
    swapped = [(out.swapaxes(1, 2), lse) for out, lse in parts]
    for states in (swapped, [(out.copy(), lse) for out, lse in swapped]):
        merged = headwise.merge_states(states, layout="bshd")
        assert np.array_equal(merged[0], out.swapaxes(1, 2))
        assert np.array_equal(merged[1], lse)
    with pytest.raises(ValueError, match=r"layout: .sbhd."):
        headwise.merge_states(parts, layout="sbhd")
    with pytest.raises(ValueError, match="states: none"):
        headwise.merge_states([])
    with pytest.raises(ValueError, match=r"lse: \[4, 3\]"):
        headwise.merge_states([(out, lse[0])])
    with pytest.raises(ValueError, match="shape"):
        headwise.merge_states([(out, lse), (out[:1], lse[:1])])
