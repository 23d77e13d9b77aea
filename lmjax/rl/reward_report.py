"""The report of a reward model: measures with verdicts, probes, best and worst answers.

Shapes: N pairs, 2 answers (the preferred one first); R sampled answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config.errors import printable
from lmjax.data.batches import preferences
from lmjax.data.sources import reviews
from lmjax.objectives import reward_measures
from lmjax.objectives.reward import RewardModel
from lmjax.rl import health
from lmjax.rl.health import Finding
from lmjax.rl.measures import REWARD_MODEL, REWARD_MODEL_BFLOAT16, is_exact
from lmjax.rl.reward_probes import Probe, probe
from lmjax.system.files import write_text

NAME, PICTURE = "reward_report.md", "reward_report.png"  # in the directory of a run
SHOWN = 3  # prompts whose best and worst answer is shown
HARM = 0.25  # mean loss of true reward from which a change makes answers worse


@dataclass(frozen=True)
class Sampled:
    """An answer of the reference policy."""

    prompt: str
    answer: str
    #: Number of its tokens.
    tokens: int
    #: Calibrated score.
    score: float
    #: True reward; None if it is not known.
    truth: float | None = None


@dataclass(frozen=True)
class Report:
    """What is known about a reward model."""

    #: Values by the name of a measure, and some further ones.
    measures: Mapping[str, float]
    findings: tuple[Finding, ...]
    probes: tuple[Probe, ...] = ()
    #: Answers of the reference policy to each of several prompts.
    groups: tuple[tuple[Sampled, ...], ...] = ()
    #: Raw scores (N, 2) of the held-out pairs.
    scores_N2: np.ndarray | None = None
    #: Tokens (N, 2) of their answers.
    lengths_N2: np.ndarray | None = None
    #: Their true rewards (N, 2), if they are known.
    truth_N2: np.ndarray | None = None


def measure(objective: RewardModel, params: Any) -> Report:
    """Measure a reward model on held-out pairs and on answers of the reference policy.

    Args:
        objective: The objective with its data.
        params: The parameters.
    """
    records, scores_N2 = objective.held_out(params)
    lengths_N2 = preferences.answer_lengths(objective.samples.store, "validation")[records]
    truth_N2, train = objective.truth(records), objective.samples.fitting["train"].records
    measures = reward_measures.of_pairs(scores_N2, lengths_N2) | {"comparisons": float(len(train))}
    if truth_N2 is not None:
        measures |= reward_measures.of_truth(scores_N2, truth_N2)
    some = train[np.linspace(0, len(train) - 1, min(len(train), len(records))).astype(int)]
    _, train_N2 = objective.pair_scores(params, "train", some)
    measures["accuracy_gap"] = float(np.mean(train_N2[:, 0] > train_N2[:, 1])) - measures["accuracy"]
    measures["side_error"] = _side_error(objective, params, records, scores_N2)
    probes = tuple(probe(objective, params, records, deviation=float(scores_N2.std())))
    harmful = [item.gain for item in probes if item.truth is None or item.truth < -HARM]
    if harmful:
        measures["probe_gain"] = max(harmful)
    sampled = _sampled(objective, params)
    if sampled:
        measures |= _of_samples(sampled, gain=float(params["calibration"]["gain"]))
    series = {name: [value] for name, value in measures.items()}
    groups = tuple(tuple(group) for _, group in groupby(sampled, key=lambda answer: answer.prompt))
    exact = is_exact(objective.config.model.dtype, jax.default_backend())
    findings = tuple(health.findings(series, REWARD_MODEL if exact else REWARD_MODEL_BFLOAT16))
    return Report(measures, findings, probes, groups, scores_N2, lengths_N2, truth_N2)


def _side_error(objective: RewardModel, params: Any, records: np.ndarray, scores_N2: np.ndarray) -> float:
    """Return by how much the margin of a pair depends on which answer comes first."""
    some = slice(None, None, max(1, len(records) // 64))
    rows = []
    for record in records[some].tolist():
        prompt, chosen, rejected = preferences.ids_of(objective.samples.store, "validation", record)
        rows += [np.concatenate([prompt, answer]) for answer in (rejected, chosen)]
    swapped_N2 = objective.score_rows(params, rows).reshape(-1, 2)
    margins = [x_N2[:, 0] - x_N2[:, 1] for x_N2 in (scores_N2[some], swapped_N2)]
    return float(np.abs(margins[0] + margins[1]).max())


# ---- Answers of the reference policy --------------------------------------------------------------------------------


def _sampled(objective: RewardModel, params: Any) -> list[Sampled]:
    if objective.answers is None:
        return []
    rows, sizes = objective.answers.rows, objective.answers.prompt_sizes
    raw, calibration = objective.score_rows(params, rows), params["calibration"]
    scores = float(calibration["gain"]) * raw + float(calibration["bias"])
    decode, result = objective.samples.store.tokenizer.decode, []
    for row, size, score in zip(rows, sizes, scores.tolist(), strict=True):
        prompt, answer = decode(row[:size]), decode(row[size:-1])
        truth = reviews.true_reward(answer, reviews.dish_of(prompt)) if objective.has_truth else None
        result.append(Sampled(prompt, answer, len(row) - size, score, truth))
    return result


def _of_samples(sampled: Sequence[Sampled], *, gain: float) -> dict[str, float]:
    """Return the measures of answers; raw scores are scores / gain plus a constant."""
    scores, lengths = (np.asarray([getattr(answer, name) for answer in sampled]) for name in ("score", "tokens"))
    measures = {
        "reference_mean": float(scores.mean()),
        "reference_sd": float(scores.std() / gain),
        "length_correlation": reward_measures.correlation(scores, lengths),
    }
    truths = [answer.truth for answer in sampled if answer.truth is not None]
    return measures | ({"reference_truth": float(np.mean(truths))} if truths else {})


def best_of(groups: Sequence[Sequence[Sampled]]) -> tuple[list[Sampled], list[Sampled]]:
    """Return the answers with the highest and with the lowest score of each group."""
    ranked = [sorted(group, key=lambda answer: answer.score) for group in groups]
    return [group[-1] for group in ranked], [group[0] for group in ranked]


# ---- Text ---------------------------------------------------------------------------------------------------------

_WORDS = {"healthy": "healthy", "watch": "WATCH", "alarm": "ALARM"}


def verdict(report: Report) -> str:
    """Return one sentence on the reward model."""
    alarms = [finding for finding in report.findings if finding.status == "alarm"]
    watched = [finding for finding in report.findings if finding.status == "watch"]
    if alarms:
        return f"Do not optimize a policy against it without a look: {len(alarms)} alarms; first: {alarms[0]}."
    if watched:
        return f"Usable; watch {', '.join(finding.measure.title for finding in watched)}."
    return "Healthy in all measures."


def markdown(report: Report, *, name: str) -> str:
    """Return the report as Markdown.

    Args:
        report: The report.
        name: Name of the run.
    """
    lines = [f"# Reward model {name}", "", verdict(report), "", "| measure | value | verdict |", "|---|---|---|"]
    found = {finding.measure.name: finding for finding in report.findings}
    lines += [_row(found.get(name), measure.title) for name, measure in REWARD_MODEL.items()]
    if "bayes_accuracy" in report.measures:
        known = report.measures
        lines += [
            "",
            f"The labels are drawn from a known true reward. The best possible accuracy on them is "
            f"{known['bayes_accuracy']:.3f}. Against the truth, the accuracy is {known['truth_accuracy']:.3f}, and the "
            f"correlation with the true reward {known['truth_correlation']:.2f}.",
        ]
    if report.scores_N2 is not None:
        lines += ["", f"![reliability, and score against length and truth]({PICTURE})"]
    return "\n".join([*lines, *_of_probes(report.probes), *_of_groups(report.groups)]) + "\n"


def _row(finding: Finding | None, title: str) -> str:
    if finding is None:
        return f"| {title} | | not measured |"
    unit = f" {finding.measure.unit}" if finding.measure.unit else ""
    advice = "" if finding.status == "healthy" else f": {finding.measure.advice}"
    return f"| {title} | {finding.value:.3g}{unit} | {_WORDS[finding.status]}{advice} |"


def _of_probes(probes: Sequence[Probe]) -> list[str]:
    if not probes:
        return []
    lines = ["", "## Probes", "", "| change to an answer | answers | score (sd) | higher in | truth |"]
    lines.append("|---|---|---|---|---|")
    for item in probes:
        truth = "" if item.truth is None else f"{item.truth:+.2f}"
        lines.append(f"| {item.name} | {item.count} | {item.gain:+.2f} | {item.higher:.0%} | {truth} |")
    return lines


def _of_groups(groups: Sequence[Sequence[Sampled]]) -> list[str]:
    """Show what choosing the best of several answers would reach without training."""
    if not groups:
        return []
    best, worst = best_of(groups)
    count, mean = len(groups[0]), np.mean([answer.score for answer in best])
    sentence = f"The best of {count} answers of the reference policy to a prompt has the score {mean:+.2f} on average"
    lines = ["", f"## Best of {count}", "", f"{sentence} (all answers: mean 0, standard deviation 1)."]
    truths = [[answer.truth for answer in part if answer.truth is not None] for part in (chain(*groups), best)]
    if truths[0]:
        everything, chosen = map(np.mean, truths)
        lines.append(f"Its true reward is {chosen:.2f} on average, that of all answers {everything:.2f}.")
    for place in np.linspace(0, len(groups) - 1, min(SHOWN, len(groups))).astype(int).tolist():
        lines += ["", f"`{_shown(best[place].prompt)}`", ""]
        lines += [
            f"- {word} {one[place].score:+.2f}: `{_shown(one[place].answer)}`"
            for word, one in (("best", best), ("worst", worst))
        ]
    return lines


def _shown(text: str) -> str:
    return printable(text, 1000).replace("`", "'")


def write(run_dir: Path, report: Report) -> Path:
    """Write the report into the directory of a run, and return its path."""
    path = run_dir / NAME
    write_text(path, markdown(report, name=run_dir.name))
    return path
