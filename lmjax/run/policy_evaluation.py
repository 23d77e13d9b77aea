"""Evaluation of a policy: rewards of answers to held-out prompts, health of the run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.parallel import mesh, processes
from lmjax.rl import health, measures, report
from lmjax.rl.report import Rewarded
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

    The random numbers are the same at every evaluation. The scores are `val_reward`; `val_loss`, which is minus the
    reward; `val_finished`; and with several answers to a prompt `val_reward_best`, the mean of the best of them. The
    function also says the verdict on the run so far, and writes it to rl_report.md.

    Args:
        run: The run.
        run_dir: Its directory.
        say: Shows a line of text.
    """
    parts = Episodes(run)

    def evaluate(state: State, final: bool) -> dict[str, float]:
        values_R, finished_R, answers = _answers(parts, averaged(state))
        scores = {"val_loss": 0 - float(values_R.mean()), "val_reward": float(values_R.mean())}
        scores["val_finished"] = float(finished_R.mean())
        best = None
        if parts.episode.objective.group > 1:
            best = float(values_R.reshape(-1, parts.episode.objective.group).max(axis=1).mean())
            scores["val_reward_best"] = best
        _report(run, run_dir, int(state.update), answers, best=best, say=say)
        return scores

    return evaluate


def _answers(parts: Episodes, params: Any) -> tuple[np.ndarray, np.ndarray, list[Rewarded]]:
    """Return rewards, ends and texts of answers to `objective.scored` held-out prompts."""
    run, group, samples = parts.run, parts.episode.objective.group, parts.objective.samples
    most = -(-parts.episode.objective.scored // run.config.batch.microbatch)
    rewards, finished, answered = [], [], list[Rewarded]()
    for number, rows in enumerate(samples.validation()):
        if number == most > 0:
            break
        faults.reach("evaluate.batch")
        real_R = np.repeat(rows.pop("weights_B") > 0, group)
        arrays = mesh.put_batch({name: array[None] for name, array in rows.items()}, run.mesh)
        answers = parts.sample(params, arrays, np.int32(_HELD_OUT - number))
        texts = parts.texts(answers)
        values_R = parts.scores("validation", answers, texts).values_B
        rewards.append(values_R[real_R])
        finished.append(jax.device_get(answers.rollout.finished_B)[real_R])
        prompts = [samples.row_text(rows, row // group) for row in range(len(texts))]
        triples = zip(prompts, texts, values_R.tolist(), strict=True)
        answered += [Rewarded(*triple) for triple, is_real in zip(triples, real_R, strict=True) if is_real]
    return np.concatenate(rewards), np.concatenate(finished), answered


def _report(
    run: Run,
    run_dir: Path,
    update: int,
    answers: Sequence[Rewarded],
    *,
    best: float | None,
    say: Callable[[str], None],
) -> None:
    """Say the verdict on the run so far and what needs attention; write the report."""
    path = run_dir / "metrics.jsonl"
    series = series_of(metrics.read(path) if path.is_file() else [])
    verdict = health.verdict(series, progress=update / run.plan.updates, table=measures_of(run.config))
    say(f"health: {verdict}")
    for line in [*map(str, (found for found in verdict.findings if found.status != "healthy")), *verdict.advice]:
        say(f"  {line}")
    if processes.is_main():
        write_text(run_dir / REPORT, report.text(verdict, series, answers, best=best))


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
