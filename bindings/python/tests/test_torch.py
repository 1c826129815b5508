"""``headwise.torch``: whole models, and what goes to PyTorch as before."""

import gc

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

import headwise  # noqa: E402
import headwise.torch  # noqa: E402


@pytest.fixture(autouse=True)
def unpatched():
    before = F.scaled_dot_product_attention
    yield
    headwise.torch.unpatch()
    assert F.scaled_dot_product_attention is before


def model():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(False)


def test_a_model():
    x, encoder = torch.randn(2, 9, 32), model()
    causal = torch.nn.Transformer.generate_square_subsequent_mask(9)
    # The fused layer of PyTorch would not call the function.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            right = encoder(x, mask=causal)
            with headwise.torch.patch() as patch:
                out = encoder(x, mask=causal)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert patch.calls == 2
    assert not patch.fallbacks
    torch.testing.assert_close(out, right, atol=2e-6, rtol=1e-5)


def test_plain_calls():
    original = F.scaled_dot_product_attention
    x = torch.randn(1, 2, 5, 8)
    patch = headwise.torch.patch()
    assert F.scaled_dot_product_attention is not original
    F.scaled_dot_product_attention(x, x, x)
    F.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=True, scale=0.3)
    assert patch.calls == 2
    headwise.torch.unpatch()
    assert F.scaled_dot_product_attention is original
    patch.end()


def test_patches_within_patches():
    original, x = F.scaled_dot_product_attention, torch.randn(1, 2, 5, 8)
    with headwise.torch.patch() as outer:
        with headwise.torch.patch() as inner:
            F.scaled_dot_product_attention(x, x, x)
        F.scaled_dot_product_attention(x, x, x)
        assert (outer.calls, inner.calls) == (1, 1)
    assert F.scaled_dot_product_attention is original
    first, second = headwise.torch.patch(), headwise.torch.patch()
    first.end()
    F.scaled_dot_product_attention(x, x, x)
    assert (first.calls, second.calls) == (0, 1)
    second.end()
    assert F.scaled_dot_product_attention is original


def test_what_others_put_there_stays():
    original = F.scaled_dot_product_attention
    patch = headwise.torch.patch()

    def other(*arguments, **keywords):
        return original(*arguments, **keywords)

    F.scaled_dot_product_attention = other
    with pytest.warns(RuntimeWarning, match="somebody else"):
        patch.end()
    assert F.scaled_dot_product_attention is other
    F.scaled_dot_product_attention = original


def fallbacks(function):
    """Why a call went to PyTorch; it must give what it gives there."""
    right = function()
    with headwise.torch.patch() as patch:
        out = function()
    assert patch.calls == 0
    if isinstance(right, torch.Tensor) and not right.is_nested:
        torch.testing.assert_close(out, right)
    return dict(patch.fallbacks)


def test_what_goes_to_pytorch():
    x = torch.randn(2, 2, 5, 8)
    grad = torch.randn(2, 2, 5, 8, requires_grad=True)
    sdpa = lambda *a, **k: F.scaled_dot_product_attention(*a, **k)  # noqa: E731
    assert fallbacks(lambda: sdpa(grad, x, x)) == {"gradients": 1}
    assert fallbacks(lambda: sdpa(x, x, x, attn_mask=grad[:1, :1, :, :5].detach().expand(2, 2, 5, 5)
                                  .requires_grad_())) == {"gradients": 1}  # fmt: skip
    assert fallbacks(lambda: sdpa(x, x, x, dropout_p=1.0)) == {"dropout": 1}
    meta = x.to("meta")
    assert fallbacks(lambda: sdpa(meta, meta, meta).shape) == {"device": 1}
    rows = [torch.randn(2, n, 8) for n in (3, 4)]
    nested = torch.nested.nested_tensor(rows, layout=torch.strided)
    assert fallbacks(lambda: sdpa(nested, nested, nested)) == {"nested or sparse": 1}

    def vmapped():
        return torch.vmap(lambda y: F.scaled_dot_product_attention(y, y, y))(x)

    assert fallbacks(vmapped) == {"transform": 1}

    def autocast():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.scaled_dot_product_attention(x, x, x)

    assert fallbacks(autocast) == {"autocast": 1}


def test_gradients_flow_as_before():
    x = torch.randn(1, 2, 5, 8, requires_grad=True)
    with headwise.torch.patch():
        F.scaled_dot_product_attention(x, x, x).sum().backward()
    assert x.grad is not None


def test_errors_are_those_of_pytorch():
    x = torch.randn(1, 2, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool)
    with headwise.torch.patch(), pytest.raises(RuntimeError, match="attn_mask"):
        F.scaled_dot_product_attention(x, x, x, attn_mask=mask, is_causal=True)


def test_compiled_models_have_pytorch():
    x = torch.randn(1, 2, 5, 8)
    with headwise.torch.patch() as patch:
        function = torch.compile(
            lambda y: F.scaled_dot_product_attention(y, y, y) + 1, backend="eager", fullgraph=True
        )
        function(x)
    assert (patch.calls, patch.fallbacks) == (0, {})


def test_bfloat16():
    x = torch.randn(1, 2, 5, 8).bfloat16()
    with torch.no_grad(), headwise.torch.patch() as patch:
        out = F.scaled_dot_product_attention(x, x, x)
    assert patch.calls == 1
    assert out.dtype == torch.bfloat16
    cache = headwise.KvCache.contiguous(
        batch=1, capacity=5, kv_heads=2, head_dim=8, dtype=torch.bfloat16
    )
    cache.append(x, x)
    assert cache.dtype == "bfloat16"
    assert torch.equal(cache.attend(x, causal=False).out, out)


def test_scripted_models_have_pytorch():
    x = torch.randn(1, 2, 5, 8)
    right = F.scaled_dot_product_attention(x, x, x, is_causal=True)

    # A module, for functions are compiled once.
    class Causal(torch.nn.Module):
        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)

    table = torch.jit._builtins._get_builtin_table()
    before = len(table)
    with headwise.torch.patch() as patch:
        torch.testing.assert_close(torch.jit.script(Causal())(x), right)
    assert patch.calls == 0
    del patch
    gc.collect()
    assert len(table) == before


def test_modes_see_the_call():
    original, x, seen = F.scaled_dot_product_attention, torch.randn(1, 2, 5, 8), []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            seen.append(function)
            return function(*arguments, **(keywords or {}))

    with headwise.torch.patch() as patch:
        with Watch():
            F.scaled_dot_product_attention(x, x, x)
        assert original in seen
        assert (patch.calls, patch.fallbacks) == (0, {"function mode": 1})
        with torch.device("cpu"):
            F.scaled_dot_product_attention(x, x, x)
        assert patch.calls == 1
