"""The style of all figures, and saving; without pyplot and its global state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmjax.config import UserError
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


def literal(name: str) -> str:
    """Shorten and escape a name for matplotlib.

    `$` then starts no formula, and a leading `_` does not hide the name.
    """
    name = name if len(name) <= 48 else "..." + name[-45:]
    return (" " * name.startswith("_") + name).replace("$", r"\$")


def save(picture: Figure, path: Path) -> Path:
    """Write a picture as PNG, completely or not at all.

    Raises:
        UserError: The picture cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            picture.savefig(partial, dpi=150, format="png")
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}") from None
    return path
