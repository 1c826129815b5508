"""Rotary embeddings as configurations of models name them, beside transformers' own tables."""

import numpy as np
import pytest

import headwise

DIM, BASE, POSITIONS = 16, 10_000.0, 40
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 8},
    YARN,
    YARN | {"truncate": False},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
]


def tables(**keywords):
    """Cosines and sines of every position, as a rotation of ones shows them."""
    rope = headwise.Rope(DIM, POSITIONS, base=BASE, **keywords)
    rows = np.zeros((1, 1, POSITIONS, DIM), np.float32)
    rows[..., : DIM // 2] = 1.0
    rotated = rope.rotate(rows)[0, 0]
    return rotated[:, : DIM // 2], rotated[:, DIM // 2 :]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scalings_are_those_of_transformers(scaling):
    transformers = pytest.importorskip("transformers")
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    config = transformers.LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        head_dim=DIM,
        max_position_embeddings=8,
        rope_parameters=scaling | {"rope_theta": BASE},
    )
    if scaling["rope_type"] == "default":
        frequencies, factor = BASE ** -(np.arange(0, DIM, 2) / DIM), 1.0
    else:
        compute = utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
        frequencies, factor = compute(config, "cpu", seq_len=POSITIONS)
        frequencies = np.asarray(frequencies, np.float64)
    angles = np.arange(POSITIONS)[:, None] * frequencies
    cos, sin = tables(scaling=scaling)
    np.testing.assert_allclose(cos, factor * np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin, factor * np.sin(angles), atol=2e-5)


def test_dynamic_stretches_to_the_tokens_there_are():
    dynamic = {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 8}
    whole, some = tables(scaling=dynamic), tables(scaling=dynamic | {"seq_len": 20})
    ntk = tables(scaling={"rope_type": "ntk", "factor": 3.0 * POSITIONS / 8 - 2.0})
    assert np.array_equal(whole, ntk)
    assert not np.array_equal(whole, some)
    within = tables(scaling=dynamic | {"seq_len": 8})
    assert np.array_equal(within, tables())


def test_what_is_no_scaling():
    for scaling, message in [
        ({"factor": 2.0}, "no rope_type"),
        ({"rope_type": "longer"}, '"dynamic"'),
        ({"rope_type": "dynamic", "factor": 2.0}, "no original_max_position_embeddings"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 8}, "no factor"),
        (YARN | {"factor": 0.0}, "factor"),
    ]:
        with pytest.raises(ValueError, match=message):
            tables(scaling=scaling)
    with pytest.raises(TypeError):
        tables(scaling=YARN | {"truncate": "yes"})
