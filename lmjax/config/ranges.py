"""Valid ranges of configuration fields, as metadata next to each field.

The field `peak: Annotated[float, positive()]` accepts finite numbers above 0.
`check_ranges` compares the fields of a dataclass with their ranges. The table of keys in the documentation shows them.
"""

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import cache
from math import inf, isfinite
from typing import Any

from lmjax.config.errors import UserError


@dataclass(frozen=True)
class Range:
    """The valid values of a field."""

    #: Returns whether a value is valid.
    is_valid: Callable[[Any], bool]
    #: End of the error message, after the key and the value.
    rule: str
    #: Short form for tables.
    short: str
    #: The range is that of each item of a tuple.
    of_items: bool = False


def check_ranges(config: Any, prefix: str = "") -> None:
    """Check every field of a dataclass against its range.

    Nested dataclasses and tuples of dataclasses are checked too.

    Args:
        config: the dataclass.
        prefix: key of the dataclass, such as `model`; empty for a complete configuration.

    Raises:
        UserError: A value is outside its range; the message names the key.
    """
    for name, ranges in field_ranges(type(config)).items():
        key, value = f"{prefix}.{name}".lstrip("."), getattr(config, name)
        for field_range in ranges:
            if field_range.of_items and not isinstance(value, tuple):
                raise UserError(f"{key} = {value!r} must be a tuple")
            for item in value if field_range.of_items else (value,):
                if not _valid(field_range, item):
                    raise UserError(f"{key} = {item} {field_range.rule}")
        if is_dataclass(value):
            check_ranges(value, key)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if is_dataclass(item):
                    check_ranges(item, f"{key}[{index}]")


def _valid(field_range: Range, value: Any) -> bool:
    try:
        return field_range.is_valid(value)
    except TypeError:  # of another type than the field
        return False


@cache
def field_ranges(cls: type) -> dict[str, list[Range]]:
    """Return the ranges of each field of a dataclass.

    The list is empty where every value of the type is valid.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
        for name, hint in hints.items()
    }


# ---- Numbers ----------------------------------------------------------------------------------------------------


def at_least(low: int) -> Range:
    """Numbers of at least `low`, infinity included."""
    rule = f"must be at least {low}" if low else "must not be negative"
    return Range(lambda value: value >= low, rule, f">= {low}")


def nonnegative() -> Range:
    """Finite numbers of at least 0."""
    return Range(lambda value: 0 <= value < inf, "must be a finite number >= 0", ">= 0")


def positive() -> Range:
    """Finite numbers above 0."""
    return Range(lambda value: 0 < value < inf, "must be a positive number", "> 0")


def finite() -> Range:
    """All numbers except infinities and NaN."""
    return Range(isfinite, "must be a finite number", "finite")


def interval(notation: str) -> Range:
    """Numbers in an interval such as `[0, 1)`, which contains 0 but not 1."""
    match = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", notation)
    if match is None:
        raise ValueError(f"{notation!r} is not an interval such as '[0, 1)'")
    low, high = float(match[2]), float(match[3])

    def is_valid(value: float) -> bool:
        above = low <= value if match[1] == "[" else low < value
        return above and (value <= high if match[4] == "]" else value < high)

    return Range(is_valid, f"must be in {notation}", notation)


def share() -> Range:
    """Shares and probabilities, from 0 to 1."""
    return Range(lambda value: 0 <= value <= 1, "must be a share in [0, 1]", "[0, 1]")


# ---- Text and tuples ----------------------------------------------------------------------------------------------


def folder_name() -> Range:
    """Text that can be the name of a folder."""
    return Range(lambda name: bool(name) and not set(name) & set("/\\"), "must be a folder name", "a folder name")


def compiler_flags() -> Range:
    """Flags of XLA."""
    return Range(
        lambda flag: flag.startswith("--xla_") and not set(flag) & set(" \t\n"),
        "must be a flag like --xla_name=value",
        "`--xla_NAME=VALUE`",
        of_items=True,
    )


def span() -> Range:
    """The first and the last number of a range from 1, or nothing."""
    return Range(
        lambda ends: not ends or (len(ends) == 2 and 1 <= ends[0] <= ends[1]),
        "must be empty or (first, last) with 1 <= first <= last",
        "1 <= first <= last",
    )


def distinct_counts() -> Range:
    """One or more different numbers of at least 0."""
    return Range(
        lambda counts: bool(counts) and min(counts) >= 0 and len(set(counts)) == len(counts),
        "must be distinct numbers of examples >= 0",
        "distinct, >= 0",
    )


def weighted_counts() -> Range:
    """Pairs of a number of examples and a weight, with a positive, finite sum of weights."""
    return Range(
        lambda pairs: bool(pairs) and min(map(min, pairs)) >= 0 and 0 < sum(weight for _, weight in pairs) < inf,
        "must be ((examples, weight), ...), weights not all 0",
        "both >= 0; weights not all 0",
    )


def rate_cuts() -> Range:
    """Temporary reductions of the learning rate: update, factor, updates to rise over."""
    return Range(
        lambda cut: cut[0] >= 0 and 0 < cut[1] <= 1 and cut[2] >= 1,
        "must be (update, factor in (0, 1], updates to rise over)",
        "factor in (0, 1]",
        of_items=True,
    )
