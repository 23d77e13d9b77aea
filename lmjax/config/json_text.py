"""The parser of JSON text that a user can edit, with bounds.

Text that exceeds a bound, or that is not JSON, gives a `UserError` of one line, never another exception.
"""

import codecs
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from lmjax.config.errors import UserError

LARGEST = 1 << 28  # bytes or characters of one text
DEEPEST = 100  # levels of lists and objects inside each other
DIGITS = 4300  # digits of an integer: the conversion of more takes quadratic time

UTF_16_AND_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE begins as UTF-16-LE


@dataclass(frozen=True, repr=False)
class LongInteger:
    """An integer of more than `DIGITS` digits, which is not converted."""

    #: The sign and the digits.
    text: str

    def __repr__(self) -> str:
        """Return the number of digits, for messages."""
        return f"an integer of {len(self.text.removeprefix('-'))} digits"


class _Refused(Exception):
    """Valid JSON that is refused; the message says what the text has."""


def parse_json(
    text: str | bytes,
    where: str,
    *,
    largest: int = LARGEST,
    deepest: int = DEEPEST,
    long_integers: bool = False,
    allow_nan: bool = True,
    unique_keys: bool = False,
) -> Any:
    """Return the value of JSON text.

    Args:
        text: The text, or its bytes in UTF-8; a byte order mark at the start is ignored.
        where: The location, which begins each error message, such as `'config.json'`.
        largest: Maximum number of characters or bytes (0: no limit).
        deepest: Maximum number of levels of lists and objects inside each other.
        long_integers: Return an integer of more than `DIGITS` digits as a `LongInteger` instead of refusing it.
        allow_nan: Accept NaN, Infinity and numbers that overflow to infinity.
        unique_keys: Refuse an object that has a key twice; otherwise the last value counts.

    Raises:
        UserError: The text is not JSON, or exceeds a bound.
    """
    if 0 < largest < len(text):
        raise UserError(f"{where} has {len(text)} bytes, more than the limit of {largest}")
    content = (decode_utf8(text, where) if isinstance(text, bytes) else text).removeprefix("\ufeff")
    hooks = _hooks(allow_nan=allow_nan, unique_keys=unique_keys)
    try:
        value = _load(content, hooks, _long if long_integers else _short)
        too_deep = content.count("[") + content.count("{") > deepest and _is_deeper(value, deepest)
    except _Refused as error:
        raise UserError(f"{where} has {error}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in content.strip() else f"column {error.colno}"
        raise UserError(f"{where} is not JSON: {error.msg} ({place})") from None
    except RecursionError:
        too_deep, value = True, None
    except MemoryError:
        raise UserError(f"{where} has more values than fit in memory") from None
    if too_deep:
        raise UserError(f"{where} has more than {deepest} levels of lists and objects inside each other")
    return value


def decode_utf8(content: bytes, where: str, *, errors: str = "strict") -> str:
    """Return the text of bytes in UTF-8.

    Args:
        content: The bytes.
        where: The location, which begins the error message.
        errors: How bytes are decoded that are not UTF-8, as for `bytes.decode`.

    Raises:
        UserError: The bytes are not UTF-8.
    """
    try:
        return content.decode(errors=errors)
    except UnicodeDecodeError as error:
        if content.startswith(UTF_16_AND_32):
            raise UserError(f"{where} is UTF-16 or UTF-32 text, not UTF-8: save it as UTF-8") from None
        byte = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise UserError(f"{where} is not UTF-8 text: {byte}; save it as UTF-8") from None


# ---- Numbers and keys -------------------------------------------------------------------------------------------


def _load(content: str, hooks: dict[str, Any], integer: Callable[[str], Any]) -> Any:
    """Parse, with `integer` only where Python's own limit of digits is another or was hit."""
    if 0 < sys.get_int_max_str_digits() <= DIGITS:
        try:
            return json.loads(content, **hooks)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer has more digits than Python converts
            pass
    return json.loads(content, parse_int=integer, **hooks)


def _hooks(*, allow_nan: bool, unique_keys: bool) -> dict[str, Any]:
    hooks: dict[str, Any] = {}
    if not allow_nan:
        hooks |= {"parse_constant": _finite, "parse_float": _finite}
    if unique_keys:
        hooks["object_pairs_hook"] = _distinct
    return hooks


def _long(text: str) -> int | LongInteger:
    return LongInteger(text) if len(text.removeprefix("-")) > DIGITS else int(text)


def _short(text: str) -> int:
    number = _long(text)
    if isinstance(number, LongInteger):
        raise _Refused(f"{number}, more than the limit of {DIGITS}")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise _Refused(f"the number {text[:40]}, which is not finite")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"an object with the key {twice[:100]!r} twice")
    return value


def _is_deeper(value: Any, deepest: int) -> bool:
    """Return whether a value has more levels of lists and objects; without recursion."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        if depth > deepest:
            return True
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return False
