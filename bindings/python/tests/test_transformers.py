"""Models of Hugging Face's transformers, tiny and random."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import headwise  # noqa: E402
import headwise.torch  # noqa: E402


def tiny(kind, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        **settings,
    )
    model_class = getattr(transformers, f"{kind}ForCausalLM", None)
    model_class = model_class or getattr(transformers, f"{kind}Model")
    return model_class(config).eval()


def logits(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs)[0]


def check(model, reference="sdpa", **inputs):
    right = logits(model, reference, **inputs)
    calls = headwise.torch._headwise.attention
    count = 0

    def counted(*arguments, **keywords):
        nonlocal count
        count += 1
        return calls(*arguments, **keywords)

    headwise.torch._headwise.attention = counted
    try:
        out = logits(model, headwise.torch.register_transformers(), **inputs)
    finally:
        headwise.torch._headwise.attention = calls
    assert count == model.config.num_hidden_layers
    torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-4)


def test_a_decoder_with_grouped_heads():
    model = tiny("Llama", num_key_value_heads=2, max_position_embeddings=64)
    tokens = torch.randint(0, 64, (2, 9))
    check(model, input_ids=tokens)
    padding = torch.ones(2, 9, dtype=torch.long)
    padding[0, :4] = 0
    check(model, input_ids=tokens, attention_mask=padding)


def test_an_encoder():
    model = tiny("Bert", max_position_embeddings=64)
    if not hasattr(model.config, "is_decoder"):
        pytest.skip("this version has another class for it")
    check(model, input_ids=torch.randint(0, 64, (2, 9)))


def test_a_softcap_and_windows():
    model = tiny(
        "Gemma2",
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        attn_logit_softcapping=5.0,
        sliding_window=4,
        query_pre_attn_scalar=8,
    )
    check(model, "eager", input_ids=torch.randint(0, 64, (2, 9)))


def test_generation():
    model = tiny("Llama", num_key_value_heads=2, max_position_embeddings=64)
    tokens = torch.randint(0, 64, (1, 5))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model.set_attn_implementation("sdpa")
    right = model.generate(tokens, **settings)
    model.set_attn_implementation(headwise.torch.register_transformers())
    assert torch.equal(model.generate(tokens, **settings), right)


def test_training_goes_to_pytorch():
    model = tiny("Llama", num_key_value_heads=2, max_position_embeddings=64)
    model.set_attn_implementation(headwise.torch.register_transformers())
    tokens = torch.randint(0, 64, (1, 5))
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_what_headwise_refuses_goes_to_pytorch():
    headwise.torch.register_transformers()
    attention, module = headwise.torch._transformers_attention, torch.nn.Module()
    query, key = torch.randn(1, 4, 3, 8), torch.randn(2, 4, 5, 8)
    right = torch.nn.functional.scaled_dot_product_attention(query, key, key).transpose(1, 2)
    out, _ = attention(module, query, key, key, None, is_causal=False)
    torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-4)
    # A mask of integers is none of ours, nor of PyTorch's, which says so.
    mask = torch.ones(3, 5, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        attention(module, query, key, key, mask, is_causal=False)
    with pytest.raises(TypeError, match="bias"):
        attention(module, query, key, key, mask, is_causal=False, softcap=5.0)
