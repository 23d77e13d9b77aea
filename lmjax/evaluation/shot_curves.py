"""Plots of in-context learning: metrics against the number of examples, and during a run."""

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
from lmjax.display.figures import MARKERS, REFERENCE, WIDTH, colour, literal, own_style, panels, save
from lmjax.evaluation.results import Result, Score
from lmjax.evaluation.task_metrics import PRIMARY, has_chance
from lmjax.training.metrics import MEASURED

COLUMNS = 4  # panels side by side
MOST_TASKS = 50  # panels of a row; a picture has at most 65,536 pixels


def draw(results: Sequence[Result], path: str | Path) -> Path:
    """Plot results of one or several models and write the figure as PNG.

    Raises:
        UserError: The results have no samples, or the file cannot be written.
    """
    return save(figure(results), Path(path))


@own_style()
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
    picture, grid = panels((0.6 + 2.9 * columns, 0.5 + 2.4 * rows), rows, columns)
    for axes, (name, lines) in zip(grid, curves.items(), strict=False):
        _panel(axes, lines, title=name, metric=PRIMARY[tasks[name].kind], chance=tasks[name].chance)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    labels = [literal(result.model) for result in results]
    picture.supxlabel("examples in the prompt (bars: one standard error, dotted: chance)", fontsize="small")
    picture.suptitle(labels[0] if len(labels) == 1 else "", fontsize="medium")
    if len(labels) > 1:
        handles = [Line2D([], [], label=label, **_style(i)) for i, label in enumerate(labels)]
        picture.legend(handles=handles, loc="outside upper center", ncols=len(labels), fontsize="small")
    return picture


@own_style()
def emergence(columns: Mapping[str, np.ndarray]) -> Figure | None:
    """Plot the in-context metrics of a run over its updates; None if there are none.

    Each task has a panel with one line for each number of examples.

    Args:
        columns: Columns of the evaluation records by name, including `update`.
    """
    lines: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, values in columns.items():
        if match := MEASURED.fullmatch(name):
            lines.setdefault(match[1], []).append((int(match[2]), values))
    if not lines:
        return None
    if len(lines) > MOST_TASKS:
        raise UserError(f"the run was evaluated on {len(lines)} tasks in context; at most {MOST_TASKS} fit a picture")
    picture, row = panels((1.5 + 4.5 * len(lines), 3.6), columns=len(lines))
    for axes, (name, curves) in zip(row, sorted(lines.items()), strict=True):
        shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.05, len(curves)))
        for shade, (shots, values) in zip(shades, sorted(curves, key=lambda curve: curve[0]), strict=True):
            known = np.isfinite(values)
            axes.plot(columns["update"][known], values[known], color=shade, marker=".", label=f"{shots}")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("update")
        axes.set_title(literal(name), loc="left", fontsize="medium")
        axes.legend(title="examples", fontsize="small", frameon=False, loc="upper left")
    row[0].set_ylabel("accuracy on held-out questions")
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
        axes.axhline(chance, linestyle=(0, (1, 1.5)), zorder=1, **REFERENCE)
    axes.set_title(literal(title), loc="left", fontsize="medium")
    axes.set_ylabel(metric.replace("_", " "), fontsize="small")
    axes.tick_params(labelsize="small")


def _style(number: int) -> dict[str, Any]:
    """The line style of a model by its index."""
    marker = MARKERS[number % len(MARKERS)]
    return {"color": colour(number), "marker": marker, "linewidth": WIDTH, "markersize": 4}
