"""Valid ranges of configuration fields, as metadata next to each field.

The field `peak: Annotated[float, positive()]` accepts finite numbers above 0.
`check_ranges` compares the fields of a dataclass with their ranges. The table of keys in the documentation shows them.
"""

import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import pairwise
from math import inf, isfinite, log10
from typing import Any

from lmjax.config.errors import UserError

#: Largest values of the integers that JAX and NumPy compute with.
INT32, INT64 = 2**31 - 1, 2**63 - 1


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


class OrInteger:
    """Metadata of a field that may be given an integer, which its dataclass converts."""


def accepts_integer(cls: Any, name: str) -> bool:
    """Return whether a field of a dataclass may be given an integer."""
    hint = _annotated_hints(cls)[name]
    return any(extra is OrInteger for extra in getattr(hint, "__metadata__", ()))


def check_ranges(config: Any, prefix: str = "") -> None:
    """Check every field of a dataclass against its type and its range.

    Nested dataclasses and tuples are checked too. A number is finite and fits into 64 bits, whatever its field.

    Args:
        config: the dataclass.
        prefix: key of the dataclass, such as `model`; empty for a complete configuration.

    Raises:
        UserError: A value is outside its range; the message names the key.
    """
    hints = type_hints(type(config))
    for name, ranges in field_ranges(type(config)).items():
        key, value = f"{prefix}.{name}".lstrip("."), getattr(config, name)
        _check_numbers(value, hints[name], key)
        for field_range in ranges:
            if field_range.of_items and not isinstance(value, tuple):
                raise UserError(f"{key} = {shown(value)} must be a tuple")
            for item in value if field_range.of_items else (value,):
                if not _valid(field_range, item):
                    raise UserError(f"{key} = {shown(item)} {field_range.rule}")
        if is_dataclass(value):
            check_ranges(value, key)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if is_dataclass(item):
                    check_ranges(item, f"{key}[{index}]")


def _check_numbers(value: Any, hint: Any, key: str) -> None:
    """Raise UserError unless all numbers have the type of the field, are finite and 64-bit."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        items = [args[0]] * len(value) if args[1:] == (Ellipsis,) else args
        if len(items) != len(value):
            raise UserError(f"{key} = {shown(value)} must have {len(items)} values")
        for item, item_hint in zip(value, items, strict=True):
            _check_numbers(item, item_hint, key)
    elif hint is int:
        if type(value) is not int:
            raise UserError(f"{key} = {shown(value)} must be an integer")
        if not -(2**63) <= value <= INT64:
            raise UserError(f"{key} = {shown(value)} must fit into 64 bits (at most 2^63 - 1)")
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key} = {shown(value)} must be a number")
        if not _is_finite(value):
            raise UserError(f"{key} = {shown(value)} must be a finite number")


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def shown(value: Any) -> str:
    """Return a value for an error message, on one line and not longer than 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"{'-' if value < 0 else ''}1e{int(value.bit_length() * log10(2))} (about)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _valid(field_range: Range, value: Any) -> bool:
    try:
        return field_range.is_valid(value)
    except (TypeError, ValueError, IndexError, OverflowError):  # of another type than the field
        return False


