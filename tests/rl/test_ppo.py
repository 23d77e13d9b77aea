"""PPO: an episode moves policy and values where independent gradients point, and its state is complete."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import Config, PPOConfig
from lmjax.config.rewards import RegexConfig
from lmjax.data.store import preparation
from lmjax.models.scalar import Scalar
from lmjax.pytrees import digest
from lmjax.rl import rollouts
from lmjax.run import build, episodes, feed
from lmjax.system import faults
from tests import small

HALF = RegexConfig(pattern="[a-mA-M]")


def config(corpus: Path, **objective: Any) -> Config:
    """Eight prompts with two answers each."""
    settings = {"epochs": 1, "minibatches": 1, "kl_coefficient": 0.0, **objective}
    return small.policy(small.config("chat", corpus), PPOConfig(group=2, answer_tokens=8, reward=HALF, **settings))


def first_episode(config: Config) -> tuple[build.Run, Any, Any, dict[str, Any]]:
    """The run, its initial state on the host, the state after one episode, and the metrics."""
    run = build.build(config, preparation.prepare(config.data))
    state = build.init(run)
    before = jax.tree.map(jnp.copy, state)
    step = episodes.make_step(run, before.params)
    after, metrics = step(state, [next(iter(feed.device_batches(run, 0, 0))).batch])
    return run, before, after, {name: np.asarray(value).item() for name, value in metrics.items()}


@pytest.mark.slow
def test_the_value_model_is_a_copy_of_the_policy_with_values_of_zero(corpus: Path) -> None:
    run, before, after, metrics = first_episode(config(corpus))
    values = before.carry["values"]
    shared = set(values) - {"score", "calibration"}
    assert shared
    for name in shared:
        assert digest(values[name]) == digest(before.params[name])
    ids_BT = np.arange(12, dtype=np.int32).reshape(2, 6)
    scores = Scalar(run.model.config, zero=True).apply({"params": values}, ids_BT, method=Scalar.at_every_place)
    np.testing.assert_array_equal(scores, 0)
    assert abs(metrics["explained_variance"]) <= 1e-6
    assert digest(after.carry["values"]) != digest(values)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_whitened_returns(corpus: Path) -> None:
    """Values of 0, no penalty and lambda 1: the advantage of each token is the whitened reward of its answer.

    The mean and the variance are over tokens; float32 sums, 1e-4.
    """
    run, before, _, metrics = first_episode(config(corpus, decay=1.0))
    parts, batch = episodes.Episodes(run), next(iter(feed.device_batches(run, 0, 0))).batch
    answers = parts.sample(before.params, batch["arrays"], jnp.int32(0))
    rewards_R = parts.scores("train", answers, parts.texts(answers)).values_B
    mask_RN = np.asarray(answers.rollout.mask_BN)
    returns_RN = rewards_R[:, None] * mask_RN
    real = returns_RN[mask_RN]
    advantages_RN = np.where(mask_RN, (returns_RN - real.mean()) / np.sqrt(real.var() + 1e-8), 0)

    def loss(params: Any) -> Any:
        logits = rollouts.response_logits(run.model, params, answers.prompts, answers.rollout.tokens_BN)
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
        chosen = jnp.take_along_axis(logprobs, answers.rollout.tokens_BN[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * advantages_RN) / mask_RN.sum()

    gradients = jax.jit(jax.grad(loss))(before.params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradients)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["value_loss"] == pytest.approx(0.5 * float(np.mean(real**2)), rel=1e-5)


@pytest.mark.slow
def test_a_suspect_episode_leaves_values_moments_and_coefficient(corpus: Path) -> None:
    settings = config(corpus, kl_coefficient=0.1, kl_target=1.0)
    with faults.armed("rewards=nan@1"):
        _, before, after, metrics = first_episode(settings)
    assert metrics["skipped"] == 1
    assert digest(after) == digest(before)


@pytest.mark.slow
def test_the_coefficient_adapts_and_is_a_part_of_the_state(corpus: Path) -> None:
    """The first KL is 0: the error is limited to -0.2, for 16 of 100 answers."""
    settings = config(corpus, kl_coefficient=0.1, kl_target=1.0, kl_horizon=100.0)
    *_, after, metrics = first_episode(settings)
    assert metrics["kl_coefficient"] == pytest.approx(0.1)
    assert float(after.carry["kl_coefficient"]) == pytest.approx(0.1 * (1 - 0.2 * 16 / 100), rel=1e-6)
    *_, fixed, _ = first_episode(replace(settings, objective=replace(settings.objective, kl_target=0.0)))
    assert float(fixed.carry["kl_coefficient"]) == np.float32(0.1)


@pytest.mark.slow
def test_the_value_model_follows_parameters_that_replace_the_initial_ones(corpus: Path) -> None:
    """As with `init_from`."""
    settings = config(corpus)
    run = build.build(settings, preparation.prepare(settings.data))
    state = build.init(run)
    assert digest(build.with_critic(run, state)) == digest(state)
    params = jax.tree.map(lambda leaf: leaf + 1, state.params)
    values = build.with_critic(run, state.replace(params=params)).carry["values"]
    assert all(digest(values[name]) == digest(params[name]) for name in set(values) - {"score", "calibration"})
    np.testing.assert_array_equal(values["score"]["kernel"], 0)
