"""Dispatch: how many updates a compiled call applies, and what the host waits for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lmjax.system import faults
from lmjax.training.state import State
from lmjax.training.step import Step


@dataclass(frozen=True)
class Dispatch:
    """How the updates of a run are dispatched to its devices."""

    #: Maximum number of updates in one compiled call.
    updates_per_dispatch: int = 1
    #: Seconds to wait before each call, so that memory of the previous update is returned first.
    pause: float = 0.0
    #: Wait for each update before dispatching the next. On a CPU, two queued updates would both hold their memory.
    serialize: bool = False


def make_step(update: Any, dispatch: Dispatch) -> Step:
    """Build the step `(state, batches) -> (state, metrics)`.

    It applies an update to each batch in order.

    Args:
        update: the jitted update; made by `chain_updates` if `dispatch.updates_per_dispatch` is greater than 1.
        dispatch: how to dispatch it. A step takes 1 to `updates_per_dispatch` batches.

    Returns:
        The step. Its metrics are scalars if `updates_per_dispatch` is 1; else they are (updates_per_dispatch), of
        which the first `len(batches)` are valid.
    """
    length = dispatch.updates_per_dispatch

    def call(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, jax.Array]]:
        if length == 1:
            (batch,) = batches
            return update(state, batch)
        unread = [batches[0]] * (length - len(batches))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches, *unread)
        return update(state, stacked, np.int32(len(batches)))

    def pause_and_call(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, jax.Array]]:
        time.sleep(dispatch.pause)
        return call(state, batches)

    return pause_and_call if dispatch.pause else call


def with_faults(step: Step, dispatch: Dispatch) -> tuple[Step, Dispatch]:
    """Wrap a step in the armed failpoints; return the arguments if there are none.

    A fault must precede exactly its update, so each dispatch then has one update. The compiled program, and therefore
    every bit, is the same for any number of updates in a dispatch.
    """
    if not faults.step_armed():
        return step, dispatch
    return faults.around(step), replace(dispatch, updates_per_dispatch=1)
