"""The step: one call of the compiled update for the batches of a dispatch."""

import time
from typing import Any

import numpy as np
import pytest

from lmjax.system import faults
from lmjax.training.dispatch import Dispatch, make_step, with_faults


def test_one_batch_is_given_to_the_update_as_it_is() -> None:
    batch = {"update": np.int32(3)}
    assert make_step(lambda state, one: (state, one), Dispatch())("state", [batch]) == ("state", batch)
    with pytest.raises(ValueError, match="too many"):
        make_step(lambda state, one: (state, one), Dispatch())("state", [batch, batch])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_are_stacked_to_one_shape_for_any_count(count: int) -> None:
    step: Any = make_step(lambda *arguments: arguments, Dispatch(updates_per_dispatch=3))
    state, stacked, number = step("state", [{"update": np.int32(7 + i), "x": np.full(2, i)} for i in range(count)])
    assert (state, number) == ("state", count)
    assert stacked["x"].shape == (3, 2)
    assert stacked["update"][:count].tolist() == [7 + i for i in range(count)]
    assert stacked["x"][:count, 0].tolist() == list(range(count))


@pytest.mark.parametrize(("pause", "expected"), [(0.0, []), (3e-4, [3e-4, 3e-4])])
def test_a_pause_precedes_each_call(monkeypatch: pytest.MonkeyPatch, pause: float, expected: list[float]) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    step = make_step(lambda state, batch: (state, {}), Dispatch(pause=pause))
    for _ in range(2):
        step("state", [{}])
    assert pauses == expected


def test_a_fault_before_an_update_has_a_dispatch_of_its_own() -> None:
    step, dispatch = make_step(lambda *arguments: arguments, Dispatch(3, pause=0.1)), Dispatch(3, pause=0.1)
    assert with_faults(step, dispatch) == (step, dispatch)
    with faults.armed("params=nan@2"):
        wrapped, single = with_faults(step, dispatch)
    assert wrapped is not step
    assert single == Dispatch(1, pause=0.1)
