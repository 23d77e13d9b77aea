"""JSON that every reader accepts."""

import json
import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmjax.system.json_files import to_json, write_json


def refuse(constant: str) -> None:
    raise AssertionError(constant)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def expected(value: object) -> object:
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expected(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(VALUES)
def test_only_numbers_that_are_not_finite_change(value: object) -> None:
    assert json.loads(to_json(value, indent=2), parse_constant=refuse) == expected(value)


def test_text_stays_readable() -> None:
    assert to_json({"é": (1, float("-inf"))}) == '{"é": [1, null]}'


def test_numpy_scalars_and_tuples_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": (np.float32(0.5), np.int64(3)), "b": np.float64("nan")})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse) == {"a": [0.5, 3], "b": None}
