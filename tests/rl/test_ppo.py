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
def test_the_steps_are_those_of_a_plain_loop(corpus: Path) -> None:
    """Three steps over all answers: ratios, value clip, clipping and rate of each tree, one step of the average.

    A large epsilon of Adam keeps rounding from deciding signs; float32, 1e-6.
    """
    base = config(corpus, epochs=3, decay=0.95, kl_coefficient=0.1, value_rate=3.0, value_clip=0.001)
    optimizer = replace(base.optimizer, epsilon=1e-2, clip=0.05, weight_decay=0.1, ema=0.75, ema_warmup=False)
    settings = replace(base, optimizer=optimizer)
    run, before, after, metrics = first_episode(settings)
    parts, batch = episodes.Episodes(run), next(iter(feed.device_batches(run, 0, 0))).batch
    answers = parts.sample(before.params, batch["arrays"], jnp.int32(0))
    rewards_R = parts.scores("train", answers, parts.texts(answers)).values_B
    tokens_RN, mask_RN = answers.rollout.tokens_BN, np.asarray(answers.rollout.mask_BN)
    width = answers.prompts.ids_BP.shape[1]

    def logprobs(params: Any) -> Any:
        logits = rollouts.response_logits(run.model, params, answers.prompts, tokens_RN).astype(jnp.float32)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_RN[..., None], axis=-1)[..., 0]

    def values(params: Any) -> Any:
        texts = rollouts.sequences(answers.prompts, tokens_RN)
        scalar: Any = Scalar(run.model.config, zero=True)
        return scalar.apply({"params": params}, **texts, method=Scalar.at_every_place)[:, width - 1 : -1]

    old_RN, old_values_RN = logprobs(before.params), values(before.carry["values"])
    advantages_RN = np.zeros(mask_RN.shape)  # values of 0, and no penalty, since the reference is the policy
    for row, reward in enumerate(rewards_R):
        count = int(mask_RN[row].sum())
        advantages_RN[row, :count] = reward * 0.95 ** np.arange(count)[::-1]
    returns_RN, real = advantages_RN.copy(), advantages_RN[mask_RN]
    advantages_RN = np.where(mask_RN, (advantages_RN - real.mean()) / np.sqrt(real.var() + 1e-8), 0)

    def loss(trees: Any) -> Any:
        ratio_RN = jnp.exp(logprobs(trees["policy"]) - old_RN)
        terms_RN = jnp.minimum(ratio_RN * advantages_RN, jnp.clip(ratio_RN, 0.8, 1.2) * advantages_RN)
        now_RN = values(trees["values"])
        near_RN = old_values_RN + jnp.clip(now_RN - old_values_RN, -0.001, 0.001)
        errors_RN = jnp.maximum((now_RN - returns_RN) ** 2, (near_RN - returns_RN) ** 2)
        return jnp.sum(jnp.where(mask_RN, 0.5 * errors_RN - terms_RN, 0)) / mask_RN.sum()

    gradient = jax.jit(jax.grad(loss))
    trees: dict[str, Any] = {"policy": before.params, "values": before.carry["values"]}
    moments = {name: run.optimizer.init(tree) for name, tree in trees.items()}
    for _ in range(3):
        gradients = gradient(trees)
        for name, rate in (("policy", 1.0), ("values", 3.0)):
            direction, moments[name] = run.optimizer.update(gradients[name], moments[name], trees[name])
            trees[name] = jax.tree.map(lambda p, d, by=rate * run.rates[0]: p - by * d, trees[name], direction)
    average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.ema, trees["policy"])
    found = (after.params, after.carry["values"], after.ema)
    for tree, expected in zip(found, (trees["policy"], trees["values"], average), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), tree, expected)
    assert metrics["grad_norm"] > 0.05  # the clip has an effect
    assert 0 < metrics["value_clip_fraction"] < 1


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
