"""Ranges of fields: what each accepts, and where `check_ranges` looks."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from math import inf, nan
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import (
    Config,
    CustomModelConfig,
    DataConfig,
    InContextConfig,
    MaskedConfig,
    MeshConfig,
    ModelConfig,
    RecordsConfig,
    SourceConfig,
    TokenizerConfig,
    TranslationConfig,
    UserError,
    codec,
    ranges,
)
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.config.objectives import ObjectiveConfig
from lmjax.config.ranges import Range, at_least, check_ranges, interval


@pytest.mark.parametrize(
    ("field_range", "valid", "invalid"),
    [
        (ranges.at_least(0), [0, 5, 1e300], [-1, -0.1, inf, nan]),
        (ranges.at_least(2), [2, 3], [1]),
        (ranges.size(1), [1, 2**31 - 1], [0, -1, 2**31, nan]),
        (ranges.size(0, 64), [0, 64], [-1, 65, nan]),
        (ranges.axis_size(), [-1, 1, 8], [0, -2, 2**31]),
        (ranges.id_ranges(), [(0, 1), (5, 2**62)], [(5, 1), (3, 3), (-1, 4)]),
        (ranges.batch_points(), [(0, 1), (2**40, 2**31 - 1)], [(0, 0), (-1, 8), (0, 2**31)]),
        (
            ranges.weight_changes(),
            [(), ((1, (0.0, 1.0)),), ((1, (1.0,)), (2, (1.0,)))],
            [
                ((0, (1.0,)),),
                ((2, (1.0,)), (1, (1.0,))),
                ((1, ()),),
                ((1, (0.0,)),),
                ((1, (-1.0, 2.0)),),
            ],
        ),
        (ranges.expected_results(), [("a", 1.0, 1.0)], [("a", 2.0, 1.0), ("a", nan, 1.0)]),
        (ranges.rotary_scaling(), [(), (2.0,)], [(0.0,), (-1.0,), (inf,), (nan,)]),
        (ranges.nonnegative(), [0, 1e9], [-1, inf, nan]),
        (ranges.positive(), [1e-9, 1], [0, -1, inf, nan]),
        (ranges.finite(), [-1.0, 0.0], [inf, -inf, nan]),
        (ranges.interval("[0, 1)"), [0, 0.99], [1, -0.01, nan]),
        (ranges.interval("(0, 1]"), [0.01, 1], [0, 1.01, nan]),
        (ranges.share(), [0, 1], [-0.1, 1.1, nan]),
        (ranges.folder_name(), ["run", "a.b"], ["", "a/b", "a\\b", ".", "..", " ", "a\n", "a\0", "x" * 300]),
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
    arguments: dict[str, Any] = {"at_least": (1,), "size": (1,), "interval": ("[0, 1]",)}
    factories = {
        name: function
        for name, function in inspect.getmembers(ranges, inspect.isfunction)
        if function.__module__ == ranges.__name__ and inspect.signature(function).return_annotation is Range
    }
    for name, factory in factories.items():
        result = factory(*arguments.get(name, ()))
        assert result.rule.startswith("must "), name
        assert result.short, name


# ---- Every field of a configuration ---------------------------------------------------------------------------------

CLASSES = (
    *(hint for hint in typing.get_type_hints(Config).values() if is_dataclass(hint)),
    *(typing.get_args(ModelConfig) + typing.get_args(ObjectiveConfig)),
    *(Config, DataConfig, RecordsConfig, InContextConfig, SourceConfig, TokenizerConfig, MeshConfig),
)
#: Values outside every range, and at the limits of the types that compute with them.
EXTREME = (nan, inf, -inf, -1, -0.5, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, True, None, "x")


def has_number(hint: Any) -> bool:
    return hint in (int, float) or any(map(has_number, typing.get_args(hint)))


def with_first_number(value: Any, hint: Any, number: Any) -> Any:
    """A value of a type with its first number replaced; an empty tuple gets an item."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple:
        return number if hint in (int, float) else {str: "a", bool: True}[hint]
    if args[1:] == (...,):
        return (with_first_number(value[0] if value else None, args[0], number), *(value or ())[1:])
    items = [with_first_number(None, arg, 1) for arg in args] if value is None else list(value)
    place = next(place for place, arg in enumerate(args) if has_number(arg))
    items[place] = with_first_number(items[place], args[place], number)
    return tuple(items)


