"""The style of all figures, and saving; without pyplot and its global state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

from lmjax.config import UserError
from lmjax.config.errors import printable
from lmjax.system.files import replacing

# Okabe and Ito's palette, which is distinguishable with every colour vision; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")

#: Width of a curve in points.
WIDTH = 1.6
#: Style of lines to compare with, such as a baseline.
REFERENCE: dict[str, Any] = {"color": "0.3", "linewidth": 1.2}
#: Style of the raw values of a smoothed curve.
FAINT: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.3, "linestyle": "-"}
#: Style of the marks of values that are not finite.
NOT_FINITE: dict[str, Any] = {"color": COLOURS[3], "linestyle": "", "marker": "^"}

_LINE = 0.13  # height of a line of small text, in inches


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with the default settings of matplotlib, not with those of the user's matplotlibrc.

    Every function that creates or saves a figure is decorated with it.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@own_style()
def panels(
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    *,
    heights: Sequence[float] | None = None,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Create a figure with a grid of panels in the style of lmjax.

    Args:
        size: Width and height in inches.
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        heights: Relative height of each row.
        share_x: All panels have the same horizontal axis.
        share_y: All panels have the same vertical axis.

    Returns:
        The figure, and its panels row by row.
    """
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid.ravel().tolist()


def colour(number: int) -> str:
    """Return the colour of a curve by its index."""
    return COLOURS[number % len(COLOURS)]


def log_ticks(axis: Axis, formatter: Formatter) -> None:
    """Set the ticks of a logarithmic axis at 1, 2 and 5: values may be within a power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def moved_apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Raise ascending values so that a line of text fits between any two.

    Args:
        axes: The panel; its limits are final, its axis is linear.
        values: Ascending values at which texts stand.
    """
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    height = axes.get_position().height * figure.get_size_inches()[1] if figure else 0.0
    gap = (high - low) * _LINE / max(height, 0.5)
    apart: list[float] = []
    for value in values:
        apart.append(max(value, apart[-1] + gap) if apart else value)
    return apart


def mark_not_finite(axes: Axes, x: np.ndarray, **style: Any) -> Line2D:
    """Mark the places of values that are not finite at the top of a panel."""
    (marks,) = axes.plot(x, np.full(len(x), 0.96), transform=axes.get_xaxis_transform(), **NOT_FINITE | style)
    return marks


def literal(name: str) -> str:
    """Shorten and escape a name for matplotlib.

    `$` then starts no formula, and a leading `_` does not hide the name.
    """
    name = printable(name.encode("utf-8", "replace").decode())  # a path may have bytes that are no text
    name = name if len(name) <= 48 else "..." + name[-45:]
    return (" " * name.startswith("_") + name).replace("$", r"\$")


def check_name(path: Path) -> None:
    """Check that a picture can have this name.

    Raises:
        UserError: The name has another ending than .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"'{path}': pictures are PNG files; give a name that ends in .png")


@own_style()
def save(picture: Figure, path: Path) -> Path:
    """Write a picture as PNG, completely or not at all.

    Raises:
        UserError: The name has another ending than .png, or the picture cannot be written.
    """
    check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            picture.savefig(partial, dpi=150, format="png")
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}") from None
    return path
