"""Results of other programs: committed, or computed now where TRL is installed."""

from functools import cache

import numpy as np
import pytest

from tests.fixtures import rl_references

SOURCES = ["fixture", pytest.param("live", marks=pytest.mark.slow)]


@cache
def results(source: str) -> dict[str, np.ndarray]:
    """The arrays of TRL, by name, and with `fixture` also those of tunix."""
    if source == "live":
        pytest.importorskip("trl")
        return rl_references.make_trl()
    with np.load(rl_references.PATH, allow_pickle=False) as file:
        return dict(file)
