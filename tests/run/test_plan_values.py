"""Extreme values of every numeric key: a plan, or a UserError that names the key."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from lmjax.config import Config, UserError, checks
from lmjax.config.codec import apply_overrides
from lmjax.run import build, plan

pytestmark = pytest.mark.slow

EXTREME = ("nan", "inf", "-inf", "-1", "0", "1e-320", str(2**31 - 1), str(2**31), str(2**63 - 1), str(2**63))
EXTREME = (*EXTREME, "1" + "0" * 400)
SMALL = ("data.tokenizer.kind=bytes", "model.layers=1", "model.width=16", "model.heads=2", "model.context=32",
         "train.updates=4", "batch.tokens=((0,256),)", "batch.microbatch=8")  # fmt: skip


#: Reversed and empty ranges, orders that fall, and pairs that do not fit each other.
REVERSED = {
    "data.exclude": ("((5,1),)", "((3,3),)", "((0,5),(7,2))"),
    "data.in_context.shots": ("()", "((0,0.0),)"),
    "batch.tokens": (
        *("()", "((0,0),)", "((8,256),)", "((0,256),(0,512))", "((0,256),(5000,512),(400,1024))", "((0,256),(9,-8))"),
    ),
    "schedule.cuts": ("((3,0.5,0),)", "((-1,0.5,2),)", "((1,0,2),)", "((1,2.0,3),)"),
    "train.profile": ("(3,2)", "(0,2)", "(1,)", "(1,2,3)"),
    "train.expect": ('(("val_loss",2,1),)',),
    "evaluate.shots": ("()", "(1,1)", "(-1,)"),
    "model.rope_scaling": ("(0,)", "(1,2)", "(8.0,4.0,1.0,8192.0)"),
    "model.heads": ("3",),
    "guard.armed": ("200",),
    "guard.armed_hard": ("65",),
    "guard.among": ("1",),
    "guard.divergence_window": ("500",),
    "guard.window": ("2000000000",),
    "guard.cut": ("0", "1.5"),
    "guard.rewarm": ("0",),
    "runtime.updates_at_once": ("1000000",),
}


def numeric_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """The keys of integers and floats, also in nested dataclasses."""
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from numeric_keys(value, f"{prefix}{item.name}.")
        elif hints[item.name] in (int, float):
            yield f"{prefix}{item.name}"


def planned(config: Config) -> None:
    checks.check(config)
    build.check(config)
    plan.tables(build.without_data(config))


@pytest.mark.parametrize("key", REVERSED)
def test_reversed_and_empty_ranges_are_refused_by_name(key: str) -> None:
    for value in REVERSED[key]:
        config = apply_overrides(Config(), [*SMALL, f"{key}={value}"])
        with pytest.raises(UserError, match=key) as caught:
            planned(config)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", EXTREME, ids=lambda value: value[:20])
def test_an_extreme_value_is_planned_or_refused_by_name(value: str) -> None:
    wrong = []
    keys = list(numeric_keys(Config()))
    assert len(keys) > 60
    for key in keys:
        try:
            config = apply_overrides(Config(), [*SMALL, f"{key}={value}"])
            planned(config)
        except UserError as error:
            needs_memory = "GiB of memory here" in str(error)
            if key.rpartition(".")[2] not in str(error) and not needs_memory:
                wrong.append(f"{key}: {error}")
        except Exception as error:
            wrong.append(f"{key}: {error!r:.300}")
    assert not wrong, "\n".join(wrong)
