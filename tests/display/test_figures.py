"""The style of figures: panels, names, files; no module has its own."""

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from lmjax.config import UserError
from lmjax.display.figures import COLOURS, colour, literal, mark_not_finite, moved_apart, own_style, panels, save
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
    for name in ("a.pdf", "a"):
        with pytest.raises(UserError, match=f"'.*{name}': pictures are PNG files; give a name that ends in .png"):
            save(figure, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_every_figure_has_this_style() -> None:
    for path in (ROOT / "lmjax").rglob("*.py"):
        if path.name != "figures.py":
            assert not re.search(r"\bFigure\(|rcParams|pyplot as|import pyplot|savefig", path.read_text()), path


def test_the_users_matplotlibrc_changes_no_picture(tmp_path: Path) -> None:
    @own_style()
    def picture(name: str) -> bytes:
        figure, axes = panels((2, 1))
        axes[0].plot([1, 2], label="a")
        axes[0].set_ylabel("loss")
        return save(figure, tmp_path / name).read_bytes()

    plain = picture("plain.png")
    changed = {"text.usetex": True, "axes.facecolor": "black", "lines.linewidth": 9, "savefig.bbox": "tight"}
    with matplotlib.rc_context(changed):
        with own_style():
            assert not matplotlib.rcParams["text.usetex"]
        assert picture("user.png") == plain
        assert matplotlib.rcParams["text.usetex"]


def test_values_that_are_not_finite_are_marked_at_the_top() -> None:
    _, (axes,) = panels((2, 1))
    marks = mark_not_finite(axes, np.array([3.0, 5.0]), color="k")
    assert np.asarray(marks.get_xdata()).tolist() == [3, 5]
    assert marks.get_transform() == axes.get_xaxis_transform()


def test_texts_at_values_that_are_moved_apart_do_not_overlap() -> None:
    figure, (axes,) = panels((4, 3))
    axes.set_ylim(1, 3)
    values = [1.2, 1.9, 1.91, 1.92, 2.5]
    heights = moved_apart(axes, values)
    texts = [axes.text(0.1, y, "5-gram: 1.91", fontsize="small", va="bottom") for y in heights]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert (heights[0], heights[1], heights[4]) == (1.2, 1.9, 2.5)  # those with room stay
