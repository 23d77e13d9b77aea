"""Tests of lmjax; the folders mirror the package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"


def all_slow_but(places: set[int], values: Iterable[Any]) -> list[Any]:
    """Values of a parametrised test, a tuple where there are several names; only those at `places` are quick enough to
    be in the default tier."""
    packed = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*v, marks=() if n in places else pytest.mark.slow) for n, v in enumerate(packed)]
