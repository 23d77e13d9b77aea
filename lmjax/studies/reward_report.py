"""The report of a reward model: measures with verdicts, probes, best and worst samples.

Shapes: N pairs, 2 answers (the preferred one first).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.batches import preferences
from lmjax.data.sources import reviews
from lmjax.objectives import reward_measures
from lmjax.objectives.reward import RewardModel
from lmjax.objectives.reward_calibration import ReferenceSamples
from lmjax.rl import health
from lmjax.rl.health import Finding
from lmjax.rl.measures import REWARD_MODEL
from lmjax.system.files import write_text

NAME = "reward_report.md"  # in the directory of a run
PROBED = 200  # held-out answers that are changed
SHOWN = 3  # best and worst samples
HARM = 0.25  # mean loss of true reward from which a change makes answers worse

#: (answer, prompt) -> changed forms by the name of the change.
Changes = Callable[[str, str], Mapping[str, str]]


@dataclass(frozen=True)
class Probe:
    """What a change of an answer does to its score."""

    #: The change.
    name: str
    #: Number of changed answers.
    count: int
    #: Mean change of the score, in standard deviations of the scores of unchanged answers.
    gain: float
    #: Share of the changed answers with a higher score.
    higher: float
    #: Mean change of the true reward; None if it is not known.
    truth: float | None


@dataclass(frozen=True)
class Report:
    """What is known about a reward model."""

    #: Values by the name of a measure, and some further ones.
    measures: Mapping[str, float]
    findings: tuple[Finding, ...]
    probes: tuple[Probe, ...]
    #: (score, text) of samples of the reference policy, best first; empty without samples.
    samples: tuple[tuple[float, str], ...] = ()


def measure(objective: RewardModel, params: Any, samples: ReferenceSamples | None = None) -> Report:
    """Measure a reward model on its held-out pairs.

    Args:
        objective: The objective with its data.
        params: The parameters.
        samples: Answers of the reference policy.
    """
    records, scores_N2 = objective.held_out(params)
    measures = reward_measures.of_pairs(
        scores_N2, preferences.answer_lengths(objective.samples.store, "validation")[records]
    )
    truth_N2 = objective.truth(records)
    if truth_N2 is not None:
        measures |= reward_measures.of_truth(scores_N2, truth_N2)
    train = objective.samples.fitting["train"].records
    measures["comparisons"] = float(len(train))
    some = train[np.linspace(0, len(train) - 1, min(len(train), len(records))).astype(int)]
    _, train_N2 = objective.pair_scores(params, "train", some)
    measures["accuracy_gap"] = float(np.mean(train_N2[:, 0] > train_N2[:, 1])) - measures["accuracy"]
    measures["side_error"] = _side_error(objective, params, records, scores_N2)
    probes = tuple(probe(objective, params, records, deviation=float(scores_N2.std()), known=truth_N2 is not None))
    harmful = [item.gain for item in probes if item.truth is None or item.truth < -HARM]
    if harmful:
        measures["probe_gain"] = max(harmful)
    shown: tuple[tuple[float, str], ...] = ()
    if samples is not None:
        measures, shown = _with_samples(objective, params, measures, samples)
    series = {name: [value] for name, value in measures.items()}
    return Report(measures, tuple(health.findings(series, REWARD_MODEL)), probes, shown)


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


def _with_samples(
    objective: RewardModel, params: Any, measures: Mapping[str, float], samples: ReferenceSamples
) -> tuple[dict[str, float], tuple[tuple[float, str], ...]]:
    """Add the measures of samples of the reference policy, and their texts, best first."""
    raw, calibration = objective.score_rows(params, samples.rows), params["calibration"]
    scores = float(calibration["gain"]) * raw + float(calibration["bias"])
    decode = objective.samples.store.tokenizer.decode
    ranked = sorted(zip(scores.tolist(), map(decode, samples.rows), strict=True), reverse=True)
    further = {
        "reference_mean": float(scores.mean()),
        "reference_sd": float(raw.std()),
        "length_correlation": reward_measures.correlation(raw, samples.lengths),
    }
    return {**measures, **further}, tuple(ranked)


# ---- Probes -------------------------------------------------------------------------------------------------------


def probe(
    objective: RewardModel, params: Any, records: np.ndarray, *, deviation: float, known: bool
) -> Sequence[Probe]:
    """Score changed forms of held-out preferred answers.

    Args:
        objective: The objective with its data.
        params: The parameters.
        records: Numbers of validation pairs.
        deviation: Standard deviation of the scores of unchanged answers.
        known: The data are reviews, whose true rewards and flaws are known.
    """
    store, changes = objective.samples.store, _of_reviews if known else plain_changes
    decode, end, context = store.tokenizer.decode, objective.samples.control.end, objective.config.model.context
    names, pairs, rewards = list[str](), list[np.ndarray](), list[float | None]()
    for record in records[:: max(1, len(records) // PROBED)].tolist():
        prompt, chosen, _ = preferences.ids_of(store, "validation", record)
        text, question = decode(chosen[:-1]), decode(prompt)
        for name, changed in changes(text, question).items():
            row = np.asarray([*prompt, *store.tokenizer.encode(changed), end], np.int32)
            if len(row) > context:
                continue
            names.append(name)
            pairs += [row, np.concatenate([prompt, chosen])]
            rewards.append(_truth(changed, text, question) if known else None)
    if not names:
        return []
    scores_N2 = objective.score_rows(params, pairs).reshape(-1, 2)
    gain_N = (scores_N2[:, 0] - scores_N2[:, 1]) / max(deviation, 1e-9)
    result = []
    for name in dict.fromkeys(names):
        here = [place for place, other in enumerate(names) if other == name]
        truths = [reward for place in here if (reward := rewards[place]) is not None]
        gain, higher = float(gain_N[here].mean()), float(np.mean(gain_N[here] > 0))
        result.append(Probe(name, len(here), gain, higher, float(np.mean(truths)) if truths else None))
    return result


def plain_changes(text: str, question: str) -> dict[str, str]:
    """Return changes that make any answer worse."""
    sentences = reviews.sentences_of(text)
    words = [word.strip(".,;:!?") for word in text.split()]
    keyword = max(words, key=len, default="")
    changes = {
        "last sentence said twice": f"{text} {sentences[-1]}" if sentences else "",
        "longest word repeated ten times": f"{text} {' '.join([keyword] * 10)}" if keyword else "",
        "first three words only": " ".join(text.split()[:3]),
    }
    return {name: changed for name, changed in changes.items() if changed and changed != text}


def _of_reviews(text: str, question: str) -> dict[str, str]:
    return reviews.probes(text, reviews.dish_of(question))


def _truth(changed: str, text: str, question: str) -> float:
    dish = reviews.dish_of(question)
    return reviews.true_reward(changed, dish) - reviews.true_reward(text, dish)


# ---- Text ---------------------------------------------------------------------------------------------------------

_WORDS = {"healthy": "healthy", "watch": "WATCH", "alarm": "ALARM"}


def verdict(report: Report) -> str:
    """Return one sentence on the reward model."""
    alarms = [finding for finding in report.findings if finding.status == "alarm"]
    watched = [finding for finding in report.findings if finding.status == "watch"]
    if alarms:
        return f"Do not optimize a policy against it yet: {len(alarms)} alarms; first: {alarms[0]}."
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
    for finding in report.findings:
        unit = f" {finding.measure.unit}" if finding.measure.unit else ""
        advice = "" if finding.status == "healthy" else f": {finding.measure.advice}"
        lines.append(f"| {finding.measure.title} | {finding.value:.3g}{unit} | {_WORDS[finding.status]}{advice} |")
    if "bayes_accuracy" in report.measures:
        known = report.measures
        lines += [
            "",
            f"The labels are drawn from a known true reward. The best possible accuracy on them is "
            f"{known['bayes_accuracy']:.3f}. Against the truth, the accuracy is {known['truth_accuracy']:.3f}, and the "
            f"correlation with the true reward {known['truth_correlation']:.2f}.",
        ]
    if report.probes:
        lines += [
            "",
            "## Probes",
            "",
            "| change to an answer | answers | score (sd) | higher in | truth |",
            "|---|---|---|---|---|",
        ]
        for item in report.probes:
            truth = "" if item.truth is None else f"{item.truth:+.2f}"
            lines.append(f"| {item.name} | {item.count} | {item.gain:+.2f} | {item.higher:.0%} | {truth} |")
    if report.samples:
        best, worst = report.samples[:SHOWN], report.samples[-SHOWN:]
        for title, part in (("Best", best), ("Worst", worst)):
            lines += ["", f"## {title} of {len(report.samples)} samples of the reference policy", ""]
            lines += [f"- {score:+.2f}: `{text}`" for score, text in part]
    return "\n".join(lines) + "\n"


def write(run_dir: Path, report: Report) -> Path:
    """Write the report into the directory of a run, and return its path."""
    path = run_dir / NAME
    write_text(path, markdown(report, name=run_dir.name))
    return path
