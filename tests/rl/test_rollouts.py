"""Rollouts against sampling with complete forward passes, a token at a time, of each row alone."""

import hashlib
import os
import struct
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, UserError
from lmjax.inference.sampling import Sampling
from lmjax.models import gpt, registry
from lmjax.parallel import axes
from lmjax.rl import rollouts
from lmjax.rl.rollouts import Rollout, RolloutSettings
from tests import ROOT

V, N, END = 14, 8, (3,)
GPT = GPTConfig(layers=2, width=16, heads=2, context=32, vocab_size=V)
MODELS: dict[str, ModelConfig] = {
    "learned": GPT,
    "rotary": replace(
        GPT, positions="rotary", norm="rmsnorm", activation="swiglu", key_heads=1, bias=False, scan=False
    ),
    "tiny": NNLMConfig(order=3, width=4, hidden=4, vocab_size=V),  # compiles in a second
}
PROMPTS = [[1, 2, 7], [4], [9, 8, 1, 12, 2], [6, 6], [2, 11, 7, 4], [10]]
SETTINGS = RolloutSettings(Sampling(max_tokens=N, temperature=0.8, seed=3), END)


@cache
def rough(name: str) -> tuple[Any, Any]:
    model, rng = registry.build(MODELS[name]), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), shapes)


@cache
def program(name: str, settings: RolloutSettings = SETTINGS) -> rollouts.Program:
    return rollouts.program(rough(name)[0], settings)


def sampled(
    name: str,
    settings: RolloutSettings = SETTINGS,
    *,
    prompts: list[list[int]] | None = None,
    rows: Any = None,
    width: int = 6,
    update: int = 7,
) -> Rollout:
    prompts = PROMPTS if prompts is None else prompts
    rows = np.arange(len(prompts)) if rows is None else np.asarray(rows)
    padded = rollouts.flush_right(prompts, width, V)
    return jax.tree.map(np.asarray, program(name, settings)(rough(name)[1], padded, rows, update))


@cache
def forward(name: str) -> Any:
    model, _ = rough(name)
    return jax.jit(lambda params, ids_BT: model.apply({"params": params}, ids_BT))


