"""Generated questions whose answers a program verifies: digits to sort, as conversations."""

from collections.abc import Iterator
from typing import Any

from lmjax.data.sources.generated import Row
from lmjax.tasks.draws import Choices

FORMAT = 1  # part of the fingerprint: raise it when a text below changes
QUESTIONS = 4_000
DIGITS = 7


def conversations(count: int = QUESTIONS, *, seed: int = 0, digits: int = DIGITS) -> Iterator[Row]:
    """Yield numbers whose digits are to be sorted, with the sorted digits.

    The columns are "prompt" and "completion". The completion is the key: numbers with the same digits are on the same
    side of a split.

    Args:
        count: Number of rows.
        seed: Seed of the numbers.
        digits: Digits of a number.
    """
    for index in range(count):
        choices = Choices(f"sorting {seed} {digits} {index}")
        number = "".join(str(choices.below(10)) for _ in range(digits))
        answer = "".join(sorted(number))
        yield {"prompt": f"Sort {number}.", "completion": answer}, answer


def fingerprint() -> dict[str, Any]:
    """Identify the rows of `conversations` without generating them."""
    return {"source": "sorting", "verifiable": FORMAT}