@cache
def type_hints(cls: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, without metadata."""
    return typing.get_type_hints(cls)


@cache
def field_ranges(cls: type) -> dict[str, list[Range]]:
    """Return the ranges of each field of a dataclass.

    The list is empty where every value of the type is valid.
    """
    return {
        name: [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
        for name, hint in _annotated_hints(cls).items()
    }


@cache
def _annotated_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


# ---- Numbers ----------------------------------------------------------------------------------------------------


def at_least(low: int) -> Range:
    """Finite numbers of at least `low`; integers of at most 2^63 - 1."""
    rule = f"must be at least {low}" if low else "must not be negative"
    return Range(lambda value: low <= value < inf, rule, f">= {low}")


def size(low: int, high: int = INT32) -> Range:
    """Integers from `low` to `high`.

    By default to 2^31 - 1, the largest size of an axis of an array.
    """
    rule = f"must be an integer from {low} to {high}{' (2^31 - 1)' if high == INT32 else ''}"
    return Range(lambda value: low <= value <= high, rule, f">= {low}" if high == INT32 else f"[{low}, {high}]")


def device_count() -> Range:
    """Numbers of virtual devices; JAX takes half a minute and a gigabyte for 1,024 of them."""
    return Range(lambda value: 0 <= value <= 1024, "must be an integer from 0 to 1024", "[0, 1024]")


def axis_size() -> Range:
    """Sizes of a mesh axis: -1, the remaining devices, or at least 1."""
    return Range(
        lambda size: size == -1 or 1 <= size <= INT32, "must be -1 (the remaining devices) or 1 or more", "-1 or >= 1"
    )


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
    """Text that can be the name of a folder on every system."""

    def is_valid(name: str) -> bool:
        plain = name.isprintable() and not set(name) & set("/\\") and name.strip(" .") != ""
        return plain and 0 < len(name.encode()) <= 200

    return Range(is_valid, "must be a folder name", "a folder name")


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
        lambda ends: not ends or (len(ends) == 2 and 1 <= ends[0] <= ends[1] <= INT32),
        "must be empty or (first, last) with 1 <= first <= last",
        "1 <= first <= last",
    )


def distinct_counts() -> Range:
    """One or more different numbers of at least 0."""
    return Range(
        lambda counts: bool(counts) and 0 <= min(counts) <= max(counts) <= INT32 and len({*counts}) == len(counts),
        "must be distinct numbers of examples >= 0",
        "distinct, >= 0",
    )


def id_ranges() -> Range:
    """Half-open ranges of sample ids, as (begin, end)."""
    return Range(
        lambda pair: 0 <= pair[0] < pair[1],
        "must be (begin, end) with 0 <= begin < end",
        "0 <= begin < end",
        of_items=True,
    )


def batch_points() -> Range:
    """Batch sizes in tokens, as (from_token, size)."""
    return Range(
        lambda point: point[0] >= 0 and 1 <= point[1] <= INT32,
        "must be (from_token >= 0, size from 1 to 2^31 - 1)",
        "sizes >= 1",
        of_items=True,
    )


def weight_changes() -> Range:
    """Weights of sources by the number of tokens seen: ((from_token, (weight, ...)), ...)."""

    def is_valid(changes: tuple[tuple[int, tuple[float, ...]], ...]) -> bool:
        starts = [start for start, _ in changes]
        weights = [row for _, row in changes]
        return (
            (not starts or starts[0] > 0)
            and _increasing(starts)
            and all(bool(row) and min(row) >= 0 and 0 < sum(row) < inf for row in weights)
        )

    rule = "must be ((from_token, (weight, ...)), ...): tokens above 0 and strictly increasing, weights >= 0, not all 0"
    return Range(is_valid, rule, "tokens > 0, increasing; weights >= 0, not all 0")


def expected_results() -> Range:
    """Expected results of a run, as (metric, from, to)."""
    return Range(
        lambda item: item[1] <= item[2], "must be (metric, from, to) with from <= to", "from <= to", of_items=True
    )


def rotary_scaling() -> Range:
    """Nothing, or positive numbers that scale rotary positions."""
    return Range(lambda values: all(0 < value < inf for value in values), "must be positive numbers", "all > 0")


def _increasing(numbers: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


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
        lambda cut: 0 <= cut[0] <= INT32 and 0 < cut[1] <= 1 and 1 <= cut[2] <= INT32,
        "must be (update, factor in (0, 1], updates to rise over)",
        "factor in (0, 1]",
        of_items=True,
    )


def rate_extensions() -> Range:
    """Extensions of the schedule: update, updates before, how it starts again."""
    return Range(
        lambda entry: 0 <= entry[0] <= entry[1] <= INT32 and entry[2] in ("rewarm", "restart"),
        "must be (update, updates of the run before, rewarm or restart), update <= updates",
        "update <= updates; rewarm or restart",
        of_items=True,
    )
