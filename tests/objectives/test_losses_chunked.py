"""The causal loss in chunks against the loss of whole logits, which test_objectives compares with PyTorch."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from lmjax.config import CausalConfig, GPTConfig
from lmjax.models import gpt
from lmjax.objectives import losses

B, T = 3, 10
# Without layers: features are normalised embeddings, and the output layer is all there is to compile.
SMALL = GPTConfig(layers=0, width=8, heads=1, context=T, vocab_size=13, scan=False, init_std=1.0)


def example(model, length=T):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, model.config.vocab_size, (B, length)).astype(np.int32) for _ in range(2)]
    weights = rng.random((B, length)).astype(np.float32) * (rng.random((B, length)) < 0.8)
    return {"inputs_BT": ids[0], "targets_BT": ids[1], "weights_BT": weights}


def loss(model, params, batch, config):
    total, weight, sums = losses.causal(model, params, batch, config=config, train=False)
    return total, (weight, sums)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "chunk"),
    [pytest.param(True, 1, marks=pytest.mark.slow), pytest.param(False, 12, marks=pytest.mark.slow), (True, 1000)],
)
def test_the_loss_its_sums_and_gradients_are_those_of_whole_logits(tied, chunk):
    """Also where a chunk has fewer tokens than there are rows, or more than there are in all, or they do not fit."""
    model = gpt.GPT(dataclasses.replace(SMALL, tied=tied))
    batch, key = example(model), jax.random.key(0)
    params = model.init(key, batch["inputs_BT"])["params"]
    whole = CausalConfig(z_loss=1e-2, penalty=1e-3)
    configs = whole, dataclasses.replace(whole, chunk=chunk)
    run = jax.value_and_grad(partial(loss, model), has_aux=True)
    expected, found = jax.jit(lambda p, b: [run(p, b, config) for config in configs])(params, batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())  # float32, added up in another order
    by_row = [losses.causal_by_row(model, params, batch, chunk=some) for some in (chunk, 0)]
    np.testing.assert_allclose(by_row[0], by_row[1], rtol=1e-6)


@pytest.mark.slow
def test_whole_logits_of_a_large_vocabulary_never_exist():
    V, length = 32_768, 256
    model = gpt.GPT(dataclasses.replace(SMALL, vocab_size=V, context=length))
    batch = example(model, length)
    params = jax.eval_shape(model.init, jax.random.key(0), batch["inputs_BT"])["params"]

    def needed(chunk):
        run = jax.jit(jax.grad(partial(loss, model, config=CausalConfig(chunk=chunk)), has_aux=True))
        return run.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * B * length * V
    assert needed(0) > logits
    assert needed(48) < logits / 4  # 48 of 768 tokens, their gradient, and a second gradient of the embedding
