"""Evaluation of a policy: rewards of answers to held-out prompts, health of the run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config import Config
from lmjax.parallel import mesh, processes
from lmjax.rl import health, measures, report, truth
from lmjax.rl.health import Verdict
from lmjax.rl.report import Rewarded
from lmjax.run import policy_scores
from lmjax.run.build import Run, averaged
from lmjax.run.episodes import Episodes, measures_of
from lmjax.system import faults
from lmjax.system.files import write_text
from lmjax.training import metrics
from lmjax.training.state import State

REPORT = "rl_report.md"
_HELD_OUT = 2**31 - 1  # number of the update from which the keys of an evaluation are derived


def evaluator(run: Run, run_dir: Path, *, say: Callable[[str], None]) -> Callable[[State, bool], dict[str, float]]:
    """Return a function (state, final) that rewards sampled answers to held-out prompts.

    The random numbers are the same at every evaluation. The scores are `val_reward`; `val_reward_error`, its standard
    error over the prompts; `val_loss`, which is minus the reward; `val_finished`; `val_true_reward`, where it is known;
    and with several answers to a prompt `val_reward_best`, the mean of the best of them. Before the first update and at
    the end, `val_greedy_reward` is the verifiable reward of greedy answers to the same prompts. The function also says
    the verdict on the run so far, and writes it to rl_report.md.

    Args:
        run: The run.
        run_dir: Its directory.
        say: Shows a line of text.
    """
    parts = Episodes(run)

    def evaluate(state: State, final: bool) -> dict[str, float]:
        values_R, finished_R, answers = _answers(parts, averaged(state))
        scores = {"val_loss": 0 - float(values_R.mean()), "val_reward": float(values_R.mean())}
        group = parts.episode.objective.group
        scores["val_reward_error"] = policy_scores.standard_error(values_R.reshape(-1, group).mean(axis=1))
        scores["val_finished"] = float(finished_R.mean())
        if final or not int(state.update):
            scores |= policy_scores.greedy(parts, state, prompts=len(values_R) // group)
        best = None
        if group > 1:
            best = float(values_R.reshape(-1, group).max(axis=1).mean())
            scores["val_reward_best"] = best
        truths = [answer.truth for answer in answers if answer.truth is not None]
        if truths:
            scores["val_true_reward"] = float(np.mean(truths))
        _report(run, run_dir, {"update": int(state.update), **scores}, answers, best=best, say=say)
        return scores

    return evaluate


def _answers(parts: Episodes, params: Any) -> tuple[np.ndarray, np.ndarray, list[Rewarded]]:
    """Return rewards, ends and texts of answers to `objective.scored` held-out prompts."""
    run, group, samples = parts.run, parts.episode.objective.group, parts.objective.samples
    true_reward = truth.known(run.config.data)
    most = parts.episode.objective.scored
    rewards, finished, answered = [], [], list[Rewarded]()
    for number, rows in enumerate(samples.validation()):
        place_B = number * run.config.batch.microbatch + np.arange(run.config.batch.microbatch)
        if place_B[0] >= most > 0:
            break
        faults.reach("evaluate.batch")
        is_scored_B = (rows.pop("weights_B") > 0) & ((place_B < most) | (most == 0))
        real_R = np.repeat(is_scored_B, group)
        arrays = mesh.put_batch({name: array[None] for name, array in rows.items()}, run.mesh)
        answers = parts.sample(params, arrays, np.int32(_HELD_OUT - number))
        texts = parts.texts(answers)
        values_R = parts.scores("validation", answers, texts).values_B
        rewards.append(values_R[real_R])
        finished.append(jax.device_get(answers.rollout.finished_B)[real_R])
        prompts = [samples.row_text(rows, row // group) for row in range(len(texts))]
        truths = [true_reward and true_reward(*pair) for pair in zip(prompts, texts, strict=True)]
        columns = zip(prompts, texts, values_R.tolist(), truths, strict=True)
        answered += [Rewarded(*values) for values, is_real in zip(columns, real_R, strict=True) if is_real]
    return np.concatenate(rewards), np.concatenate(finished), answered


def _report(
    run: Run,
    run_dir: Path,
    evaluation: Mapping[str, Any],
    answers: Sequence[Rewarded],
    *,
    best: float | None,
    say: Callable[[str], None],
) -> None:
    """Say the verdict on the run so far and what needs attention; write the report.

    `evaluation`: the record of the present evaluation, which metrics.jsonl does not have yet.
    """
    path = run_dir / "metrics.jsonl"
    records = metrics.read(path) if path.is_file() else []
    verdict = verdict_of([*records, evaluation], run.config, progress=evaluation["update"] / run.plan.updates)
    say(f"health: {verdict}")
    for line in [*map(str, (found for found in verdict.findings if found.status != "healthy")), *verdict.advice]:
        say(f"  {line}")
    if processes.is_main():
        write_text(run_dir / REPORT, report.text(verdict, series_of(records), answers, best=best))


def verdict_of(records: Sequence[Mapping[str, Any]], config: Config, *, progress: float = 1.0) -> Verdict:
    """Return the verdict on a run from records of metrics.jsonl.

    `progress`: share of the run that is done.
    """
    table = measures_of(config)
    return health.verdict(series_of(records), probes=probes_of(records), progress=progress, table=table)


def series_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the series of `lmjax.rl.health` from records of metrics.jsonl; null is NaN."""
    updates = [record for record in records if "reward" in record]
    names = {"update": "update", "reward": "reward", "gradient_norm": "grad_norm"}
    names |= {name: name for name in measures.POLICY if name not in names}
    return {
        name: [float("nan") if record[key] is None else float(record[key]) for record in updates]
        for name, key in names.items()
        if updates and all(key in record for record in updates)
    }


def probes_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the rewards of evaluations and, as probes, the true ones where they are known."""
    names = {"update": "update", "reward": "val_reward", "probe": "val_true_reward"}
    evaluations = [record for record in records if all(record.get(key) is not None for key in names.values())]
    return {name: [float(record[key]) for record in evaluations] for name, key in names.items()}
