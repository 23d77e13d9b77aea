"""Generated questions with verifiable answers: sorting, and other forms of numbers.

The rows are prompts for reinforcement learning; their column "answer" is what a verifiable reward compares.
"""

from collections.abc import Iterator
from typing import Any

from lmjax.data.sources import facts
from lmjax.data.sources.generated import Row
from lmjax.tasks.draws import Choices

FORMAT = 1  # part of the fingerprint: raise it when a text below changes
QUESTIONS = 3_000  # of sorting
DIGITS = 7


def sorting(count: int = QUESTIONS, *, seed: int = 0, digits: int = DIGITS) -> Iterator[Row]:
    """Yield numbers whose digits are to be sorted, with the columns "prompt" and "answer".

    The key is the sorted number: numbers with the same digits are on the same side of a split.

    Args:
        count: Number of rows.
        seed: Seed of the numbers.
        digits: Digits of a number.
    """
    for index in range(count):
        choices = Choices(f"sorting {seed} {digits} {index}")
        number = "".join(str(choices.below(10)) for _ in range(digits))
        answer = "".join(sorted(number))
        yield {"prompt": f"Sort {number}.", "answer": answer}, answer


def numbers_and_dates() -> Iterator[Row]:
    """Yield the questions of `facts.conversations` with the columns "prompt" and "answer"."""
    return (({"prompt": row["prompt"], "answer": row["completion"]}, key) for row, key in facts.conversations())


def conversations(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield verifiable rows as conversations for fine-tuning: "prompt" and "completion"."""
    return (({"prompt": row["prompt"], "completion": row["answer"]}, key) for row, key in rows)


def fingerprint(source: str) -> dict[str, Any]:
    """Identify the rows of `sorting` or `numbers_and_dates` without generating them."""
    return {"source": source, "verifiable": FORMAT, **({} if source == "sorting" else facts.fingerprint())}
