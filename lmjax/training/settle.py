"""Settle dispatched updates: read metrics, judge batches, record what was applied."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

from lmjax.guard import detector
from lmjax.journal.history import History, Tried
from lmjax.pytrees import all_finite
from lmjax.system import faults
from lmjax.training import rollback
from lmjax.training.inputs import GaveUp, LoopInputs, Position, ScheduledBatch, every, write
from lmjax.training.loop_state import LoopState, sampled
from lmjax.training.profiling import stop_profile
from lmjax.training.signals import StopRequest
from lmjax.training.step import fetch

# In metrics.jsonl under these names; the hash of the tokens is in the journal.
_NOT_RECORDED = ("loss", "grad_norm", "suspect", "hard", "diverged", "skipped", "tokens_sha256")


class Outcome(NamedTuple):
    """What follows from the settled batches."""

    #: The guard's rule that triggers a rollback; empty: none.
    trigger: str = ""
    #: Batches must be scheduled again, from the position on.
    restart: bool = False


def settle(inputs: LoopInputs, loop: LoopState, stop: StopRequest, *, drain: bool) -> Outcome:
    """Settle the dispatches whose metrics are due: all (`drain`), or all but the newest.

    A suspect batch left the state as it was, and so did the batches dispatched with and after it, which were scheduled
    for later updates: the same update is tried again with the data that follow.

    Raises:
        GaveUp: The guard reached its bounds.
        RunError: The machine computes another loss than before the resume.
    """
    before, outcome = loop.position.update, Outcome()
    most_in_flight = 0 if drain or inputs.dispatch.serialize else 1
    while len(loop.in_flight) > most_in_flight and not (outcome.trigger or outcome.restart):
        group, metrics = loop.in_flight.pop(0)
        per_update = fetch(metrics, len(group))
        started, loop.clock = loop.clock, time.perf_counter()
        seconds = (loop.clock - started) / len(group)
        for batch, values in zip(group, per_update, strict=True):
            outcome = _settle_batch(inputs, loop, batch, values, stop, seconds=seconds)
            if outcome.trigger or outcome.restart:
                break
        loop.steady = loop.steady or loop.position.update > before
    # The first update after a save is journaled at once: a resume compares its loss.
    first = loop.saver.saved == before < loop.position.update
    if inputs.journal.behind(patience=0) if first else inputs.journal.behind():
        write(inputs, loop.position, "boundary", reason="progress")
    loop.saver.look(loop.position)
    loop.profiling = loop.profiling and not stop_profile(inputs, loop.position.update)
    return outcome


def _settle_batch(
    inputs: LoopInputs,
    loop: LoopState,
    batch: ScheduledBatch,
    values: dict[str, Any],
    stop: StopRequest,
    *,
    seconds: float,
) -> Outcome:
    """Judge one batch; journal it if it is suspect, else record its update."""
    loop.settled = batch
    faults.spend_batch(update=batch.update, cursor=batch.before)
    stop.hear(values.pop("vote", 0))
    loop.position, trigger = _judge(inputs, loop.position, batch, values)
    if loop.position.recent[-1].suspect and inputs.guard.policy != "off":
        loop.history.suspects.append(_journal_suspect(inputs, loop.position, loop.history, batch, values))
        loop.in_flight = []
        _give_up_skipping(inputs, loop.position)
        return Outcome(trigger, restart=True)
    loop.watch.compare(inputs, loop.position.update, values["loss"], sampled(values))
    _record(inputs, loop.position, batch, values, seconds=seconds, steady=loop.steady)
    replay = loop.history.replay
    if not trigger and replay is not None and loop.position.cursor >= replay["trigger"]["cursor"]:
        loop.history = rollback.conclude(inputs, loop.position, loop.history, differs=loop.watch.differs)
    return Outcome(trigger)


def _judge(
    inputs: LoopInputs, position: Position, batch: ScheduledBatch, values: dict[str, Any]
) -> tuple[Position, str]:
    """Return the position after a batch, and the guard's rule that it triggers (empty: none)."""
    config, off = inputs.guard, inputs.guard.policy == "off"
    suspect, hard = (values["suspect"], values["hard"]) if not off else (False, False)
    tried = Tried(position.update, batch.before, batch.cursor, suspect, hard)
    position = replace(
        position,
        update=position.update + (not suspect),
        cursor=batch.cursor,
        wall_step=position.wall_step + 1,
        recent=(*position.recent, tried)[-detector.remembered(config) :],
    )
    if config.policy != "rollback":
        return position, ""
    broken = (
        suspect and detector.reason(values, config) == detector.NOT_FINITE and not all_finite(position.state.params)
    )
    diverged = values["diverged"] and not suspect
    return position, detector.rule(position.recent, config=config, diverged=diverged, broken=bool(broken))


def _journal_suspect(
    inputs: LoopInputs, position: Position, history: History, batch: ScheduledBatch, values: dict[str, Any]
) -> dict[str, Any]:
    """Journal a batch that was not applied, with the values that the guard judged.

    Returns the record.
    """
    reason = detector.reason(values, inputs.guard)
    judged = ("loss", "grad_norm", "param_norm", "z_loss", "z_grad_norm")
    details = {name: values[name].hex() for name in judged}
    samples = inputs.samples(batch.before, batch.cursor, history)
    hard = values["hard"]
    write(inputs, position, "suspect", reason=reason, hard=hard, batch=batch.sequences, samples=samples, **details)
    inputs.console.event(
        f"update {batch.update + 1}: suspect ({reason}: loss {values['loss']:.4g}, z {values['z_loss']:.1f}; gradient "
        f"norm {values['grad_norm']:.3g}, z {values['z_grad_norm']:.1f}), not applied"
    )
    return inputs.journal.records[-1]


def _give_up_skipping(inputs: LoopInputs, position: Position) -> None:
    """Check the number of batches that the policy `skip` has left out in a row.

    Raises:
        GaveUp: It reached `guard.rejected_in_a_row`.
    """
    bound = inputs.guard.rejected_in_a_row
    last = position.recent[-bound:]
    if inputs.guard.policy == "skip" and 0 < bound == len(last) and all(batch.suspect for batch in last):
        write(inputs, position, "end", status="gave up", why=f"{bound} suspects in a row")
        raise GaveUp(f"{bound} batches in a row were suspect; guard.policy=rollback would go back", position)


def _record(
    inputs: LoopInputs,
    position: Position,
    batch: ScheduledBatch,
    values: dict[str, Any],
    *,
    seconds: float,
    steady: bool,
) -> None:
    """Journal, show and record an applied update.

    The first update has no speed: most of its time is compilation.
    """
    loss, grad_norm = values["loss"], values["grad_norm"]
    journaled = {"loss": loss, "grad_norm": grad_norm, "sampled": sampled(values)}
    inputs.journal.note(update=position.update, cursor=batch.cursor, **journaled)
    tokens = inputs.tokens(position.update)
    computed = (tokens - inputs.tokens(position.update - 1)) * batch.share
    speed, share = inputs.speed.add(computed, seconds) if steady else (math.nan, math.nan)
    record = {
        "update": position.update,
        "loss": loss,
        "learning_rate": batch.learning_rate,
        "grad_norm": grad_norm,
        "batch_size": batch.sequences,
        "tokens": tokens,
        "tokens_per_second": speed,
        "mfu": share,
        "seconds": seconds,
        **{name: value for name, value in values.items() if name not in _NOT_RECORDED},
    }
    inputs.console.update(record)
    if every(inputs.train.log_every, position.update) or position.update in (1, inputs.updates):
        inputs.recorder.write(record)
    inputs.notify("update", position.update, record)
