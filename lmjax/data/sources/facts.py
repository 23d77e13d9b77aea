"""Generated facts about number words and ISO dates, as sentences and as questions.

A sentence is a pure function of its index, as the records of `generated` are. The sentences teach the facts, the
conversations teach to answer: a model that has learned the rule answers questions about numbers that no conversation
has.
"""

import datetime
from collections.abc import Iterator
from typing import Any

from lmjax.data.sources import generated
from lmjax.data.sources.generated import Row
from lmjax.tasks.draws import Choices

FORMAT = 1  # part of the fingerprint: raise it when a text below changes
DOCUMENTS = 24_000  # of sentences
CONVERSATIONS = 3_000  # the numbers below NUMBERS in words and in digits, and as many dates
SENTENCES = 4  # of a document

NUMBERS = 1_000  # numbers are below it
_STEP = 389  # has no factor in common with NUMBERS, so that any beginning has small and large numbers
_FIRST, _DAYS = datetime.date(1900, 1, 1).toordinal(), 54_787  # to the end of 2049

_IN_WORDS = (
    "{digits} in words is {words}.",
    "The number {digits} is written {words}.",
    "{digits} is spelled {words}.",
)
_IN_DIGITS = (
    "{words} in digits is {digits}.",
    "The words {words} stand for the number {digits}.",
    "In digits, {words} is {digits}.",
)
_AS_DATE = (
    "{day} as an ISO date is {iso}.",
    "The ISO date of {day} is {iso}.",
    "{day} is written {iso}.",
)
_ASK_WORDS = (
    "Spell out the number {digits}.",
    "How is {digits} written in words?",
    "Write {digits} in words.",
    "What is {digits} in words?",
)
_ASK_DIGITS = (
    "Write {words} in digits.",
    "Which number is {words}?",
    "What is {words} in digits?",
    "Give the digits of {words}.",
)
_ASK_DATE = (
    "Write {day} as an ISO date.",
    "What is the ISO date of {day}?",
    "How is {day} written as an ISO date?",
    "Convert {day} to an ISO date.",
)


def documents() -> Iterator[str]:
    """Yield documents of a few sentences about numbers and dates."""
    return (_document(Choices(f"facts {index}")) for index in range(DOCUMENTS))


def conversations() -> Iterator[Row]:
    """Yield questions and answers with the columns "prompt" and "completion".

    The key of a row is its number or date, so that a split separates facts, not only wordings.
    """
    return (_question(index) for index in range(CONVERSATIONS))


def fingerprint() -> dict[str, Any]:
    """Identify the texts without generating them."""
    return {"source": "numbers_and_dates", "facts": FORMAT}


def _document(choices: Choices) -> str:
    sentences = [_sentence(choices) for _ in range(SENTENCES)]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _sentence(choices: Choices) -> str:
    kind, form = choices.below(3), choices.below(3)
    if kind == 2:
        return _AS_DATE[form].format(**_date(choices.below(_DAYS), choices))
    return (_IN_WORDS, _IN_DIGITS)[kind][form].format(**_number(choices.below(NUMBERS)))


def _question(index: int) -> Row:
    kind, choices = index % 3, Choices(f"questions {index}")
    if kind == 2:
        fact = _date(choices.below(_DAYS), choices)
        question, answer, key = choices.of(_ASK_DATE), fact["iso"], fact["iso"]
    else:
        fact = _number(index // 3 * _STEP % NUMBERS)
        question, answer = choices.of((_ASK_WORDS, _ASK_DIGITS)[kind]), fact[("words", "digits")[kind]]
        key = fact["digits"]
    return {"prompt": question.format(**fact), "completion": answer}, key


def _number(value: int) -> dict[str, str]:
    return {"digits": str(value), "words": generated.spelled(value, link=" and ", join="-")}


def _date(number: int, choices: Choices) -> dict[str, str]:
    when = datetime.date.fromordinal(_FIRST + number)
    month = generated.MONTHS[when.month - 1]
    form = choices.of(("{d} {M} {y}", "{M} {d}, {y}"))
    return {"day": form.format(d=when.day, M=month, y=when.year), "iso": when.isoformat()}
