"""Grids of configurations: `key=a,b,c seed=0:3`."""

import re
from collections.abc import Sequence
from math import prod

from lmjax.config import codec
from lmjax.config.errors import UserError

_MOST = 1000  # points of a grid
_RANGE = re.compile(r"(\d{1,19}):(\d{1,19})")
_FIXED = ("runtime.", "extensions", "name")  # the same at all points, whose runs share a process and a folder


def axes_of(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the axes of a grid and the changes that all runs share.

    `key=a,b,c` has three values and `key=0:3` the integers 0, 1 and 2. A list in brackets is one value.

    Raises:
        UserError: There is no axis, an axis is given twice, or the grid is too large.
    """
    axes: dict[str, list[str]] = {}
    fixed = []
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals:
            raise UserError(f"'{word}' is not of the form key.path=value")
        values = _values(text)
        if len(values) < 2:
            fixed.append(f"{key}={values[0] if values else ''}")
        elif key in axes:
            raise UserError(f"{key} is given twice; give all of its values in one list")
        elif key.startswith(_FIXED):
            raise UserError(f"{key}: all runs of a sweep have the same; give one value")
        else:
            axes[key] = values
    if not axes:
        raise UserError("a sweep needs a key with several values, such as schedule.peak=3e-4,1e-3 or seed=0:3")
    if (count := prod(map(len, axes.values()))) > _MOST:
        raise UserError(f"the grid has {count:,} runs, more than {_MOST:,}; give fewer values")
    for key, values in axes.items():
        if len(set(values)) < len(values):
            raise UserError(f"{key} has the same value twice: {', '.join(values)}")
    return axes, fixed


def _values(text: str) -> list[str]:
    """Return the values of an axis, or the single value."""
    bounds = _RANGE.fullmatch(text)
    if not bounds:
        return codec.split(text)
    start, stop = map(int, bounds.groups())
    if stop <= start or stop - start > _MOST:
        raise UserError(f"the range {text} must have 1 to {_MOST:,} integers; the end is not one of them")
    return [str(number) for number in range(start, stop)]
