"""Style and saving of figures."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmjax.config import UserError

# Okabe and Ito's palette, which is distinguishable with every colour vision; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def save(picture: Figure, path: Path) -> Path:
    """Write a picture as PNG, completely or not at all.

    Raises:
        UserError: The picture cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        picture.savefig(partial, dpi=150, format="png")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the picture to {path}: {error.strerror}") from None
    return path


def plain(axes: Axes) -> None:
    """Draw a light grid below the curves, and remove the top and right borders."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
