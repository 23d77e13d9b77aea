"""The table and the pictures of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lmjax.config import UserError
from lmjax.config.errors import nearest, one_line
from lmjax.display.console import Console
from lmjax.display.figures import WIDTH, colour, literal, own_style, panels
from lmjax.display.format import digits, duration
from lmjax.run import curves
from lmjax.studies.outputs import write_study

SEED = "seed"
MOST_CURVES = 12  # runs whose curves share a picture
_FIRST = ("val_bits_per_byte", "val_loss", "val_reward")  # scores in the order of preference
_LOWER = ("loss", "bits", "perplexity", "error", "nats")  # in the name of a score that is better if lower


@dataclass(frozen=True)
class Outcome:
    """A run of a sweep."""

    #: The values of the keys of the grid.
    point: Mapping[str, str]
    #: The run directory.
    run: Path
    #: `finished` or `gave up`.
    status: str
    #: The fields of summary.json.
    summary: Mapping[str, Any]

    def score(self, metric: str) -> float:
        """Return a field of summary.json; NaN if it is missing, not finite, or the run gave up."""
        value = self.summary.get(metric)
        return float(value) if isinstance(value, int | float) and self.status == "finished" else nan

    @property
    def setting(self) -> str:
        """The values of all keys but the seed."""
        return " ".join(f"{key}={value}" for key, value in self.point.items() if key != SEED) or "all"


@dataclass(frozen=True)
class Setting:
    """The runs of a sweep that differ in the seed only."""

    #: The values of all other keys.
    name: str
    #: The scores of the runs that finished.
    scores: list[float]
    #: Number of runs.
    runs: int
    #: Seconds of all runs together.
    seconds: float

    @property
    def mean(self) -> float:
        """Mean score; NaN if a run has none, since a setting that fails for a seed is no good one."""
        return float(np.mean(self.scores)) if len(self.scores) == self.runs else nan

    @property
    def deviation(self) -> float:
        """Standard deviation of the scores over the seeds (n - 1); NaN for a single run."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else nan


def score_of(outcomes: Sequence[Outcome], metric: str) -> str:
    """Return the name of the score that is compared.

    Raises:
        UserError: No run has it.
    """
    known = dict.fromkeys(name for outcome in outcomes for name, value in outcome.summary.items() if _is_score(value))
    if metric and metric not in known:
        raise UserError(f"--metric {metric} is no score of these runs{nearest(metric, list(known))}")
    found = metric or next((name for name in _FIRST if name in known), None)
    if found is None:
        raise UserError("no run has a score to compare; all of them gave up, or their losses are not finite")
    return found


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_lower_better(metric: str) -> bool:
    """Whether a lower value of the score is better."""
    return any(part in metric for part in _LOWER)


def ranked(outcomes: Sequence[Outcome], metric: str) -> list[Setting]:
    """Return the settings, best mean score first; one with a run without a score comes last."""
    settings = []
    for name in dict.fromkeys(outcome.setting for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.setting == name]
        scores = [score for outcome in runs if isfinite(score := outcome.score(metric))]
        seconds = sum(outcome.summary.get("seconds") or 0.0 for outcome in runs)
        settings.append(Setting(name, scores, len(runs), seconds))
    sign = 1 if is_lower_better(metric) else -1
    return sorted(settings, key=lambda setting: (not isfinite(setting.mean), sign * setting.mean))


def write_sweep(out: Path, outcomes: Sequence[Outcome], *, metric: str) -> None:
    """Print the table, and write sweep.md, sweep.json and sweep.png to `out`."""
    settings = ranked(outcomes, metric)
    header, rows = _table(settings, metric)

    def show(console: Console) -> None:
        console.table("The sweep", rows, header)
        for line in _sentences(outcomes, settings, metric):
            console.event(line)

    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows]
    lines += ["", *_sentences(outcomes, settings, metric)]
    runs = [{"point": dict(o.point), "run": str(o.run), "status": o.status, metric: o.score(metric)} for o in outcomes]
    results = {"metric": metric, "lower_is_better": is_lower_better(metric), "runs": runs}
    text = "\n".join(lines) + "\n"
    write_study(out, "sweep", text=text, results=results, draw=lambda: figure(outcomes, metric), show=show)


def draw_curves(outcomes: Sequence[Outcome], out: Path) -> None:
    """Draw the curves of all runs over each other; a failure costs a line."""
    try:
        for path in curves.draw([outcome.run for outcome in outcomes], out):
            print(path)
    except Exception as error:  # the results matter more
        print(f"the curves cannot be drawn ({type(error).__name__}: {one_line(error)})")


def _table(settings: Sequence[Setting], metric: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    header = ("setting", metric, "deviation", "lowest", "highest", "runs", "time")
    rows = [
        (
            setting.name,
            digits(setting.mean),
            digits(setting.deviation) if setting.runs > 1 else "",
            digits(min(setting.scores, default=nan)),
            digits(max(setting.scores, default=nan)),
            f"{len(setting.scores)} of {setting.runs}",
            duration(setting.seconds),
        )
        for setting in settings
    ]
    return header, rows


def _sentences(outcomes: Sequence[Outcome], settings: Sequence[Setting], metric: str) -> list[str]:
    """Return what the table says, in words."""
    lines = [f"{'lower' if is_lower_better(metric) else 'higher'} is better; the deviation is that over the seeds"]
    failed = [outcome.run.name for outcome in outcomes if outcome.status != "finished"]
    if failed:
        lines.append(f"gave up: {', '.join(failed)}; lmjax audit explains why")
    finite = [setting for setting in settings if isfinite(setting.mean)]
    if len(finite) > 1:
        best, second = finite[:2]
        spread = max(best.deviation, second.deviation)
        gap = abs(best.mean - second.mean)
        if isfinite(spread) and gap < 2 * spread:
            lines.append(f"{best.name} and {second.name} differ by {gap:.3g}, less than twice the deviation: no winner")
        elif not isfinite(spread):
            lines.append("one run of each setting: give seed=0:3 to see how much the seed alone changes")
    return lines


@own_style()
def figure(outcomes: Sequence[Outcome], metric: str) -> Figure:
    """Plot the score of each run and the mean of each setting.

    With a single key of numbers besides the seed, this key is the horizontal axis.
    """
    picture, (axes,) = panels((6.5, 4.5))
    keys = [key for key in outcomes[0].point if key != SEED]
    numbers = [_number(outcome.point[keys[0]]) if len(keys) == 1 else nan for outcome in outcomes]
    settings = list(dict.fromkeys(outcome.setting for outcome in outcomes))
    is_axis = len(settings) > 1 and all(map(isfinite, numbers))
    x = np.asarray(numbers if is_axis else [settings.index(outcome.setting) for outcome in outcomes], float)
    y = np.asarray([outcome.score(metric) for outcome in outcomes])
    axes.plot(x, y, linestyle="", marker="o", markersize=5, alpha=0.6, color=colour(0), label="run")
    places = np.unique(x)
    means = [float(np.mean(y[x == place])) for place in places]
    style: dict[str, Any] = {"linewidth": WIDTH} if is_axis else {"linestyle": "", "marker": "_", "markersize": 24}
    axes.plot(places, means, color=colour(1), label="mean of the seeds", **style)
    if is_axis:
        axes.set_xlabel(literal(keys[0]))
        if min(places) > 0 and max(places) >= 10 * min(places):
            axes.set_xscale("log")
    else:
        axes.set_xticks(range(len(settings)), [literal(name) for name in settings], rotation=30, ha="right")
    axes.set_ylabel(literal(metric))
    axes.legend(fontsize="small")
    return picture


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan
