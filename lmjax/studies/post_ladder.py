"""The ladder of post-training: ways to raise a learned reward, compared by the truth.

A model is fine-tuned on generated reviews, whose true reward is known. A reward model learns from noisy preferences.
PPO with and without a KL penalty, DPO, and the choice of the best of n answers then raise its score. None of them sees
the true reward. Each stage is a run of its own.

Shapes: P prompts, G answers to each of them, R = P G.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.config import BatchConfig, Config, PPOConfig, UserError, codec, presets
from lmjax.config.checks import check
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.data.store.preparation import prepare
from lmjax.display.console import Console
from lmjax.parallel import mesh
from lmjax.rl import truth
from lmjax.rl.episode import Answers
from lmjax.run import build, identity, policy_evaluation, saved, session, transfer
from lmjax.run.episodes import Episodes
from lmjax.studies import ladder
from lmjax.studies.post_ladder_report import Curve, Point, Results, write_results
from lmjax.training import metrics

TUNED, REWARD, DIRECT, PENALIZED, FREE = "reviews", "reward", "dpo", "ppo", "ppo_free"
TITLES = {
    TUNED: "fine-tuned",
    PENALIZED: "PPO with KL penalty",
    FREE: "PPO without penalty",
    DIRECT: "DPO",
}
GROUP = 16  # answers to a prompt
BATCHES = 2  # of prompts that are answered
_LINKS = ("init_from", "objective.reward.run")
_STREAM = 2**30  # number of the update from which the keys of the answers are derived
_REPORTED = ("val_accuracy", "val_truth_accuracy", "val_bayes_accuracy", "val_slope", "val_truth_correlation")


def show(out: Path, *, changes: Sequence[str]) -> int:
    """Climb the ladder of the presets, and return the exit status.

    `changes` (`key.path=value`) apply to each stage.

    Raises:
        UserError: A change names a stage that the ladder sets itself, or any error of `climb`.
    """
    for change in changes:
        if (key := change.partition("=")[0].strip()) in _LINKS:
            raise UserError(f"{key}: the ladder sets it, since its stages build on each other; leave it out")
    return climb({name: _changed(name, config, changes) for name, config in stages().items()}, out)


def _changed(name: str, config: Config, changes: Sequence[str]) -> Config:
    """Apply changes to a stage; an error names the stage."""
    try:
        return codec.apply_overrides(config, changes)
    except UserError as error:
        raise UserError(f"{name}: {error} (changes apply to each of {', '.join(stages())})") from None


def stages() -> dict[str, Config]:
    """Return the stages of the presets."""
    ppo = presets.load("ppo")
    assert isinstance(ppo.objective, PPOConfig)
    free = replace(ppo, name=FREE, objective=replace(ppo.objective, kl_coefficient=0.0))
    return {
        TUNED: presets.load(TUNED),
        REWARD: presets.load(REWARD),
        PENALIZED: ppo,
        FREE: free,
        DIRECT: presets.load(DIRECT),
    }


def climb(stages: Mapping[str, Config], out: Path) -> int:
    """Train each stage in `out`/NAME, and write the table and the picture to `out`.

    Stages that an earlier call finished are not trained again; a stage that it began is resumed.

    Args:
        stages: Configuration of each stage; `reviews`, `reward` and `ppo` are needed. Their `init_from` and
            `objective.reward.run` become those of the ladder.
        out: Folder of the ladder.

    Returns:
        0: finished, or stopped by a signal; 3: a run gave up.

    Raises:
        UserError: A stage in `out` has another configuration, a configuration is invalid, or its data have no known
            true reward.
    """
    linked = {name: _linked(config, name, out) for name, config in stages.items()}
    for config in linked.values():
        check(config)
    _true_reward(linked[PENALIZED])
    for name, config in linked.items():
        complete = _complete(config)
        ladder.check_same(complete, out / name)
        status = ladder.train_rung(complete, out / name)
        if status or not ladder.is_finished(out / name):
            print(f"the ladder stops at {name}; run the same command again to continue")
            return status
    with Console() as console, console.phase("measuring"):
        results = measure(out, [name for name in TITLES if name in linked])
    write_results(out, results)
    return session.FINISHED


def _linked(config: Config, name: str, out: Path) -> Config:
    """Let a stage begin with the results of the ladder's earlier stages."""
    if name == TUNED:
        return config
    config = replace(config, init_from=str(out / TUNED))
    if not isinstance(config.objective, PPOConfig):
        return config
    return replace(config, objective=replace(config.objective, reward=LearnedRewardConfig(run=str(out / REWARD))))


def _true_reward(config: Config) -> truth.Truth:
    true_reward = truth.known(config.data)
    if true_reward is None:
        raise UserError(
            "the ladder of post-training needs data whose true reward is known; leave data.files and data.source out"
        )
    return true_reward


def _complete(config: Config) -> Config:
    """Fill in what the earlier stages determine, as a run does."""
    config = transfer.adopt(identity.absolute(config))
    size = config.model.vocab_size or prepare(config.data).tokenizer.vocab_size
    return build.resolve(config, size)


# ---- Measuring ------------------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """Answers of a policy to the same prompts, with the same random keys."""

    #: Scores of the reward model (P, G).
    rewards_PG: np.ndarray
    #: True rewards (P, G).
    truths_PG: np.ndarray
    #: Exact KL divergence of the policy to the fine-tuned model (P, G), summed over the tokens of an answer.
    kls_PG: np.ndarray
    #: Tokens of the answers (P, G).
    lengths_PG: np.ndarray
    texts: list[str]


