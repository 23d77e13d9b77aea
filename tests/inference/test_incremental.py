"""A state that is read once and extended token by token, against one forward pass over the whole text."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, RNNConfig
from lmjax.inference import gpt_decoder, incremental
from lmjax.models import registry
from tests import all_slow_but

V, T, NEW = 23, 9, 6
GPT = GPTConfig(layers=2, width=16, heads=4, context=16, vocab_size=V)
FAMILIES: dict[str, ModelConfig] = {
    "learned, scanned": GPT,
    "learned, unrolled, grouped": replace(GPT, key_heads=2, scan=False),
    "rotary, scanned, one key head": replace(
        GPT, positions="rotary", norm="rmsnorm", key_heads=1, qk_norm=True, rope_scaling=(4.0, 1.0, 4.0, 8.0)
    ),
    "lstm": RNNConfig(cell="lstm", layers=2, width=8, vocab_size=V),
    "gru": RNNConfig(cell="gru", layers=1, width=8, vocab_size=V),
    "tanh": RNNConfig(cell="tanh", layers=2, width=8, vocab_size=V, tied=True),
    "nnlm": NNLMConfig(order=4, width=8, hidden=8, vocab_size=V),
    "nnlm of long order": NNLMConfig(order=T + 3, width=4, hidden=8, vocab_size=V),
}


def rough(config: ModelConfig) -> tuple[Any, Any]:
    model, rng = registry.build(config), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), shapes)


def walked(model: Any, params: Any, ids_BT: Any, first_B: Any) -> jax.Array:
    """Logits (NEW + 1, B, V) behind the prompts, and behind each further token."""
    logits_BV, state = incremental.read(model, params, ids_BT[:, :T], first_B=first_B, size=T + NEW)

    def step(state: Any, tokens_B: Any) -> tuple[Any, jax.Array]:
        logits_BV, state = incremental.extend(model, params, tokens_B, state)
        return state, logits_BV

    _, logits_NBV = jax.lax.scan(step, state, ids_BT[:, T:].T)
    return jnp.concatenate([logits_BV[None], logits_NBV])


@pytest.mark.parametrize("config", all_slow_but({6}, FAMILIES.values()), ids=FAMILIES)
def test_logits_are_those_of_a_pass_over_each_row_alone(config: ModelConfig) -> None:
    """Rows that begin at different places, whatever stands in front of them."""
    model, params = rough(config)
    rng, first_B = np.random.default_rng(1), np.array([0, 3, 8, 5], np.int32)
    ids_BT = rng.integers(0, V, (4, T + NEW)).astype(np.int32)
    walk = jax.jit(partial(walked, model, params))
    found_NBV = walk(ids_BT, first_B)
    flush_left_BT = np.array([np.roll(row, -first) for row, first in zip(ids_BT, first_B, strict=True)])
    whole_BTV = jax.jit(model.apply)({"params": params}, flush_left_BT)
    for b, first in enumerate(first_B):
        expected_NV = whole_BTV[b, T - 1 - first : T + NEW - first]
        # sums of a few dozen float32 terms of about 1 in another order, through two layers
        np.testing.assert_allclose(found_NBV[:, b], expected_NV, rtol=1e-4, atol=1e-4)
    before = np.arange(T + NEW) < first_B[:, None]
    np.testing.assert_array_equal(walk(np.where(before, 7, ids_BT), first_B), found_NBV)


@pytest.mark.slow
def test_bfloat16_rounds_the_cache_and_little_else() -> None:
    """Keys and values are rounded where they are kept, which a product would do anyway."""
    model, params = rough(replace(FAMILIES["rotary, scanned, one key head"], dtype="bfloat16"))
    ids_BT = np.random.default_rng(1).integers(0, V, (2, T + NEW)).astype(np.int32)
    first_B = np.zeros(2, np.int32)
    found_NBV = np.asarray(jax.jit(partial(walked, model, params))(ids_BT, first_B))
    expected_NBV = np.asarray(jax.jit(model.apply)({"params": params}, ids_BT))[:, T - 1 :].swapaxes(0, 1)
    _, state = incremental.read(model, params, ids_BT[:, :T], first_B=first_B, size=T)
    for leaf in jax.tree.leaves(state["layers"]):  # on CPU they are kept as float32
        np.testing.assert_array_equal(leaf, leaf.astype(jnp.bfloat16).astype(leaf.dtype))
    # weights are rounded before (training) or after (here) they are divided by their sum: two roundings of 2^-9
    assert np.linalg.norm(found_NBV - expected_NBV) / np.linalg.norm(expected_NBV) < 4 * 2**-9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rows", "large"),
    [pytest.param(1, True, marks=pytest.mark.slow), (1, False), pytest.param(3, True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", all_slow_but({2}, (name for name in FAMILIES if "d," in name)))
def test_what_is_prepared_goes_on_as_the_model_does(
    name: str, rows: int, large: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers unrolled, kernels merged, rounded and laid out: the same numbers. Every leaf, biases too, matters."""
    monkeypatch.setattr(gpt_decoder, "LARGE", 0 if large else gpt_decoder.LARGE)
    model, params = rough(replace(FAMILIES[name], dtype=dtype, bias=True))
    ids_BT = np.random.default_rng(1).integers(0, V, (rows, T + 1)).astype(np.int32)
    first_B = np.arange(rows, dtype=np.int32)
    _, state = incremental.read(model, params, ids_BT[:, :T], first_B=first_B, size=T + 1)
    quick, quick_params = incremental.prepared(model, params, rows)
    assert quick.alone == (large and rows == 1)
    quick_state = incremental.prepared_state(model.config, state)
    expected_BV, after = incremental.extend(model, params, ids_BT[:, T], state)
    found_BV, quick_after = incremental.extend(quick, quick_params, ids_BT[:, T], quick_state)
    # sums in another order; where their rounding to bfloat16 falls on the other side, one part in 2^8 of a term
    tolerance = 1e-6 if dtype == "float32" else 2**-8
    assert np.linalg.norm(found_BV - expected_BV) <= tolerance * np.linalg.norm(expected_BV)
    kept = incremental.prepared_state(model.config, after)["layers"]
    for expected, found in zip(jax.tree.leaves(kept), jax.tree.leaves(quick_after["layers"]), strict=True):
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", [pytest.param("rotary, scanned, one key head", marks=pytest.mark.slow), "lstm"])
def test_a_state_that_has_grown_goes_on_as_it_would_have(name: str) -> None:
    """Bit for bit: what is added is not seen."""
    model, params = rough(FAMILIES[name])
    ids_BT = np.random.default_rng(1).integers(0, V, (2, T + 1)).astype(np.int32)
    first_B = np.arange(2, dtype=np.int32)
    quick, quick_params = incremental.prepared(model, params, 2)
    found = []
    for size in (T, T + 1):
        _, state = incremental.read(model, params, ids_BT[:, :T], first_B=first_B, size=size)
        state = incremental.grown(model.config, incremental.prepared_state(model.config, state), T + 1)
        found.append(incremental.extend(quick, quick_params, ids_BT[:, T], state))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_only_a_gpt_has_an_end() -> None:
    limits = {name: incremental.limit(config) for name, config in FAMILIES.items()}
    assert {name for name, limit in limits.items() if limit == 16} == {name for name in FAMILIES if "d," in name}
    assert set(limits.values()) == {16, None}
