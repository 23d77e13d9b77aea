"""Plots of in-context learning: metrics against the number of examples, and during a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from lmjax.config import UserError
from lmjax.display.figures import COLOURS, MARKERS, plain, save
from lmjax.evaluation.results import Result, Score
from lmjax.evaluation.task_metrics import PRIMARY, has_chance

COLUMNS = 4  # panels side by side
_MEASURED = re.compile(r"val_(.+)_(\d+)_shot")


def draw(results: Sequence[Result], path: str | Path) -> Path:
    """Plot results of one or several models and write the figure as PNG.

    Raises:
        UserError: The results have no samples, or the file cannot be written.
    """
    return save(figure(results), Path(path))


def figure(results: Sequence[Result]) -> Figure:
    """Plot each task's main metric against the number of examples, one panel a task.

    Bars show one standard error. Panels of accuracies have a line at chance.

    Raises:
        UserError: The results have no samples.
    """
    tasks = {name: config for result in results for name, config in result.tasks.items()}
    scores = [result.scores() for result in results]
    curves = {
        name: [_curve(of_model, name, PRIMARY[config.kind]) for of_model in scores] for name, config in tasks.items()
    }
    curves = {name: lines for name, lines in curves.items() if any(lines)}
    if not curves:
        raise UserError("nothing to draw: the results have no samples")
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    picture = Figure(figsize=(0.6 + 2.9 * columns, 0.5 + 2.4 * rows), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, (name, lines) in zip(panels, curves.items(), strict=False):
        _panel(axes, lines, title=name, metric=PRIMARY[tasks[name].kind], chance=tasks[name].chance)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    labels = [label(result.model) for result in results]
    picture.supxlabel("examples in the prompt (bars: one standard error, dotted: chance)", fontsize="small")
    picture.suptitle(labels[0] if len(labels) == 1 else "", fontsize="medium")
    if len(labels) > 1:
        handles = [Line2D([], [], label=label, **_style(i)) for i, label in enumerate(labels)]
        picture.legend(handles=handles, loc="outside upper center", ncols=len(labels), fontsize="small")
    return picture


def emergence(columns: Mapping[str, np.ndarray]) -> Figure | None:
    """Plot the in-context metrics of a run over its updates; None if there are none.

    Each task has a panel with one line for each number of examples.

    Args:
        columns: Columns of the evaluation records by name, including `update`.
    """
    lines: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, values in columns.items():
        if match := _MEASURED.fullmatch(name):
            lines.setdefault(match[1], []).append((int(match[2]), values))
    if not lines:
        return None
    picture = Figure(figsize=(1.5 + 4.5 * len(lines), 3.6), layout="constrained")
    panels: Any = picture.subplots(1, len(lines), squeeze=False)[0]
    for axes, (name, curves) in zip(panels, sorted(lines.items()), strict=True):
        colours = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.05, len(curves)))
        for colour, (shots, values) in zip(colours, sorted(curves, key=lambda curve: curve[0]), strict=True):
            known = np.isfinite(values)
            axes.plot(columns["update"][known], values[known], color=colour, marker=".", label=f"{shots}")
        plain(axes)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("update")
        axes.set_title(label(name), loc="left", fontsize="medium")
        axes.legend(title="examples", fontsize="small", frameon=False, loc="upper left")
    panels[0].set_ylabel("accuracy on held-out questions")
    return picture


def _curve(scores: dict[tuple[str, int], dict[str, Score]], task: str, metric: str) -> list[tuple[int, Score]]:
    return [(shots, metrics[metric]) for (name, shots), metrics in scores.items() if name == task and metric in metrics]


def _panel(axes: Axes, curves: Sequence[list[tuple[int, Score]]], *, title: str, metric: str, chance: float) -> None:
    for number, curve in enumerate(curves):
        shots, values, errors = ([*column] for column in zip(*((n, s.value, s.stderr) for n, s in curve), strict=True))
        axes.errorbar(shots, values, yerr=errors, capsize=2, **_style(number))
    ticks = sorted({shots for curve in curves for shots, _ in curve})
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xlim(-0.3, max(ticks[-1], 1) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    if has_chance(metric):
        axes.set_ylim(-0.03, 1.03)
        axes.axhline(chance, color="0.3", linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=1)
    plain(axes)
    axes.set_title(label(title), loc="left", fontsize="medium")
    axes.set_ylabel(metric.replace("_", " "), fontsize="small")
    axes.tick_params(labelsize="small")


def _style(number: int) -> dict[str, Any]:
    """The line style of a model by its index."""
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    return style | {"linewidth": 1.6, "markersize": 4}


def label(name: str) -> str:
    """Escape a name for matplotlib: `$` starts no formula, a leading `_` does not hide it."""
    name = name if len(name) <= 48 else "..." + name[-45:]
    return (" " * name.startswith("_") + name).replace("$", r"\$")
