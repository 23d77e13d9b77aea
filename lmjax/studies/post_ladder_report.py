"""The table and the picture of the ladder of post-training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmjax.config.errors import printable
from lmjax.display.console import Console
from lmjax.display.figures import REFERENCE, WIDTH, colour, own_style, panels
from lmjax.display.format import duration
from lmjax.studies.outputs import write_study

NAME = "post_ladder"
TICKS = (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 150, 200)  # of the KL divergence
HEADER = ("policy", "score", "true reward", "KL (nats)", "tokens", "distinct", "time")
NOTES = (
    "Scores are those of the reward model, in standard deviations of the fine-tuned model's answers. No policy sees "
    "the true reward. KL is the divergence of an answer to the fine-tuned model: exact for policies, "
    "log n - (n - 1) / n for the best of n."
)


@dataclass(frozen=True)
class Point:
    """A policy, or a choice of answers, on held-out prompts."""

    #: Name of the policy.
    name: str
    #: Mean score of the reward model.
    reward: float
    #: Mean true reward.
    truth: float
    #: KL divergence of an answer to the fine-tuned model, in nats.
    kl: float
    #: Mean number of tokens of an answer.
    length: float
    #: Share of distinct answers.
    distinct: float
    #: Seconds of training.
    seconds: float


@dataclass(frozen=True)
class Curve:
    """A run of PPO at its evaluations."""

    #: Name of the run.
    name: str
    #: (KL divergence, score, true reward).
    rows: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Results:
    """The results of a ladder."""

    points: list[Point]
    curves: list[Curve]
    #: Measures of the reward model.
    reward_model: Mapping[str, float]
    #: Verdict on each run of PPO.
    verdicts: Mapping[str, str]
    #: (name of the policy, an answer).
    answers: list[tuple[str, str]]


def write_results(out: Path, results: Results) -> None:
    """Print the table, and write post_ladder.md, .json and .png to `out`.

    Raises:
        UserError: The folder cannot be written.
    """

    def show(console: Console) -> None:
        console.table("The ladder of post-training", [_cells(point) for point in results.points], HEADER)
        for line in _sentences(results):
            console.event(line)

    write_study(out, NAME, text=markdown(results), results=asdict(results), draw=lambda: figure(results), show=show)


def _cells(point: Point) -> tuple[str, ...]:
    return (
        point.name,
        f"{point.reward:+.2f}",
        f"{point.truth:+.2f}",
        f"{point.kl:.2f}",
        f"{point.length:.1f}",
        f"{point.distinct:.2f}",
        duration(point.seconds) if point.seconds else "",
    )


def _sentences(results: Results) -> list[str]:
    known = results.reward_model
    measures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in known.items())
    lines = [f"reward model: {measures}"] if measures else []
    return lines + [f"{name}: {verdict}" for name, verdict in results.verdicts.items()]


def markdown(results: Results) -> str:
    """Return the results as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", f"|---|{'---:|' * (len(HEADER) - 1)}"]
    lines += [f"| {' | '.join(_cells(point))} |" for point in results.points]
    lines += ["", NOTES, "", *(f"- {sentence}" for sentence in _sentences(results))]
    lines += ["", "| policy | an answer to the same prompt |", "|---|---|"]
    lines += [f"| {name} | {printable(answer).replace('|', ' ')} |" for name, answer in results.answers]
    return "\n".join(lines) + "\n"


@own_style()
def figure(results: Results) -> Figure:
    """Plot true reward and score against the square root of the KL divergence."""
    result, (left, right) = panels((10, 4.5), columns=2, share_x=True)
    for number, curve in enumerate(results.curves):
        kl, *values = np.asarray(curve.rows, float).reshape(-1, 3).T
        for axes, y in zip((right, left), values, strict=True):
            axes.plot(kl, y, color=colour(number), marker="o", markersize=4, linewidth=WIDTH, label=curve.name)
    chosen = [point for point in results.points if point.name.startswith("best of")]
    _draw(left, right, chosen, colour(len(results.curves)), label="best of n")
    named = {curve.name for curve in results.curves} | {point.name for point in chosen}
    for number, point in enumerate(point for point in results.points if point.name not in named):
        _draw(left, right, [point], colour(len(results.curves) + 1 + number), label=point.name)
    for axes, title in ((left, "true reward"), (right, "score of the reward model")):
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(left=0)
        axes.set_xticks([tick for tick in TICKS if tick <= axes.get_xlim()[1]])
        axes.set_xlabel("KL divergence to the fine-tuned model (nats per answer)")
        axes.set_ylabel(title)
        axes.axhline(0, **REFERENCE)
    left.legend(fontsize="small")
    return result


def _draw(left: Axes, right: Axes, points: Sequence[Point], shade: str, *, label: str) -> None:
    for axes, name in ((left, "truth"), (right, "reward")):
        x, y = [point.kl for point in points], [getattr(point, name) for point in points]
        axes.plot(x, y, color=shade, marker="s", markersize=6, linewidth=WIDTH, linestyle="--", label=label)
