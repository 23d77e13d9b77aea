"""The means that make an update fast change nothing but rounding: a whole GPT with them, and written down plainly.

Plain are here: products by `@` and JAX's own gradient, softmax attention with JAX's gradient, JAX's GELU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import CausalConfig, GPTConfig
from lmjax.models import gpt, layers
from lmjax.models.attention import module
from lmjax.objectives import losses

SHAPES = {
    "cpu": {"layers": 4, "width": 128, "heads": 4, "context": 64, "vocab_size": 65},
    "baby": {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocab_size": 65},
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "context": 256, "vocab_size": 50304},
}


def plain_product(x, w, axis=0, dtype="float32", where=None):
    x, w = layers.rounded(x, dtype).astype(x.dtype), layers.rounded(w, dtype).astype(x.dtype)
    return x @ (w if axis == 0 else w.T)


def plain_attend(q_BTHK, k_BSGK, v_BSGK, *, causal, dtype, **_):
    q, k, v = (layers.rounded(x, dtype).astype(x.dtype) for x in (q_BTHK * q_BTHK.shape[-1] ** -0.5, k_BSGK, v_BSGK))
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q, k)
    weights_BHTS = jax.nn.softmax(jnp.where(jnp.tri(q.shape[1], dtype=bool), scores_BHTS, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS, v)


def plain_activate(x, kind):
    assert kind == "gelu"
    return jax.nn.gelu(x, approximate=False)


def loss_and_gradients(config, params, batch):
    def loss(params):
        total, weight, _ = losses.causal(gpt.GPT(config), params, batch, config=CausalConfig(), train=True)
        return total / weight

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["cpu", "baby", "gpt2"])
def test_a_fast_gpt_is_the_plain_one(monkeypatch: pytest.MonkeyPatch, shape: str, dtype: str) -> None:
    config = GPTConfig(**SHAPES[shape], bias=False, activation="gelu", scan=False, dtype=dtype)
    params = gpt.init_params(gpt.GPT(config), 0)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, config.context + 1), dtype=np.int32)
    batch = {"inputs_BT": ids[:, :-1], "targets_BT": ids[:, 1:], "weights_BT": np.ones(ids[:, 1:].shape, np.float32)}
    fast = loss_and_gradients(config, params, batch)
    monkeypatch.setattr(layers, "product", plain_product)
    monkeypatch.setattr(layers, "activate", plain_activate)
    monkeypatch.setattr(module, "attend", plain_attend)
    plain = loss_and_gradients(config, params, batch)
    # float32: sums of thousands of terms in another order, a few 2^-24 each, growing layer by layer (measured: 0.8 to
    # 2.5e-6). bfloat16: gradients are rounded as well, 2^-9 each, in every layer (measured: 0.8 to 1.8e-2).
    of_loss, of_gradients = (1e-6, 4e-6) if dtype == "float32" else (2e-4, 3e-2)
    assert float(fast[0]) == pytest.approx(float(plain[0]), rel=of_loss)
    for ours, theirs in zip(jax.tree.leaves(fast[1]), jax.tree.leaves(plain[1]), strict=True):
        assert float(jnp.linalg.norm(ours - theirs)) <= of_gradients * float(jnp.linalg.norm(theirs))
