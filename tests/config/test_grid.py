"""Grids of the command line."""

import pytest

from lmjax.config import UserError, grid


def test_lists_and_ranges_are_axes_and_lists_in_brackets_are_values() -> None:
    words = ["schedule.peak=3e-4, 1e-3", "seed=0:3", "data.files=[a.txt,b.txt]", "batch.tokens=((0,64),(9,128))"]
    assert grid.axes_of([*words, "name=x", "train.sample_prompt="]) == (
        {"schedule.peak": ["3e-4", "1e-3"], "seed": ["0", "1", "2"]},
        ["data.files=[a.txt,b.txt]", "batch.tokens=((0,64),(9,128))", "name=x", "train.sample_prompt="],
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "needs a key with several values"),
        (["seed=0:2", "seed=5,6"], "seed is given twice"),
        (["seed=3:3"], "the range 3:3 must have 1 to 1,000 integers"),
        (["seed=0:999999999999"], "must have 1 to 1,000 integers"),
        (["seed=0:1000", "model.layers=1,2"], "the grid has 2,000 runs, more than 1,000"),
        (["seed=1,1"], "seed has the same value twice"),
        (["runtime.host_devices=1,2"], "all runs of a sweep have the same"),
        (["seed"], "'seed' is not of the form key.path=value"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid.axes_of(words)
