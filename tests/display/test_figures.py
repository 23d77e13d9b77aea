"""The style of figures: panels, names, files; no module has its own."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lmjax.config import UserError
from lmjax.display.figures import COLOURS, colour, literal, panels, save
from tests import ROOT


def test_panels_come_row_by_row_with_a_grid_and_two_borders() -> None:
    figure, axes = panels((6, 3), 2, 3, heights=(2, 1), share_x=True)
    assert len(axes) == 6
    assert figure.get_size_inches().tolist() == [6, 3]
    figure.draw_without_rendering()
    places = [ax.get_position() for ax in axes]
    assert places[0].x0 < places[1].x0 < places[2].x0
    assert places[0].y0 > places[3].y0
    assert places[0].height == pytest.approx(2 * places[3].height, rel=0.05)
    for ax in axes:
        assert [side for side, spine in ax.spines.items() if spine.get_visible()] == ["left", "bottom"]
        assert ax.xaxis.get_gridlines()[0].get_visible()
    axes[0].set_xlim(0, 7)
    assert axes[5].get_xlim() == (0, 7)
    assert axes[5].get_ylim() == panels((1, 1))[1][0].get_ylim()


def test_colours_repeat_after_the_last() -> None:
    assert [colour(i) for i in range(len(COLOURS) + 1)] == [*COLOURS, COLOURS[0]]


@pytest.mark.parametrize(
    ("name", "text"), [("a_b", "a_b"), ("_a", " _a"), ("$x$", r"\$x\$"), ("x" * 60, "..." + "x" * 45)]
)
def test_names_are_drawn_literally(name: str, text: str) -> None:
    assert literal(name) == text


def test_a_picture_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    figure, _ = panels((2, 1))
    path = save(figure, tmp_path / "new" / "a.png")
    assert np.asarray(imread(path)).shape == (150, 300, 4)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the picture"):
        save(figure, tmp_path / "file" / "a.png")


def test_every_figure_has_this_style() -> None:
    for path in (ROOT / "lmjax").rglob("*.py"):
        if path.name != "figures.py":
            assert not re.search(r"\bFigure\(|rcParams|pyplot as|import pyplot|savefig", path.read_text()), path
