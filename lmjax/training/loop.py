"""The training loop: the only place of a run with side effects.

Three counters, never mixed up: `update` (optimizer updates applied), `cursor` (position in the sample order),
`wall_step` (batches tried; never decreases). All else is a pure function of them, the configuration and the journal.

An iteration dispatches the next updates, settles those dispatched before (the host reads their metrics one dispatch
late, so that the devices never wait for it), saves and evaluates when due, and rolls back when the guard says so.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lmjax.guard import detector
from lmjax.journal.history import fold
from lmjax.system import faults
from lmjax.training import rollback
from lmjax.training.checkpoint import NotFinite
from lmjax.training.inputs import LoopInputs, Position, ScheduledBatch, every, write
from lmjax.training.loop_state import LoopState, Watch
from lmjax.training.profiling import start_profile
from lmjax.training.saver import Saver
from lmjax.training.settle import settle
from lmjax.training.signals import StopRequest


def train(inputs: LoopInputs, position: Position, *, stop: StopRequest) -> Position:
    """Train from `position` to the end of the run, or until `stop` is requested; the last state is saved.

    Raises:
        GaveUp: the guard reached its bounds.
        CheckpointError: a checkpoint could not be written.
        RunError: the machine does not compute what it computed before the resume.
    """
    loop = _begin(inputs, position)
    stopping = False
    try:
        while loop.position.update < inputs.updates and not stopping:
            # Read once: a signal that comes later in this iteration is seen in the next one. Several processes stop
            # at the same update, when the votes that each dispatched with its batch have come back.
            stopping = bool(stop.name)
            due = stopping or loop.saver.retry
            if not stopping:
                due = dispatch(inputs, loop, stop, alone=due) or due
            trigger, restart = settle(inputs, loop, stop, drain=due)
            if due and not (stopping or trigger or restart):
                trigger = save_and_evaluate(inputs, loop)
            if trigger:
                roll_back(inputs, loop, trigger)
            if trigger or restart:
                loop.feed.close()
                loop.feed = inputs.batches(loop.position.update, loop.position.cursor, loop.history)
    finally:
        loop.feed.close()
    if stopping:
        if loop.saver.saved != loop.position.update:
            loop.saver.save(loop.position, loop.history)
        write(inputs, loop.position, "signal", name=stop.name)
    loop.saver.finish(loop.position, loop.history)
    return loop.position


def _begin(inputs: LoopInputs, position: Position) -> LoopState:
    """The loop at a position, with a checkpoint to which a rollback can go back."""
    history = fold(inputs.journal.records)
    watch = Watch(history, resumed_at=position.update)
    saver = Saver(inputs, saved=position.update if history.saved or position.update else None)
    feed = inputs.batches(position.update, position.cursor, history)
    loop = LoopState(position, history, watch, saver, feed, clock=time.perf_counter())
    if saver.saved is None:
        saver.save(position, history)
    return loop


# ---- 1. Dispatch ----------------------------------------------------------------------------------------------------


def dispatch(inputs: LoopInputs, loop: LoopState, stop: StopRequest, *, alone: bool) -> bool:
    """Dispatch the next updates without waiting for them; return whether something is due after them.

    alone: one update only.
    """
    group = _take(inputs, loop.feed, most=inputs.together if loop.compiled and not alone else 1)
    loop.regime = _announce(inputs, loop.position, group, before=loop.regime)
    loop.profiling = loop.profiling or start_profile(inputs, group[0].update)
    state = _spoil(loop.position.state, group[0])
    with nullcontext() if loop.compiled else inputs.console.phase("compiling"):
        if not loop.compiled:
            faults.reach("compile")
        votes = {} if inputs.vote is None else inputs.vote(stop.number)
        batches = [scheduled.batch | votes for scheduled in group]
        with jax.transfer_guard("allow" if _on_host(batches[0]) else "disallow"):
            state, metrics = inputs.step(state, batches)
        if not loop.compiled:
            jax.block_until_ready(metrics)
            loop.compiled = True
    loop.position = replace(loop.position, state=state)
    loop.in_flight.append((group, metrics))
    return _due(inputs, group[-1].update + 1)


def _on_host(batch: dict[str, Any]) -> bool:
    """Whether the device reads the arrays of the host: a single CPU device does."""
    return all(isinstance(array, np.ndarray) for array in jax.tree.leaves(batch["arrays"]))


def _take(inputs: LoopInputs, feed: Iterator[ScheduledBatch], *, most: int) -> list[ScheduledBatch]:
    """The next batches of one dispatch: none after an update at which something is due."""

    def alone(update: int) -> bool:
        return faults.wait(("update", "params", "opt_state"), at=update + 1)

    group = [next(feed)]
    most = 1 if alone(group[0].update) else most
    while len(group) < most and not (_due(inputs, group[-1].update + 1) or alone(group[-1].update + 1)):
        group.append(next(feed))
    return group


def _due(inputs: LoopInputs, update: int) -> bool:
    """Whether something is due once `update` updates are applied, so that the device must have caught up."""
    traced = inputs.train.profile
    return (
        _save_due(inputs, update)
        or every(inputs.train.evaluate_every, update)
        or (bool(traced) and update in (traced[0] - 1, traced[1]))
    )


def _save_due(inputs: LoopInputs, update: int) -> bool:
    return update == inputs.updates or every(inputs.checkpoint.every, update)


def _announce(inputs: LoopInputs, position: Position, group: list[ScheduledBatch], *, before: int | None) -> int | None:
    """Journal announced changes, at which the guard's window starts empty; return the regime of the last batch."""
    for scheduled in group:
        if before not in (None, scheduled.regime):
            write(inputs, position, "boundary", reason="announced change", batch=scheduled.sequences)
        before = scheduled.regime
    return before