def by_hand(name: str, row: int, *, update: int = 7, temperature: float = 0.8) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities of one row from complete passes over its own ids, without padding or cache."""
    _, params = rough(name)
    key = jax.random.key(3)
    for number in (0x726F6C6C, update, row):
        key = jax.random.fold_in(key, number)
    ids, logprobs, padded = list(PROMPTS[row]), [], np.zeros((1, 16), np.int32)
    for i in range(N):
        padded[0, : len(ids)] = ids
        logits_V = np.asarray(forward(name)(params, padded))[0, len(ids) - 1].astype(np.float64) / temperature
        noise_V = jax.random.gumbel(jax.random.fold_in(key, i), (V,), jnp.float32)
        ids.append(int(np.argmax(logits_V + np.asarray(noise_V))))
        logprobs.append(float(logits_V[ids[-1]] - np.log(np.exp(logits_V).sum())))
        if ids[-1] in END:
            break
    return ids[len(PROMPTS[row]) :], logprobs


def test_a_tiny_rollout() -> None:
    """Shapes, the mask, the end token, and the same bits twice."""
    settings = replace(SETTINGS, ends=(5,))
    first, second = sampled("tiny", settings), sampled("tiny", settings)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first.mask_BN.any(1).all()
    assert first.finite_B.all()
    check_ends(first, settings.ends)
    assert np.exp(first.logprobs_BN[first.mask_BN]).max() < 1


def check_ends(rollout: Rollout, ends: tuple[int, ...] = END) -> None:
    """An end token is in the mask and nothing follows it; both cases occur."""
    is_end_BN = np.isin(rollout.tokens_BN, ends) & rollout.mask_BN
    np.testing.assert_array_equal(is_end_BN.any(1), rollout.finished_B)
    lengths_B = np.where(is_end_BN.any(1), is_end_BN.argmax(1) + 1, rollout.mask_BN.shape[1])
    np.testing.assert_array_equal(rollout.mask_BN, np.arange(rollout.mask_BN.shape[1]) < lengths_B[:, None])
    assert not rollout.tokens_BN[~rollout.mask_BN].any()
    assert not rollout.logprobs_BN[~rollout.mask_BN].any()
    assert set(rollout.finished_B) == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_tokens_are_those_of_complete_passes_over_each_row_alone(name: str) -> None:
    rollout = sampled(name)
    check_ends(rollout)
    for row in range(len(PROMPTS)):
        tokens, logprobs = by_hand(name, row)
        assert rollout.tokens_BN[row][rollout.mask_BN[row]].tolist() == tokens
        # float32 sums of a few dozen terms in another order, through two layers
        np.testing.assert_allclose(rollout.logprobs_BN[row][rollout.mask_BN[row]], logprobs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("learned", 6), ("learned", 12), ("rotary", 12)])
def test_the_sampler_equals_the_trainer(name: str, width: int) -> None:
    """At most 1e-5 apart: rounding of float32. Positions that counted padding would move learned positions by nats."""
    model, params = rough(name)
    padded, rollout = rollouts.flush_right(PROMPTS, width, V), sampled(name, width=width)
    trainer = jax.jit(partial(rollouts.response_logprobs, model, temperature=0.8))
    logprobs_BN = np.asarray(trainer(params, padded, rollout))
    np.testing.assert_allclose(logprobs_BN, rollout.logprobs_BN, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_padding_changes_no_token(name: str) -> None:
    expected, padded = sampled(name), sampled(name, width=12)
    np.testing.assert_array_equal(padded.tokens_BN, expected.tokens_BN)
    np.testing.assert_array_equal(padded.mask_BN, expected.mask_BN)
    np.testing.assert_allclose(padded.logprobs_BN, expected.logprobs_BN, atol=1e-5, rtol=0)  # sums over other widths


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "rotary"])
def test_a_permutation_of_the_rows_permutes_the_bits(name: str) -> None:
    order = np.array([4, 0, 5, 2, 1, 3])
    expected, permuted = sampled(name), sampled(name, prompts=[PROMPTS[i] for i in order], rows=order)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), permuted, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("learned", 1), ("learned", 2), ("rotary", 3)])
def test_chunks_change_no_token(name: str, rows: int) -> None:
    expected, chunked = sampled(name), sampled(name, replace(SETTINGS, rows=rows))
    np.testing.assert_array_equal(chunked.tokens_BN, expected.tokens_BN)
    np.testing.assert_array_equal(chunked.mask_BN, expected.mask_BN)
    np.testing.assert_array_equal(chunked.finished_B, expected.finished_B)
    np.testing.assert_allclose(chunked.logprobs_BN, expected.logprobs_BN, atol=1e-5, rtol=0)  # other products


@pytest.mark.slow
def test_seed_update_and_row_each_change_the_tokens() -> None:
    expected = sampled("rotary").tokens_BN
    other_seed = replace(SETTINGS, sampling=replace(SETTINGS.sampling, seed=4))
    for other in (sampled("rotary", other_seed), sampled("rotary", update=8), sampled("rotary", rows=range(6, 12))):
        assert (other.tokens_BN != expected).any(1).mean() > 0.5
    same = sampled("rotary", prompts=[PROMPTS[0]] * 6)
    assert len({tuple(row) for row in same.tokens_BN.tolist()}) > 3  # rows of one group differ


@pytest.mark.slow
def test_tokens_have_the_probabilities_of_the_model_at_the_temperature() -> None:
    """The first tokens of 4000 rows of one prompt."""
    settings = RolloutSettings(Sampling(max_tokens=1, temperature=2.0), END)
    rollout = sampled("learned", settings, prompts=[[1, 2]] * 4000, width=2)
    model, params = rough("learned")
    logits_V = np.asarray(model.apply({"params": params}, jnp.array([[1, 2]])))[0, -1].astype(np.float64)
    p_V = np.exp(logits_V / 2) / np.exp(logits_V / 2).sum()
    share_V = np.bincount(rollout.tokens_BN[:, 0], minlength=V) / 4000
    assert np.all(np.abs(share_V - p_V) <= 4 * np.sqrt(p_V * (1 - p_V) / 4000) + 1e-4)  # four standard deviations
    np.testing.assert_allclose(rollout.logprobs_BN[:, 0], np.log(p_V)[rollout.tokens_BN[:, 0]], atol=1e-5)


@pytest.mark.slow
def test_logits_that_are_not_finite_end_a_response() -> None:
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), rough("learned")[1])
    rollout = program("learned")(broken, rollouts.flush_right(PROMPTS, 6, V), np.arange(6), 7)
    assert not np.asarray(rollout.finite_B).any()
    assert not np.asarray(rollout.mask_BN).any()
    assert np.isfinite(np.asarray(rollout.logprobs_BN)).all()


@pytest.mark.slow
def test_gradients_ignore_padding() -> None:
    """Other ids at the padding of prompts and responses change no bit of the gradient."""
    model, params = rough("learned")
    padded, rollout = rollouts.flush_right(PROMPTS, 6, V), sampled("learned")
    other_ids = np.where(padded.mask_BP, padded.ids_BP, 4)
    other_tokens = np.where(rollout.mask_BN, rollout.tokens_BN, 9)

    @jax.jit
    def gradient(ids_BP: Any, tokens_BN: Any) -> Any:
        prompts, response = padded._replace(ids_BP=ids_BP), rollout._replace(tokens_BN=tokens_BN)
        return jax.grad(lambda p: rollouts.response_logprobs(model, p, prompts, response, temperature=0.8).sum())(
            params
        )

    expected, found = gradient(padded.ids_BP, rollout.tokens_BN), gradient(other_ids, other_tokens)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        if "token_embedding" not in str(path):  # its gradient adds zeros in another order
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0.1


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize(("shape", "rows"), [((8, 1, 1, 1), 0), ((2, 2, 1, 2), 4)])
def test_a_mesh_divides_a_rollout(shape: tuple[int, ...], rows: int) -> None:
    """The same tokens, and log-probabilities up to float32 sums in another order."""
    model, params = rough("learned")
    settings, prompts = replace(SETTINGS, rows=rows), rollouts.flush_right([*PROMPTS, [3], [1, 7]], 6, V)
    arguments = prompts, np.arange(8), 7
    expected = jax.tree.map(np.asarray, rollouts.program(model, settings)(params, *arguments))
    mesh = jax.make_mesh(shape, axes.MESH, axis_types=(AxisType.Auto,) * 4)
    placed = jax.device_put(params, axes.shardings(params, params, mesh=mesh, table=gpt.LOGICAL_AXES))
    with axes.on(mesh, gpt.LOGICAL_AXES):
        divided = jax.tree.map(np.asarray, rollouts.program(model, settings)(placed, *arguments))
        trainer = jax.jit(partial(rollouts.response_logprobs, model, temperature=0.8))
        logprobs_BN = np.asarray(trainer(placed, prompts, divided))
    np.testing.assert_array_equal(divided.tokens_BN, expected.tokens_BN)
    np.testing.assert_array_equal(divided.mask_BN, expected.mask_BN)
    np.testing.assert_allclose(divided.logprobs_BN, expected.logprobs_BN, atol=1e-5, rtol=0)
    np.testing.assert_allclose(logprobs_BN, expected.logprobs_BN, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_eight_devices_sample_the_same() -> None:
    """The test above, in a process that has them."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    words = ["-q", "-m", "slow", "-p", "no:cacheprovider", "tests/rl/test_rollouts.py", "-k", "mesh_divides"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | flags
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"top_k": 50}, "top_k=50"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"min_p": 0.1}, "min_p=0.1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"temperature": 0}, "temperature=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"stop": ("x",)}, "stop and past_end"),
        ({"past_end": True}, "stop and past_end"),
    ],
)
def test_sampling_from_another_distribution_is_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RolloutSettings(Sampling(**named))


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, _ = rough("learned")
    long = rollouts.flush_right(PROMPTS, 25, V)
    with pytest.raises(UserError, match=r"exceed model.context=32"):
        rollouts.sample(model, None, long, jnp.arange(6), 0, settings=SETTINGS)
    padded = rollouts.flush_right(PROMPTS, 6, V)
    with pytest.raises(UserError, match="6 rows of a rollout are not divisible into chunks of 4"):
        rollouts.sample(model, None, padded, jnp.arange(6), 0, settings=replace(SETTINGS, rows=4))
    with pytest.raises(UserError, match="rows=-1"):
        replace(SETTINGS, rows=-1)
    with pytest.raises(UserError, match=r"model.family=nnlm"):
        rollouts.response_logits(rough("tiny")[0], None, padded, jnp.zeros((6, 2), jnp.int32))


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "0 tokens"), ([1] * 7, "7 tokens"), ([14], "outside 0 to 13"), ([-1], "outside")]
)
def test_prompts_that_cannot_be_read_are_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(UserError, match=f"prompt 1 .*{message}"):
        rollouts.flush_right([[1], prompt], 6, V)


def test_prompts_are_flush_right() -> None:
    ids_BP, mask_BP = rollouts.flush_right([[1, 2], [3, 4, 5]], 4, V)
    assert ids_BP.tolist() == [[0, 0, 1, 2], [0, 3, 4, 5]]
    assert mask_BP.tolist() == [[False, False, True, True], [False, True, True, True]]


def test_the_digest_is_that_of_the_tokens_alone() -> None:
    tokens_BN, mask_BN = np.array([[7, 1, 9], [2, 9, 9]]), np.array([[1, 1, 0], [1, 0, 0]])
    expected = hashlib.sha256(struct.pack("<IIIII", 2, 7, 1, 1, 2)).hexdigest()
    assert rollouts.tokens_sha256(tokens_BN, mask_BN) == expected
    wider = rollouts.tokens_sha256(np.pad(tokens_BN, ((0, 0), (0, 3))), np.pad(mask_BN, ((0, 0), (0, 3))))
    assert wider == expected
    other_mask = np.array([[1, 0, 0], [1, 1, 0]])  # 7 | 2 9: another division
    assert rollouts.tokens_sha256(tokens_BN, other_mask) != expected
    assert rollouts.tokens_sha256(tokens_BN[::-1], mask_BN[::-1]) != expected
