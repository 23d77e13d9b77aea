"""Episodes: pure, equal in any division, resumed with the same answers, and stopped by their canaries."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import Config, GRPOConfig, PPOConfig, UserError
from lmjax.config.errors import RunError
from lmjax.config.rewards import ExactMatchConfig, NumberConfig, RegexConfig
from lmjax.data.store import preparation
from lmjax.diagnose import audit
from lmjax.journal import journal
from lmjax.journal.history import TRANSIENT
from lmjax.pytrees import digest
from lmjax.rl import estimates, rewards, rollouts
from lmjax.rl.episode import Episode
from lmjax.run import build, episodes, feed, launch
from lmjax.run.resume import resume
from lmjax.system import faults
from lmjax.training.checkpoint import CheckpointError
from tests import small

HALF = RegexConfig(pattern="[a-mA-M]")  # what an untrained model writes now and then


def config(corpus: Path, **objective: Any) -> Config:
    """Four updates of eight prompts with two answers each, float32, a save every two."""
    base = small.policy(small.config("chat", corpus), GRPOConfig(group=2, answer_tokens=8, reward=HALF, **objective))
    return replace(
        base,
        train=replace(base.train, updates=4, evaluate_every=0),
        checkpoint=replace(base.checkpoint, every=2),
    )


def first_episode(config: Config) -> tuple[build.Run, Any, Any, dict[str, Any]]:
    """The run, its initial parameters, the state after one episode, and the metrics."""
    run = build.build(config, preparation.prepare(config.data))
    state = build.init(run)
    params = jax.tree.map(jnp.copy, state.params)
    fed = next(iter(feed.device_batches(run, 0, 0)))
    step = episodes.make_step(run, params)
    after, metrics = step(state, [fed.batch])
    return run, params, after, {name: np.asarray(value).item() for name, value in metrics.items()}


def test_a_reward_that_cannot_be_computed_is_refused_before_a_run_begins(corpus: Path, tmp_path: Path) -> None:
    for reward, message in (
        (RegexConfig(pattern="("), "not a regular expression"),
        (NumberConfig(), r"conversation \d+ for train: the column 'answer' must hold a number"),
        (ExactMatchConfig(column="label"), "needs the column 'label', which the row lacks .* it has: prompt, answer"),
    ):
        base = config(corpus)
        settings = replace(base, objective=GRPOConfig(group=2, answer_tokens=8, reward=reward))
        with pytest.raises(UserError, match=message):
            launch.start(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()


# ---- An episode -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_episode_is_pure_and_its_canaries_hold(corpus: Path) -> None:
    """float32: one step of log p is 1e-6, and the sampler is another program."""
    settings = config(corpus, epochs=2, minibatches=2, kl_coefficient=0.1)
    *_, first, metrics = first_episode(settings)
    *_, second, again = first_episode(settings)
    assert metrics == again
    assert digest(first) == digest(second)
    assert metrics["ratio_error"] <= 1e-6
    assert metrics["first_clip_fraction"] == 0
    assert metrics["first_approximate_kl"] <= 1e-10
    assert metrics["sampler_difference"] <= 1e-4
    assert 0 < metrics["reward"] < 1
    assert metrics["loss"] == -metrics["reward"]
    assert abs(metrics["exact_kl"]) <= 1e-6  # the reference is the policy itself


@pytest.mark.slow
def test_the_gradient_is_that_of_reinforce_with_a_baseline(corpus: Path) -> None:
    """With one step the ratio is 1: the gradient of -sum A log p / (rows * width); float32 sums, 1e-4."""
    settings = config(corpus)
    run, params, _, metrics = first_episode(settings)
    parts = episodes.Episodes(run)
    fed = next(iter(feed.device_batches(run, 0, 0)))
    answers = parts.sample(params, fed.batch["arrays"], jnp.int32(0))
    rewards_R = parts.scores("train", answers, parts.texts(answers)).values_B
    advantages_R = (rewards_R.reshape(-1, 2) - rewards_R.reshape(-1, 2).mean(1, keepdims=True)).ravel()

    def loss(params: Any) -> Any:
        logits = rollouts.response_logits(run.model, params, answers.prompts, answers.rollout.tokens_BN)
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
        chosen = jnp.take_along_axis(logprobs, answers.rollout.tokens_BN[..., None], axis=-1)[..., 0]
        terms = jnp.where(answers.rollout.mask_BN, chosen, 0) * advantages_R[:, None]
        return -jnp.sum(terms) / (len(rewards_R) * 8)

    gradients = jax.jit(jax.grad(loss))(params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradients)))
    assert norm > 0
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_microbatches_change_no_answer(corpus: Path) -> None:
    """float32 sums in another order: 1e-4 of the gradient."""
    settings = config(corpus)
    *_, whole = first_episode(replace(settings, batch=replace(settings.batch, microbatch=8)))
    *_, parts = first_episode(replace(settings, batch=replace(settings.batch, microbatch=2)))
    assert whole["tokens_sha256"] == parts["tokens_sha256"]
    assert whole["reward"] == parts["reward"]
    assert whole["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_rewards_that_are_no_numbers_change_nothing(corpus: Path) -> None:
    settings = config(corpus)
    with faults.armed("rewards=nan@1"):
        run, params, after, metrics = first_episode(settings)
    assert (metrics["suspect"], metrics["hard"], metrics["skipped"]) == (True, True, 1)
    assert digest(after) == digest(build.init(run))
    assert digest(after.params) == digest(params)


@pytest.mark.slow
def test_learning_is_compiled_without_data(corpus: Path) -> None:
    """Its arguments hold the policy with two moments, the reference, and little else."""
    run = build.without_data(config(corpus))
    sizes = episodes.lower_learning(run).compile().memory_analysis()
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state.params))
    assert 4 * parameters <= sizes.argument_size_in_bytes <= 4 * parameters + 20_000


def test_a_reward_function_that_fails_for_most_answers_ends_the_run() -> None:
    """With half of them it is counted: the others have rewards."""

    def reward(text: str, row: Any) -> float:
        if text == "bad":
            raise rewards.Failed("the reward 'mine' raised KeyError: 'answer'")
        return 1.0

    samples = SimpleNamespace(columns=lambda side, record: {})
    parts = episodes.Episodes(cast("build.Run", None))
    vars(parts).update(learned_scores=None, reward=reward, objective=SimpleNamespace(samples=samples))
    answers: Any = SimpleNamespace(record_R=np.arange(4))
    found = parts.scores("train", answers, ["bad", "good", "bad", "good"])
    assert (found.values_B.tolist(), found.failed) == ([0, 1, 0, 1], 2)
    with pytest.raises(UserError, match=r"3 of 4 answers have no reward: the reward 'mine' raised KeyError: 'answer'"):
        parts.scores("validation", answers, ["bad", "bad", "bad", "good"])


# ---- Canaries ------------------------------------------------------------------------------------------------------


def test_a_canary_stops_the_run_and_what_is_not_finite_does_not(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU multiplies float32 with 10 bits of the mantissa: sampler and trainer differ by a few thousandths."""
    exact, rounded = (
        replace(small.config("chat", corpus), model=replace(small.MODELS["chat"], dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    healthy = {"ratio_error": 0.0, "first_clip_fraction": 0.0, "exact_kl": 0.0, "sampler_difference": 1e-6}
    episodes.check_canaries(healthy, exact, 3)
    episodes.check_canaries({**healthy, "ratio_error": float("nan")}, exact, 3)
    episodes.check_canaries({**healthy, "ratio_error": 1e-3}, rounded, 3)
    for name, value in (
        ("ratio_error", 1e-5),
        ("first_approximate_kl", 1e-8),
        ("exact_kl", -1e-3),
        ("sampler_difference", 0.01),
    ):
        with pytest.raises(RunError, match=r"update 3: .*possible is"):
            episodes.check_canaries({**healthy, name: value}, exact, 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    episodes.check_canaries({**healthy, "ratio_error": 2e-6, "sampler_difference": 2e-3}, exact, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "fault", "message"),
    [
        (Episode, "_logprobs", "distance of the first minibatch's mean ratio from 1"),
        (estimates, "exact_kl", "exact KL divergence of a token"),
    ],
)
def test_a_wrong_program_is_stopped_by_its_canary(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, place: Any, fault: str, message: str
) -> None:
    """Log-probabilities of another temperature than the sampler's, and a divergence that is too small."""
    right = getattr(place, fault)
    change = {"_logprobs": lambda x: 1.01 * x, "exact_kl": lambda x: x - 1e-3}[fault]
    monkeypatch.setattr(place, fault, lambda *args, **named: change(right(*args, **named)))
    with pytest.raises(RunError, match=f"update 1: .*{message}"):
        first_episode(config(corpus))


# ---- A run ----------------------------------------------------------------------------------------------------------


def tokens_of(run_dir: Path) -> dict[int, str]:
    """The hash of the answers of each update, the last one if it was repeated."""
    found = {}
    for record in journal.read(run_dir / "journal.jsonl"):
        applied = record.get("applied", {"first": 0, "tokens": []})
        found |= dict(enumerate(applied["tokens"], applied["first"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "fault", "message"),
    [
        ("grpo", "update=error", "error"),
        ("grpo", "episode.sampled=error", "error"),
        ("grpo", "logprobs=times:0.9", "log p of sampler minus trainer"),
        ("ppo", "episode.rewarded=error", "error"),
    ],
)
def test_a_run_that_ends_in_an_episode_is_resumed_with_the_same_answers(
    corpus: Path, tmp_path: Path, family: str, fault: str, message: str
) -> None:
    settings = config(corpus, epochs=2, minibatches=2)
    if family == "ppo":
        ppo = PPOConfig(group=2, answer_tokens=8, reward=HALF, kl_target=1.0)
        settings = replace(settings, objective=ppo)
    assert launch.start(settings, tmp_path / "whole") == 0
    with faults.armed(f"{fault}@4"), pytest.raises((OSError, RunError), match=message):
        launch.start(settings, tmp_path / "stopped")
    assert resume(settings, tmp_path / "stopped") == 0
    whole, stopped = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped"))
    assert whole["digest"] == stopped["digest"]
    assert list(tokens_of(tmp_path / "whole")) == [1, 2, 3, 4]
    assert tokens_of(tmp_path / "whole") == tokens_of(tmp_path / "stopped")
    assert audit.show(tmp_path / "stopped", replay=(1, 4)) == 0


@pytest.mark.slow
def test_a_leap_of_the_reward_is_rolled_back_and_replayed(corpus: Path, tmp_path: Path) -> None:
    """Each fault is spent when its update is tried again, so that four suspects among seven batches fire the rule."""
    settings = config(corpus)
    settings = replace(settings, train=replace(settings.train, updates=20))
    assert launch.start(settings, tmp_path / "clean") == 0
    with faults.armed("rewards=times:1e6@14-17"):
        assert launch.start(settings, tmp_path / "run") == 0
    records = journal.read(tmp_path / "run" / "journal.jsonl")
    suspects = [record for record in records if record["event"] == "suspect"]
    assert [record["update"] + 1 for record in suspects] == [14, 15, 16, 17]
    assert all(record["reason"] == "loss" and record["hard"] for record in suspects)
    assert all(float.fromhex(record["loss"]) < -1e5 for record in suspects)
    (rollback,) = (record for record in records if record["event"] == "rollback")
    assert (rollback["kind"], rollback["target"]) == ("replay", 8)  # healthy, and 4 updates before the onset
    assert TRANSIENT in [record.get("reason") for record in records]
    clean, again = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("clean", "run"))
    assert clean["digest"] == again["digest"]
    assert tokens_of(tmp_path / "clean") == tokens_of(tmp_path / "run")
    assert audit.show(tmp_path / "run") == 0
    text = (tmp_path / "run" / "spikes" / "17.md").read_text()
    assert "**The same answers have other rewards now**" in text
    assert "Could not be determined" not in text


@pytest.mark.slow
def test_the_reference_is_the_model_before_the_first_update(corpus: Path, tmp_path: Path) -> None:
    settings = config(corpus)
    assert launch.start(settings, tmp_path / "run") == 0
    run = build.build(settings, preparation.prepare(settings.data))
    reference = episodes.reference_of(run, tmp_path / "run" / "checkpoints", None)
    assert digest(reference) == digest(build.init(run).params)
    with pytest.raises(CheckpointError, match=r"is missing: its parameters are the reference"):
        episodes.reference_of(run, tmp_path / "nowhere", None)
