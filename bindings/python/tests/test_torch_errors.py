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