@pytest.mark.parametrize("cls", [*dict.fromkeys(CLASSES)], ids=lambda cls: cls.__name__)
def test_every_numeric_field_has_a_range(cls: type) -> None:
    hints = typing.get_type_hints(cls)
    numeric = [name for name, hint in hints.items() if not is_dataclass(hint) and has_number(hint)]
    assert [name for name in numeric if not ranges.field_ranges(cls)[name]] == []


def of_families(base: Config) -> list[str]:
    """The keys that a family of models, objectives or data decides."""
    return [key for key in codec.keys(base) if key.startswith(("model.", "objective.", "data."))]


def configurations() -> Iterator[tuple[str, Config]]:
    """Every numeric field of a text run and of a records run with each extreme value: (key, configuration)."""
    bases = [Config(model=model()) for model in typing.get_args(ModelConfig) if model is not CustomModelConfig]
    bases += [Config(objective=objective()) for objective in (MaskedConfig, TranslationConfig)]
    for base in (*bases, Config(data=RecordsConfig())):
        for key in codec.keys(base) if base == bases[0] else of_families(base):
            *parents, name = key.split(".")
            node = base
            for parent in parents:
                node = getattr(node, parent)
            hint = typing.get_type_hints(type(node))[name]
            for number in EXTREME if has_number(hint) else ():
                value: Any = with_first_number(getattr(node, name), hint, number)
                changed: Any = dataclasses.replace(node, **{name: value})
                for depth in range(len(parents) - 1, -1, -1):
                    owner = base
                    for parent in parents[:depth]:
                        owner = getattr(owner, parent)
                    changed = dataclasses.replace(owner, **{parents[depth]: changed})
                yield key, changed


def problem(call: Callable[[], object]) -> str:
    """The message of a UserError, empty without one; another exception is the test's failure."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def places(hint: Any, *at: int) -> Iterator[tuple[int, ...]]:
    """Where a value of a type has a number; of a tuple of any length, in its first item."""
    args = typing.get_args(hint)
    if hint in (int, float):
        yield at
    elif typing.get_origin(hint) is tuple:
        for place, arg in enumerate(args[:1] if args[1:] == (...,) else args):
            yield from places(arg, *at, place)


def with_number(hint: Any, at: tuple[int, ...], number: Any) -> Any:
    """A value of a type with 1 for each number, but `number` at a place."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple:
        return {int: 1, float: 1.0, str: "a", bool: True}[hint] if at != () else number
    args = args[:1] if args[1:] == (...,) else args
    return tuple(with_number(arg, at[1:] if place == at[0] else (-1,), number) for place, arg in enumerate(args))


def test_no_number_at_any_place_may_be_infinite_too_large_or_of_another_type() -> None:
    """Also in tuples of tuples, where the range of a field compares pairs: NaN is in no order."""
    count, accepted = 0, []
    classes: Iterable[Any] = dict.fromkeys(CLASSES)
    for cls in classes:
        for name, hint in typing.get_type_hints(cls).items():
            for at in () if is_dataclass(hint) else places(hint):
                for number in (nan, inf, -inf, 10**400, -(10**400), True, None, "x", [1]):
                    count += 1
                    config: Any = dataclasses.replace(cls(), **{name: with_number(hint, at, number)})
                    text = problem(lambda config=config: check_ranges(config, "k"))
                    if not text.startswith(f"k.{name} = "):
                        accepted.append((cls.__name__, name, at, number, text))
    assert accepted == []
    assert count > 1300


def test_a_value_is_valid_or_its_key_is_named() -> None:
    messages = [(key, problem(lambda config=config: check_ranges(config))) for key, config in configurations()]
    assert [(key, text) for key, text in messages if text and (key not in text or len(text) > 400)] == []
    count, accepted = len(messages), sum(not text for _, text in messages)
    assert count > 3000
    assert accepted < count / 3  # of 15 values, at most four or five are in the range of a field


@given(
    st.sampled_from(codec.keys(Config())),
    st.sampled_from(["nan", "inf", "-1", "1e400", "1e30", "9" * 5000, "1e9999999999"]),
)
def test_a_value_on_the_command_line_is_valid_or_its_key_is_named(key: str, text: str) -> None:
    message = problem(lambda: check_ranges(apply_overrides(Config(), [f"{key}={text}"], load=False)))
    assert not message or (key in message and len(message) < 400)
