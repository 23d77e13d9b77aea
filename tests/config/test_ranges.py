"""Ranges of fields: what each accepts, and where `check_ranges` looks."""

import dataclasses
import inspect
from dataclasses import dataclass, field
from math import inf, nan
from typing import Annotated, Any

import pytest

from lmjax.config import Config, UserError, ranges
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.config.ranges import Range, at_least, check_ranges, interval


@pytest.mark.parametrize(
    ("field_range", "valid", "invalid"),
    [
        (ranges.at_least(0), [0, 5, inf], [-1, -0.1, nan]),
        (ranges.at_least(2), [2, 3], [1]),
        (ranges.nonnegative(), [0, 1e9], [-1, inf, nan]),
        (ranges.positive(), [1e-9, 1], [0, -1, inf, nan]),
        (ranges.finite(), [-1.0, 0.0], [inf, -inf, nan]),
        (ranges.interval("[0, 1)"), [0, 0.99], [1, -0.01, nan]),
        (ranges.interval("(0, 1]"), [0.01, 1], [0, 1.01, nan]),
        (ranges.share(), [0, 1], [-0.1, 1.1, nan]),
        (ranges.folder_name(), ["run", "a.b"], ["", "a/b", "a\\b"]),
        (ranges.compiler_flags(), ["--xla_a=1"], ["--other", "--xla_a --xla_b"]),
        (ranges.span(), [(), (1, 1), (2, 5)], [(0, 1), (3, 2), (1,), (1, 2, 3)]),
        (ranges.distinct_counts(), [(0,), (1, 0)], [(), (1, 1), (-1,)]),
        (ranges.weighted_counts(), [((0, 1.0), (3, 0.0))], [(), ((1, 0.0),), ((-1, 1.0),), ((1, inf),), ((1, nan),)]),
        (ranges.rate_cuts(), [(0, 1.0, 1)], [(-1, 1.0, 1), (0, 0.0, 1), (0, 1.5, 1), (0, 1.0, 0)]),
    ],
    ids=lambda value: value.rule if isinstance(value, Range) else "",
)
def test_a_range_accepts_valid_values_only(field_range: Range, valid: list[Any], invalid: list[Any]) -> None:
    assert [value for value in valid if not field_range.is_valid(value)] == []
    assert [value for value in invalid if field_range.is_valid(value)] == []


def test_an_interval_in_another_notation_is_refused() -> None:
    with pytest.raises(ValueError, match="is not an interval"):
        interval("0..1")


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, interval("[0, 1]")] = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = ()
    sizes: Annotated[tuple[int, ...], dataclasses.replace(at_least(1), of_items=True)] = (1,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Outer(inner=Inner(2.0)), r"^a\.inner\.share = 2\.0 must be in \[0, 1\]$"),
        (Outer(several=(Inner(), Inner(-1.0))), r"^a\.several\[1\]\.share = -1\.0 must be in"),
        (Outer(sizes=(3, 0)), r"^a\.sizes = 0 must be at least 1$"),
    ],
)
def test_fields_are_checked_at_every_depth(config: Outer, message: str) -> None:
    check_ranges(Outer(several=(Inner(),)), "a")
    with pytest.raises(UserError, match=message):
        check_ranges(config, "a")


def test_metadata_do_not_change_how_values_are_read() -> None:
    config = apply_overrides(Config(), ["optimizer.beta1=0.8", "runtime.xla_flags=[--xla_a=1]", "train.profile=(1,2)"])
    assert (config.optimizer.beta1, config.runtime.xla_flags, config.train.profile) == (0.8, ("--xla_a=1",), (1, 2))
    assert from_json(to_json(config), Config) == config


def test_every_factory_of_a_range_has_a_rule_and_a_short_form() -> None:
    arguments: dict[str, Any] = {"at_least": (1,), "interval": ("[0, 1]",)}
    factories = {
        name: function
        for name, function in inspect.getmembers(ranges, inspect.isfunction)
        if function.__module__ == ranges.__name__ and inspect.signature(function).return_annotation is Range
    }
    for name, factory in factories.items():
        result = factory(*arguments.get(name, ()))
        assert result.rule.startswith("must "), name
        assert result.short, name
