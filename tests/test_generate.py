"""Decoding against a plain loop of forward passes, and sampling against the definition of its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import GPTConfig, UserError
from lmjax.generate import generate, sample
from lmjax.models.gpt import GPT

CONFIG = GPTConfig(layers=2, width=16, heads=2, context=8, vocab_size=31, positions="rotary", init_std=0.3)


@pytest.fixture(scope="module")
def model() -> GPT:
    return GPT(CONFIG)


@pytest.fixture(scope="module")
def params(model: GPT) -> dict:
    return model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def test_greedy_decoding_is_an_argmax_loop_over_the_sliding_window(model: GPT, params: dict) -> None:
    ids = [3, 1, 4, 1, 5]
    for _ in range(12):
        logits = model.apply({"params": params}, jnp.array([ids[-CONFIG.context :]]))
        ids.append(int(jnp.argmax(logits[0, -1])))
    assert generate(model, params, prompt=[3, 1, 4, 1, 5], max_tokens=12, temperature=0) == ids[5:]


def test_a_prompt_longer_than_the_context_keeps_its_end(model: GPT, params: dict) -> None:
    long = list(range(20))
    kept = generate(model, params, prompt=long[-CONFIG.context :], max_tokens=3, temperature=0)
    assert generate(model, params, prompt=long, max_tokens=3, temperature=0) == kept


def test_the_seed_decides(model: GPT, params: dict) -> None:
    draws = [generate(model, params, prompt=[1], max_tokens=20, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def frequencies(logits: np.ndarray, *, temperature: float = 1.0, top_k: int = 5, top_p: float = 1.0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(1), 20_000)
    draw = jax.vmap(lambda key: sample(jnp.asarray(logits), key, temperature=temperature, top_k=top_k, top_p=top_p))
    return np.bincount(draw(keys), minlength=len(logits)) / len(keys)


PROBABILITIES = np.array([0.4, 0.05, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2 / np.sum(PROBABILITIES**2)),
        ({"top_k": 2}, np.array([0.4, 0, 0.3, 0, 0]) / 0.7),
        ({"top_p": 0.65}, np.array([0.4, 0, 0.3, 0, 0]) / 0.7),
        ({"top_p": 0.71}, np.array([0.4, 0, 0.3, 0.15, 0]) / 0.85),
        ({"top_p": 1e-6}, np.array([1.0, 0, 0, 0, 0])),
        ({"temperature": 0}, np.array([1.0, 0, 0, 0, 0])),
    ],
)
def test_draws_follow_the_distribution(settings: dict, expected: np.ndarray) -> None:
    found = frequencies(np.log(PROBABILITIES), **settings)
    assert np.all(found[expected == 0] == 0)
    # Five standard deviations of a share of 20,000 draws are at most 5 * 0.5 / sqrt(20,000) = 0.018.
    np.testing.assert_allclose(found, expected, atol=0.018)


@pytest.mark.parametrize(
    "settings", [{"prompt": []}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"max_tokens": -1}]
)
def test_settings_out_of_range_are_refused(model: GPT, params: dict, settings: dict) -> None:
    with pytest.raises(UserError):
        generate(model, params, **{"prompt": [1], **settings})
