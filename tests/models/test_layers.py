import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.layers import (
    MLP,
    Dense,
    Embedding,
    Norm,
    activate,
    dropout,
    product,
    rotate,
    rotation,
    sinusoids,
    swiglu,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_gradients(f, *args):
    """f's value, and its gradients against a fixed random cotangent."""
    y, pull = jax.vjp(f, *args)
    return y, *pull(jnp.asarray(normal(*y.shape, seed=9)))


@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24)])
@pytest.mark.parametrize("axis", [0, 1])
def test_product_and_its_gradients_equal_those_of_jax(shape, axis):
    x, w = normal(*shape), normal(24, 10) if axis == 0 else normal(10, 24)
    plain = jax.jit(lambda x, w: with_gradients(lambda x, w: x @ (w if axis == 0 else w.T), x, w))
    ours = jax.jit(lambda x, w: with_gradients(lambda x, w: product(x, w, axis), x, w))
    for a, b in zip(ours(x, w), plain(x, w), strict=True):
        # the same sums of at most 24 terms, perhaps in another order
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("axis", [0, 1])
def test_bfloat16_rounds_the_inputs_and_nothing_else(axis):
    x, w, g = normal(4, 50, 24), normal(24, 10) if axis == 0 else normal(10, 24), normal(4, 50, 10, seed=9)
    x64, w64, g64 = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, w, g))
    kernel = w64 if axis == 0 else w64.T
    dw = np.einsum("btd,btf->df", x64, g64)
    expected = x64 @ kernel, g64 @ kernel.T, dw if axis == 0 else dw.T
    actual = jax.jit(lambda x, w: with_gradients(lambda x, w: product(x, w, axis, "bfloat16"), x, w))(x, w)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float32
        # products of bfloat16 are exact in float32, so only the sums (200 terms at most) round
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_bfloat16_products_may_be_transposed():
    """XLA for CPU stored the result transposed and then had no kernel for it."""
    x, w = normal(64, 32), normal(32, 48)
    f = partial(with_gradients, partial(product, dtype="bfloat16"))
    transposed = jax.jit(lambda x, w: [a.T + 1.0 for a in f(x, w)])
    for a, b in zip(transposed(x, w), f(x, w), strict=True):
        np.testing.assert_allclose(a, b.T + 1.0, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_dense_adds_its_bias_and_starts_as_told():
    dense = Dense(400, std=0.3)
    params = dense.init(jax.random.key(0), jnp.zeros((1, 500)))["params"]
    assert np.std(params["kernel"]) == pytest.approx(0.3, rel=0.01)  # 200,000 draws: 6 standard errors
    assert not params["bias"].any()
    x = normal(3, 500)
    shifted = {"kernel": params["kernel"], "bias": jnp.arange(400.0)}
    np.testing.assert_allclose(
        dense.apply({"params": shifted}, x), x @ params["kernel"] + np.arange(400), rtol=1e-5, atol=1e-4
    )
    assert list(Dense(4, std=0.3, bias=False).init(jax.random.key(0), x)["params"]) == ["kernel"]
    glorot = Dense(100, std=None).init(jax.random.key(0), x)["params"]["kernel"]
    bound = math.sqrt(6 / 600)
    assert np.abs(glorot).max() == pytest.approx(bound, rel=0.001)  # of 50,000 draws, none above
    assert np.abs(glorot).max() <= bound
    assert np.std(glorot) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_norms_equal_their_formulas():
    x, scale, bias = normal(5, 16) * 3 + 1, normal(16), normal(16, seed=1)
    layer = Norm("layernorm", 1e-3).apply({"params": {"scale": scale, "bias": bias}}, x)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * scale + bias
    np.testing.assert_allclose(layer, expected, rtol=1e-5, atol=1e-5)
    rms = Norm("rmsnorm", 1e-3).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(rms, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale, rtol=1e-5, atol=1e-5)


def test_an_embedding_of_an_index_outside_the_table_is_nan():
    table = Embedding(5, 4, std=1.0)
    params = table.init(jax.random.key(0), jnp.array([0]))
    out = table.apply(params, jnp.array([4, 5]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_equal_their_formula(width):
    table = sinusoids(3000, width)
    assert table.dtype == jnp.float32
    for p in (0, 1, 17, 2999):
        for i in range(width):
            angle = p / 10_000 ** (2 * (i // 2) / width)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert float(table[p, i]) == pytest.approx(expected, abs=1e-7)  # the last bit of float32


def test_rotary_scores_depend_on_distance_only():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def score(i, j):
        q_turned = rotate(q, *rotation(jnp.array([[i]]), 8, 10_000.0, jnp.float32))
        return float(jnp.sum(q_turned * rotate(k, *rotation(jnp.array([[j]]), 8, 10_000.0, jnp.float32))))

    # float32 cosines of angles up to 100 are good to 1e-5
    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-2)
    assert score(5, 5) == pytest.approx(np.sum(q * k), abs=1e-5)


def test_rotation_is_a_complex_product():
    x_BTHK, positions_BT = normal(2, 6, 3, 8), np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 7]])
    turn = np.exp(1j * positions_BT[..., None, None] * 100.0 ** (-np.arange(4) / 4))
    z = (x_BTHK[..., :4] + 1j * x_BTHK[..., 4:]) * turn
    ours = rotate(x_BTHK, *rotation(positions_BT, 8, 100.0, jnp.float32))
    np.testing.assert_allclose(ours, np.concatenate([z.real, z.imag], -1), rtol=1e-5, atol=1e-5)


def frequencies(scaling, theta=10_000.0):
    """What a position turns by: the angles of position 1."""
    cosine, sine = rotation(np.ones((1, 1)), 64, theta, jnp.float32, scaling)
    return np.arctan2(sine, cosine).ravel()


def test_stretched_rotations_equal_their_formulas():
    """Linear (Chen et al. 2023), and by wavelength as Llama 3.1 has it: 8 times the context of 8192 tokens."""
    plain = 10_000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(frequencies(()), plain, rtol=1e-5)
    np.testing.assert_allclose(frequencies((4.0,)), plain / 4, rtol=1e-5)
    kept = []
    for frequency in 500_000.0 ** (-np.arange(32) / 32):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            kept.append(frequency)
        elif wavelength > 8192 / 1:
            kept.append(frequency / 8)
        else:
            share = (8192 / wavelength - 1) / (4 - 1)
            kept.append((1 - share) * frequency / 8 + share * frequency)
    # float32 powers
    np.testing.assert_allclose(frequencies((8.0, 1.0, 4.0, 8192.0), 500_000.0), kept, rtol=1e-5)


def test_stretched_rotations_equal_those_of_transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for ours, theirs in (
        ((4.0,), {"rope_type": "linear", "factor": 4.0}),
        ((8.0, 1.0, 4.0, 8192.0), {"rope_type": "llama3", "factor": 8.0} | llama3),
    ):
        config = transformers.LlamaConfig(
            hidden_size=128, num_attention_heads=2, rope_theta=500_000.0, rope_scaling=theirs
        )
        expected, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
        assert factor == 1
        np.testing.assert_allclose(frequencies(ours, 500_000.0), expected, rtol=1e-5)


def test_activations_equal_their_formulas():
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(activate(x, "gelu"), x * (1 + erf) / 2, atol=1e-6)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    np.testing.assert_allclose(activate(x, "gelu_tanh"), x * (1 + tanh) / 2, atol=1e-6)
    np.testing.assert_array_equal(activate(x, "relu"), np.maximum(x, 0))
    np.testing.assert_allclose(swiglu(2.0, x), 2 * x / (1 + np.exp(-x)), atol=1e-5)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.full((200, 500), 2.0)
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    kept = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(kept)) == {0.0, np.float32(2.0 / 0.7)}
    assert (kept == 0).mean() == pytest.approx(0.3, abs=0.01)  # standard error 0.0015


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_mlp_has_the_parameters_of_its_kind(activation):
    shapes = jax.eval_shape(
        lambda: MLP(12, activation, std=1.0, output_std=0.5).init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    )
    kernels = {name: layer["kernel"].shape for name, layer in shapes["params"].items()}
    assert kernels == {"up": (8, 12), "down": (12, 8)} | ({"gate": (8, 12)} if activation == "swiglu" else {})
