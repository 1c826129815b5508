"""Refusals of tensors that are not plain memory, or that autograd must know of."""

import pytest

torch = pytest.importorskip("torch")

import headwise  # noqa: E402


def sdpa(*arguments):
    return headwise.scaled_dot_product_attention(*arguments)


def refused(kind, *parts):
    """That a message has these parts, in this order."""
    return pytest.raises(kind, match=".*".join(parts))


def test_gradients():
    query = torch.ones(1, 2, 4, 8, requires_grad=True)
    other = torch.ones(1, 2, 4, 8)
    with refused(RuntimeError, "query: a tensor that requires gradients", "no_grad", "detach"):
        sdpa(query, other, other)
    with refused(RuntimeError, "value: a tensor that requires gradients"):
        sdpa(other, other, query)
    assert torch.equal(sdpa(query.detach(), other, other), other)


def test_tensors_that_are_not_dense_numbers():
    x = torch.ones(1, 2, 4, 8)
    with refused(ValueError, "query: on", "CPU"):
        sdpa(x.to("meta"), x, x)
    with refused((TypeError, ValueError, RuntimeError), "key"):
        sdpa(x, x.to_sparse(), x)
    with refused(TypeError, "query: elements of dlpack type"):
        sdpa(x.to(torch.complex64), x, x)
    lazy = torch.complex(x, x).conj().imag
    assert lazy.is_neg()
    with refused(TypeError, "value: a tensor that is a lazy negation", "resolve_neg"):
        sdpa(x, x, lazy)
    with refused(TypeError, "query", "a dense tensor"):
        torch.vmap(lambda y: sdpa(y, y, y))(x)
    with refused(RuntimeError, "query: a dual tensor"), torch.autograd.forward_ad.dual_level():
        sdpa(torch.autograd.forward_ad.make_dual(x, x), x, x)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(sdpa(x, x, x), x)
    empty = torch.ones(1, 2, 4, 8)
    empty.untyped_storage().resize_(0)
    with refused(TypeError, "key: a tensor without memory"):
        sdpa(x, empty, x)
    nested = torch.nested.nested_tensor([torch.ones(2, 4, 8), torch.ones(2, 3, 8)])
    with refused((TypeError, ValueError, RuntimeError), "query"):
        sdpa(nested, x, x)


def shrunk(x, nbytes):
    """A tensor whose storage was made smaller than what it reaches."""
    x.untyped_storage().resize_(nbytes)
    return x


def test_tensors_beyond_their_storage():
    x = torch.ones(1, 2, 4, 8)
    view = torch.ones(3, 2, 4, 8)[2:]
    with refused(TypeError, "key: a tensor that reaches 768 bytes into a storage of 0"):
        sdpa(x, shrunk(view, 0), x)
    with refused(TypeError, "query: a tensor that reaches 256 bytes into a storage of 252"):
        sdpa(shrunk(torch.ones(1, 2, 4, 8), 252), x, x)
    with refused(TypeError, "value: .* within its storage"):
        sdpa(x, x, shrunk(torch.nn.Parameter(torch.ones(1, 2, 4, 8), False), 128))
    with refused(TypeError, "out: a tensor that reaches"):
        headwise.scaled_dot_product_attention(x, x, x, out=shrunk(torch.ones(1, 2, 4, 8), 128))
    with refused(TypeError, "documents: a tensor that reaches"):
        headwise.attention(x, x, x, documents=shrunk(torch.zeros(4, dtype=torch.int64), 8))
    last = torch.ones(3, 2, 4, 8)[2:]
    assert torch.equal(sdpa(last, last, last), last)
    assert torch.equal(sdpa(x, shrunk(torch.ones(2, 2, 4, 8)[:1], 256), x), x)


def test_autograd_knows_what_was_written():
    x = torch.ones(1, 2, 4, 8)
    weight = torch.ones(1, 2, 4, 8, requires_grad=True)
    out = torch.zeros(1, 2, 4, 8)
    product = (weight * out).sum()
    headwise.scaled_dot_product_attention(x, x, x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    before = out._version
    headwise.attention(x, x, x, out=out)
    assert out._version == before + 1
    with pytest.raises(ValueError, match="key"):
        headwise.attention(x, x[..., :4], x, out=out)
    assert out._version == before + 1
    cache = headwise.KvCache.contiguous(batch=1, capacity=4, kv_heads=2, head_dim=8)
    cache.append(x, x)
    cache.attend(x, out=out)
    assert out._version == before + 2
    with torch.inference_mode():
        out = torch.zeros(1, 2, 4, 8)
        assert torch.equal(headwise.scaled_dot_product_attention(x, x, x, out=out), x)
    assert torch.equal(headwise.scaled_dot_product_attention(x, x, x, out=out), x)


def test_tensors_of_one_element_are_lists():
    x = torch.ones(1, 1, 1, 8)
    one = torch.tensor([7])
    headwise.attention(x, x, x, documents=(one, one))
    two = torch.ones(1, 1, 2, 8)
    numbers = torch.tensor([0, 1])
    by_list = headwise.attention(two, two, two, documents=[0, 1], return_weights=True)
    by_items = headwise.attention(two, two, two, documents=tuple(numbers), return_weights=True)
    assert torch.equal(by_list.weights, by_items.weights)
