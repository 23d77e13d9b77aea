"""Labels by their value: equal numbers are one label, however they are written."""

import re
from decimal import Decimal
from typing import Any

from lmjax.config import UserError
from lmjax.system import readers

Label = str | int | float | bool  # as JSON and tables have it; true is not 1

_NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def check(value: Any, where: str) -> Label:
    """Return the value of a label.

    Args:
        value: The value.
        where: The location, for messages.

    Raises:
        UserError: The value is not valid text, a finite number, true or false.
    """
    if isinstance(value, float) and value - value != 0:
        raise UserError(f"{where} is {value}, which is no label; remove the record, or give it a text or a number")
    if isinstance(value, str) and (wrong := readers.not_text(value)):
        raise UserError(f"{where} holds {wrong}")
    if not isinstance(value, str | int | float):
        kind = "an integer of thousands of digits" if type(value).__name__ == "LongInteger" else type(value).__name__
        raise UserError(f"{where} is neither text nor a number but {kind}; remove the record, or give it one")
    return value


class Labels:
    """The distinct labels of records, in the order of their first occurrence.

    Texts are equal if they have the same characters, numbers if they have the same value (1, 1.0 and 1e0; 0 and -0.0).
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[type, Label], int] = {}
        self._where: dict[tuple[type, Label], str] = {}
        self._has_integers = False

    def number(self, label: Label, where: str) -> int:
        """Return the number of a label, counted from 0.

        Args:
            label: The label.
            where: Its location, for messages.
        """
        key = (type(label) if isinstance(label, str | bool) else float, label)
        if key not in self._numbers:
            self._where[key] = where
        self._has_integers |= type(label) is int
        return self._numbers.setdefault(key, len(self._numbers))

    def names(self) -> list[str]:
        """Return the name of each label, in the order of the numbers.

        If all numbers are floats, `1.0` is the name of 1, otherwise `1`.

        Raises:
            UserError: The labels mix texts, numbers and true or false in a way that can be read in more than one way.
        """
        self._check()
        return [self._name(label) for _, label in self._numbers]

    def _name(self, label: Label) -> str:
        if isinstance(label, float):
            return str(int(label)) if self._has_integers and label.is_integer() else str(label + 0.0)  # 0.0 for -0.0
        return str(label)

    def _check(self) -> None:
        texts = [key for key in self._numbers if key[0] is str]
        numbers = [key for key in self._numbers if key[0] is float]
        flags = [key for key in self._numbers if key[0] is bool]
        numerals = {key: None for key in texts if _NUMERAL.fullmatch(str(key[1]).strip())}
        words = [key for key in texts if str(key[1]).strip().casefold() in ("true", "false")]
        for some, others in ((numbers, flags), (numbers, numerals), (flags, words), (flags, numerals)):
            if some and others:
                raise self._ambiguous(some[0], next(iter(others)))
        same: dict[Decimal | str, tuple[type, Label]] = {}
        for key in texts:
            text = str(key[1]).strip()
            other = same.setdefault(Decimal(text) if key in numerals else text, key)
            if other is not key:
                raise self._ambiguous(other, key)

    def _ambiguous(self, first: tuple[type, Label], second: tuple[type, Label]) -> UserError:
        parts = [f"{_described(key[1])} ({self._where[key]})" for key in (first, second)]
        return UserError(f"the labels mix {parts[0]} and {parts[1]}; write all labels of the column in one form")


def _described(label: Label) -> str:
    if isinstance(label, str):
        return f"the text '{label[:100]}'"
    return str(label).lower() if isinstance(label, bool) else f"the number {label}"
