"""Parts that the figures of runs share: panels, styles, legends, values at the ends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter

from lmjax.config import UserError
from lmjax.display.figures import COLOURS, FAINT, LINES, WIDTH, colour, literal, moved_apart, panels
from lmjax.display.format import duration
from lmjax.display.thinning import smooth, thin
from lmjax.run.recorded import AXES, Columns, RecordedRun

_ROOM = 1.1  # right end of the axis as a multiple of the largest place: there is room for the values at the ends
_WIDER = 1.6  # points by which a curve is wider than the next one, at most
_LABELS = 8  # largest number of values at the ends of the curves of a panel


def run_panels(heights: Sequence[float], runs: Sequence[RecordedRun], *, x: str) -> tuple[Figure, list[Axes]]:
    """Return a column of panels that share the horizontal axis `x`."""
    figure, axes = panels((8, 1 + 1.1 * sum(heights)), len(heights), heights=heights, share_x=True)
    axes[-1].set_xlabel(AXES[x])
    seconds = FuncFormatter(lambda value, _: duration(max(value, 0)) if value else "0")
    axes[-1].xaxis.set_major_formatter(seconds if x == "time" else EngFormatter(sep=""))
    ends = [place(run, x, columns)[-1] for run in runs for columns in (run.train, run.validation) if _count(columns)]
    axes[-1].set_xlim(0, _ROOM * max(ends, default=0) or 1)
    if len(runs) == 1:
        axes[0].set_title(literal(runs[0].name), loc="left", fontsize="medium")
    figure.align_ylabels(axes)
    return figure, axes


def _count(columns: Columns) -> int:
    return len(columns["tokens"])


def place(run: RecordedRun, x: str, records: Columns) -> np.ndarray:
    """Return the places of records on the axis `x`.

    Raises:
        UserError: The run does not know them.
    """
    places = run.position(x, records)
    if places is None:
        raise UserError(f"the {AXES[x]} of the run '{run.folder}' are not recorded; choose another --x")
    return places


def styles(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Return a style for each run.

    Each curve is narrower than the one below it, so that equal curves are all visible.
    """
    step = min(_WIDER, 4 / max(len(runs) - 1, 1))
    return [
        {
            "color": colour(i),
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
            "linewidth": WIDTH + step * (len(runs) - 1 - i),
        }
        for i in range(len(runs))
    ]


def run_handles(runs: Sequence[RecordedRun]) -> list[Line2D]:
    """Return the legend of the runs."""
    return [Line2D([], [], label=literal(run.name), **style) for run, style in zip(runs, styles(runs), strict=True)]


def draw_smoothed(axes: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any], *, log: bool = False) -> None:
    """Draw values faintly, and their average; values without noise are drawn once."""
    smoothed = np.exp(smooth(np.log(y))) if log else smooth(y)
    if not np.allclose(y, smoothed, rtol=1e-3, atol=0, equal_nan=True):
        axes.plot(*thin(x, y), **style | FAINT)
    axes.plot(*thin(x, smoothed), **style)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write values at the ends of curves, moved apart where they would overlap.

    Args:
        axes: The panel; its limits are final.
        ends: Place, value and colour of the end of each curve.
    """
    low, high = axes.get_ylim()
    shown = sorted((end for end in ends if low <= end[1] <= high), key=lambda end: end[1])[:_LABELS]
    heights = moved_apart(axes, [value for _, value, _ in shown])
    for (x, value, text_colour), y in zip(shown, heights, strict=True):
        axes.annotate(
            f"{value:.3f}",
            (x, y),
            xytext=(5, 0),
            textcoords="offset points",
            color=text_colour,
            fontsize="small",
            verticalalignment="center",
        )


def from_zero(axes: Axes) -> None:
    """Let the vertical axis begin at zero."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.08 * top if np.isfinite(top) and top > 0 else 1)
