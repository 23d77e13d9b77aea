"""The training loop: the only place of a run with side effects.

Three counters: `update` (optimizer updates applied), `cursor` (position in the sample order) and `wall_step` (batches
tried; never decreases). Everything else is a pure function of them, the configuration and the journal.

An iteration dispatches the next updates, settles the previous dispatch (the host reads metrics one dispatch late, so
that the devices never wait for it), saves and evaluates when due, and rolls back when the guard triggers.
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
from lmjax.training.signals import Interrupted, StopRequest


def train(inputs: LoopInputs, position: Position, *, stop: StopRequest) -> Position:
    """Train from `position` to the end of the run, or until `stop`; save the last state.

    Raises:
        GaveUp: The guard reached its bounds.
        CheckpointError: A checkpoint could not be written.
        RunError: The machine computes another loss than before the resume.
    """
    loop = _begin(inputs, position)
    stopping = False
    try:
        if inputs.evaluation_due:
            evaluate(inputs, position, whole=False)
        while loop.position.update < inputs.updates and not stopping:
            # Read once: a signal that comes later in this iteration takes effect in the next one. Several processes
            # stop at the same update: each votes with its batches, and all read the same votes.
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
    """Return the state of the loop; save a checkpoint for rollbacks if there is none."""
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
    """Dispatch the next updates without waiting for them.

    Args:
        inputs: the inputs of the loop.
        loop: the state of the loop.
        stop: the requested signal; several processes vote on it with each batch.
        alone: dispatch one update only.

    Returns:
        Whether something is due after the last update: all dispatches must be settled first.
    """
    most = inputs.dispatch.updates_per_dispatch if loop.compiled and not alone else 1
    group = _take(inputs, loop.feed, most=most)
    loop.regime = _announce(inputs, loop.position, group, before=loop.regime)
    loop.profiling = loop.profiling or start_profile(inputs, group[0].update)
    with nullcontext() if loop.compiled else inputs.console.phase("compiling"):
        votes = {} if inputs.vote is None else inputs.vote(stop.number)
        batches = [scheduled.batch | votes for scheduled in group]
        with jax.transfer_guard("allow" if _on_host(batches[0]) else "disallow"):
            state, metrics = inputs.step(loop.position.state, batches)
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
    """Take the batches of one dispatch; it ends where a save or an evaluation is due."""
    group = [next(feed)]
    while len(group) < most and not _due(inputs, group[-1].update + 1):
        group.append(next(feed))
    return group


def _due(inputs: LoopInputs, update: int) -> bool:
    """Whether a save, an evaluation or a profile is due after `update` updates.

    All dispatches must be settled first.
    """
    traced = inputs.train.profile
    return (
        _save_due(inputs, update)
        or every(inputs.train.evaluate_every, update)
        or (bool(traced) and update in (traced[0] - 1, traced[1]))
    )


def _save_due(inputs: LoopInputs, update: int) -> bool:
    return update == inputs.updates or every(inputs.checkpoint.every, update)


def _announce(inputs: LoopInputs, position: Position, group: list[ScheduledBatch], *, before: int | None) -> int | None:
    """Journal announced changes; return the regime of the last batch.

    The guard's window is empty at the start of a regime.
    """
    for scheduled in group:
        if before not in (None, scheduled.regime):
            write(inputs, position, "boundary", reason="announced change", batch=scheduled.sequences)
        before = scheduled.regime
    return before


# ---- 3. Save and evaluate (2. is `settle`) --------------------------------------------------------------------------


def save_and_evaluate(inputs: LoopInputs, loop: LoopState) -> str:
    """Save, then evaluate; return a rollback's trigger, or ''.

    In this order an evaluation that fails loses nothing.
    """
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
    """Return the guard's rule for a state that is not finite (empty: none).

    Raises:
        NotFinite: It is the last state of the run.
    """
    inputs.console.event(str(error))
    if inputs.guard.policy == "rollback":
        return detector.PARAMETERS
    if position.update == inputs.updates:
        raise error
    return ""


def evaluate(inputs: LoopInputs, position: Position, *, whole: bool) -> dict[str, float]:
    """Evaluate, record and return the metrics.

    A failure is shown and returns no metrics; it does not end the run. An interruption does not count as one.
    """
    try:
        faults.reach("evaluate")
        with inputs.console.phase("evaluating"):
            values = inputs.evaluate(position.state, whole)
    except Interrupted as error:
        inputs.console.event(f"update {position.update}: {error}; a resume begins with it")
        return {}
    except Exception as error:
        inputs.console.event(f"update {position.update}: the evaluation failed ({error}); training continues")
        return {}
    record = {"update": position.update, "tokens": inputs.tokens(position.update), **values}
    inputs.recorder.write(record)
    inputs.console.update(record)
    if "val_loss" in values:
        inputs.checkpoints.scores[position.update] = values["val_loss"]
    inputs.notify("evaluation", position.update, record)
    return values


# ---- 4. Roll back ---------------------------------------------------------------------------------------------------


def roll_back(inputs: LoopInputs, loop: LoopState, trigger: str) -> None:
    """Restore a healthy checkpoint and leave out the data that the guard decides to skip."""
    loop.feed.close()
    loop.saver.settle(loop.position)
    assert loop.settled is not None
    loop.position, loop.history = rollback.recover(inputs, loop.position, loop.history, loop.settled, rule=trigger)
    loop.watch, loop.in_flight, loop.regime = Watch(loop.history), [], None
    inputs.notify("rollback", loop.position.update, {"trigger": trigger})
    loop.saver.saved, loop.saver.retry = loop.position.update, False