def _spoil(state: Any, scheduled: ScheduledBatch) -> Any:
    """The state before an update, with the faults that a test has armed."""
    at = scheduled.update + 1
    faults.reach("update", at=at)
    params, opt_state = faults.change("params", state.params, at=at), faults.change("opt_state", state.opt_state, at=at)
    return state.replace(params=params, opt_state=opt_state)


# ---- 3. Save and evaluate (2. is `settle`) --------------------------------------------------------------------------


def save_and_evaluate(inputs: LoopInputs, loop: LoopState) -> str:
    """Save, then evaluate, so that an evaluation that fails loses nothing; return a rollback's trigger, or ''."""
    update, trigger = loop.position.update, ""
    try:
        if loop.saver.retry or _save_due(inputs, update):
            loop.saver.save(loop.position, loop.history)
        if every(inputs.train.evaluate_every, update) and update < inputs.updates:
            evaluate(inputs, loop.position, whole=False)
    except NotFinite as error:
        trigger = _not_saved(inputs, loop.position, error)
    loop.clock = time.perf_counter()
    return trigger


def _not_saved(inputs: LoopInputs, position: Position, error: NotFinite) -> str:
    """The guard's rule for a state that is not finite (empty: none). NotFinite: it is the last state of the run."""
    inputs.console.event(str(error))
    if inputs.guard.policy == "rollback":
        return detector.PARAMETERS
    if position.update == inputs.updates:
        raise error
    return ""


def evaluate(inputs: LoopInputs, position: Position, *, whole: bool) -> dict[str, float]:
    """Evaluate, record and return the metrics; a failure is shown, returns no metrics, and does not end the run."""
    try:
        faults.reach("evaluate")
        with inputs.console.phase("evaluating"):
            values = inputs.evaluate(position.state, whole)
    except Exception as error:
        inputs.console.event(f"update {position.update}: the evaluation failed ({error}); training continues")
        return {}
    record = {"update": position.update, "tokens": inputs.tokens(position.update), **values}
    inputs.recorder.write(record)
    inputs.console.update(record)
    if "val_loss" in values:
        inputs.checkpoints.scores[position.update] = values["val_loss"]
    return values


# ---- 4. Roll back ---------------------------------------------------------------------------------------------------


def roll_back(inputs: LoopInputs, loop: LoopState, trigger: str) -> None:
    """Go back to a healthy checkpoint, and past the data that the guard's decision leaves out."""
    loop.feed.close()
    loop.saver.settle(loop.position)
    assert loop.settled is not None
    loop.position, loop.history = rollback.recover(inputs, loop.position, loop.history, loop.settled, rule=trigger)
    loop.watch, loop.in_flight, loop.regime = Watch(loop.history), [], None
    loop.saver.saved, loop.saver.retry = loop.position.update, False
