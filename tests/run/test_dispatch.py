"""Dispatch of several updates in one call: how many, and that the result is that of single updates."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import Config, UserError, checks, presets
from lmjax.config.codec import apply_overrides
from lmjax.data.store import preparation
from lmjax.run import build
from lmjax.run.feed import device_batches
from lmjax.training.step import fetch
from tests import small


def planned(config: Config, *changes: str) -> build.Run:
    return build.without_data(apply_overrides(config, ["model.vocab_size=65", *changes]))


def test_small_updates_are_dispatched_together_and_large_ones_alone() -> None:
    names = ("shakespeare_char_cpu", "quickstart", "shakespeare_char")
    dispatches = [planned(presets.load(name)).dispatch for name in names]
    assert [dispatch.updates_per_dispatch for dispatch in dispatches] == [8, 1, 1]
    assert [dispatch.serialize for dispatch in dispatches] == [False, True, True]
    assert [dispatch.pause > 0 for dispatch in dispatches] == [False, True, True]


def test_the_number_of_updates_per_dispatch_can_be_set() -> None:
    config = presets.load("shakespeare_char_cpu")
    for number in (1, 5):
        assert planned(config, f"runtime.updates_at_once={number}").dispatch.updates_per_dispatch == number
    with pytest.raises(UserError, match=r"runtime\.updates_at_once = -1 must be an integer from 0"):
        checks.check(apply_overrides(config, ["runtime.updates_at_once=-1"]))


def test_batches_of_different_shapes_are_dispatched_alone(corpus: Path) -> None:
    config = apply_overrides(small.config("translation", corpus), ["runtime.updates_at_once=4"])
    assert build.build(config, preparation.prepare(config.data)).dispatch.updates_per_dispatch == 1


def trained(made: build.Run, updates: int, groups: tuple[int, ...]) -> tuple[list[dict[str, Any]], Any]:
    """The metrics of updates dispatched in groups of these sizes, and the last state."""
    state, found, feed = build.init(made), [], device_batches(made, 0, 0)
    step, sizes = build.step_function(made), list(groups)
    while len(found) < updates:
        sizes = sizes[1:] + sizes[:1]
        batches = [next(feed).batch for _ in range(min(sizes[-1], updates - len(found)))]
        state, values = step(state, batches)
        found += fetch(values, len(batches))
    feed.close()
    return found, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "nnlm", "lstm", "masked"])
def test_they_are_the_updates_one_by_one(name: str, tiny: Config, corpus: Path) -> None:
    """In any grouping the same bits, since the program is one; another program may round otherwise."""
    config = tiny if name == "gpt" else small.config(name, corpus)
    made = build.build(apply_overrides(config, ["runtime.updates_at_once=4"]), preparation.prepare(config.data))
    single = build.build(apply_overrides(config, ["runtime.updates_at_once=1"]), made.store)
    found, state = trained(made, 10, (4,))
    again, other = trained(made, 10, (1, 3, 2))
    assert found == again
    jax.tree.map(np.testing.assert_array_equal, state, other)
    plain, alone = trained(single, 10, (1,))
    assert found[0].keys() == plain[0].keys()
    for one, both in zip(plain, found, strict=True):
        # Float32, rounded otherwise over ten updates.
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert both["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert (both["suspect"], both["skipped"]) == (one["suspect"], one["skipped"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), state.params, alone.params)