def measure(out: Path, names: Sequence[str]) -> Results:
    """Measure the policies of a ladder, and the best of n answers of the fine-tuned one."""
    parts, reference = _measuring(out), saved.load(out / TUNED).params
    points, shown, curves = list[Point](), list[tuple[str, str]](), list[Curve]()
    for name in names:
        sampled = sample(parts, saved.load(out / name).params, reference)
        seconds = float(saved.read_summary(out / name).get("seconds") or 0)
        points.append(_point(TITLES[name], sampled, seconds))
        if name in (PENALIZED, FREE):
            curves.append(_curve(out / name, points[-1]))
        shown.append((TITLES[name], sampled.texts[0]))
        if name == TUNED:
            points += [best_of(sampled, count) for count in (2, 4, 8, GROUP)]
    verdicts = {
        TITLES[name]: str(policy_evaluation.verdict_of(_records(out / name), saved.saved_config(out / name)))
        for name in (PENALIZED, FREE)
        if name in names
    }
    summary = saved.read_summary(out / REWARD)
    reward_model = {name.removeprefix("val_"): float(summary[name]) for name in _REPORTED if summary.get(name)}
    return Results(points, curves, reward_model, verdicts, shown)


def _measuring(out: Path) -> Episodes:
    """Return episodes of the ladder with `GROUP` answers to a prompt."""
    config = presets.saved(out / PENALIZED / "config.json")
    assert isinstance(config.objective, PPOConfig)
    objective, rows = replace(config.objective, group=GROUP, minibatches=1), config.batch.microbatch
    batch = BatchConfig(tokens=((0, rows * GROUP * getattr(config.model, "context", 0)),), microbatch=rows)
    return Episodes(build.build(replace(config, objective=objective, batch=batch), prepare(config.data)))


def sample(parts: Episodes, params: Any, reference: Any) -> Sampled:
    """Sample and score answers to held-out prompts.

    Args:
        parts: The episodes.
        params: Parameters of the policy.
        reference: Parameters of the fine-tuned model.
    """
    true_reward, samples = _true_reward(parts.run.config), parts.objective.samples

    @jax.jit
    def exact_kl(params: Any, reference: Any, answers: Answers) -> jax.Array:
        return parts.episode.measure(params, reference, answers, 1).kl.sum(axis=1)

    columns: list[np.ndarray] = []
    texts = list[str]()
    for number, rows in zip(range(BATCHES), samples.validation(), strict=False):
        is_real_R = np.repeat(rows.pop("weights_B") > 0, GROUP)
        arrays = mesh.put_batch({name: array[None] for name, array in rows.items()}, parts.run.mesh)
        answers = parts.sample(params, arrays, np.int32(_STREAM + number))
        answered = parts.texts(answers)
        prompts = [samples.row_text(rows, row // GROUP) for row in range(len(answered))]
        with build.on_mesh(parts.run):
            kls_R = np.asarray(exact_kl(params, reference, answers))
        values_R = parts.scores("validation", answers, answered).values_B
        truths_R = [true_reward(prompt, text) for prompt, text in zip(prompts, answered, strict=True)]
        lengths_R = np.asarray(answers.rollout.mask_BN).sum(axis=1)
        columns.append(np.stack([values_R, truths_R, kls_R, lengths_R])[:, is_real_R])
        texts += [text for text, is_real in zip(answered, is_real_R, strict=True) if is_real]
    values_PG, truths_PG, kls_PG, lengths_PG = np.concatenate(columns, axis=1).reshape(len(columns[0]), -1, GROUP)
    return Sampled(values_PG, truths_PG, kls_PG, lengths_PG, texts)


def _point(name: str, sampled: Sampled, seconds: float) -> Point:
    reward, true_reward, kl, length = (float(values_PG.mean()) for values_PG in sampled[:4])
    distinct = len(set(sampled.texts)) / len(sampled.texts)
    return Point(name, reward, true_reward, kl, length, distinct=distinct, seconds=seconds)


def best_of(sampled: Sampled, count: int) -> Point:
    """Return the result of choosing the answer with the highest score of `count`.

    The KL divergence is log n - (n - 1) / n, that of the best of n answers if all scores differ.
    """
    shape = (-1, count)  # each group gives G / n independent choices
    best = sampled.rewards_PG.reshape(shape).argmax(axis=1)[:, None]
    reward, true_reward, length = (
        float(np.take_along_axis(values_PG.reshape(shape), best, axis=1).mean())
        for values_PG in (sampled.rewards_PG, sampled.truths_PG, sampled.lengths_PG)
    )
    texts = np.asarray(sampled.texts, object).reshape(shape)
    chosen = np.take_along_axis(texts, best, axis=1).ravel().tolist()
    kl = log(count) - (count - 1) / count
    return Point(
        f"best of {count}", reward, true_reward, kl, length, distinct=len(set(chosen)) / len(chosen), seconds=0
    )


def _curve(run_dir: Path, last: Point) -> Curve:
    """Return KL divergence, score and true reward of a run at its evaluations and its end.

    The divergence after an update is that of the answers of the next one.
    """
    records = _records(run_dir)
    kls = {record["update"] - 1: record["kl"] for record in records if record.get("kl") is not None}
    probes = policy_evaluation.probes_of(records)
    columns = zip(probes["update"], probes["reward"], probes["probe"], strict=True)
    rows = [(kls[update], reward, probe) for update, reward, probe in columns if update in kls]
    return Curve(last.name, [*rows, (last.kl, last.reward, last.truth)])


def _records(run_dir: Path) -> Sequence[Mapping[str, Any]]:
    return metrics.read(run_dir / "metrics.jsonl")
