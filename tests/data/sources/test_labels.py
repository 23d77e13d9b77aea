"""Labels by value: the number type of JSON, and a refusal where a column can be read in more than one way."""

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.json_text import LongInteger
from lmjax.data.sources.labels import Labels, check


def labels(*values: Any) -> tuple[list[int], list[str]]:
    distinct = Labels()
    numbers = [distinct.number(check(value, f"line {n}"), f"line {n}") for n, value in enumerate(values, 1)]
    return numbers, distinct.names()


@pytest.mark.parametrize(
    ("text", "numbers", "names"),
    [
        ("[1, 1.0, 2, 1e0, 10e-1, 2.5]", [0, 0, 1, 0, 0, 2], ["1", "2", "2.5"]),
        ("[0, -0.0, 0.0, -1]", [0, 0, 0, 1], ["0", "-1"]),
        ("[1.0, 2.0, -0.0, 1e0]", [0, 1, 2, 0], ["1.0", "2.0", "0.0"]),
        (
            "[9007199254740993, 9007199254740992.0, 1e16]",
            [0, 1, 2],
            ["9007199254740993", "9007199254740992", "1" + "0" * 16],
        ),
        ("[true, false, true]", [0, 1, 0], ["True", "False"]),
        ('["a", "b", "a", "A", ""]', [0, 1, 0, 2, 3], ["a", "b", "A", ""]),
        ('["1", "2", "01x", 7]', None, "the number 7 (line 4) and the text '1' (line 1)"),
        ('["1", "1.0"]', None, "the text '1' (line 1) and the text '1.0' (line 2)"),
        ('["1e2", "+100"]', None, "the text '1e2' (line 1) and the text '+100' (line 2)"),
        ('["pos", "pos "]', None, "the text 'pos' (line 1) and the text 'pos ' (line 2)"),
        ("[1, 0, true]", None, "the number 1 (line 1) and true (line 3)"),
        ('[true, "False"]', None, "true (line 1) and the text 'False' (line 2)"),
        ('[3, "many", "few"]', [0, 1, 2], ["3", "many", "few"]),
        ('["12345678901234567890", "12345678901234567891"]', [0, 1], None),
    ],
)
def test_equal_values_are_one_label(text: str, numbers: list[int] | None, names: Any) -> None:
    values = json.loads(text)
    if numbers is None:
        with pytest.raises(UserError) as error:
            labels(*values)
        assert str(error.value) == f"the labels mix {names}; write all labels of the column in one form"
    else:
        assert labels(*values) == (numbers, names or values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False), max_size=12))
def test_numbers_are_equal_as_fractions_are(values: list[int | float]) -> None:
    numbers, names = labels(*values)
    distinct = list(dict.fromkeys(map(Fraction, values)))  # exact arithmetic
    assert numbers == [distinct.index(Fraction(value)) for value in values]
    assert [float(name) for name in names] == [float(value) for value in distinct]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [1], {"a": 1}, b"x", LongInteger("9" * 5000)])
def test_what_is_no_label_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="line 1 is ") as error:
        labels(value)
    assert len(str(error.value)) < 200
