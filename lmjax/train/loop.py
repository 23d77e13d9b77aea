"""The training loop: the only place of a run with side effects. It reads top to bottom.

Three counters, never mixed up: `update` (optimizer updates applied), `cursor` (position in the sample order),
`wall_step` (batches tried; never goes back). All else is a pure function of them, the configuration and the journal.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lmjax import faults
from lmjax.pytrees import all_finite
from lmjax.train import guard, rollback
from lmjax.train.checkpoint import NotFinite
from lmjax.train.guard import Tried
from lmjax.train.history import History, fold
from lmjax.train.parts import Fed, GaveUp, Parts, Position, every, write
from lmjax.train.saving import Saver
from lmjax.train.signals import StopRequest
from lmjax.train.step import fetch
from lmjax.typed import RunError

_NOT_RECORDED = ("loss", "grad_norm", "suspect", "hard", "diverged", "skipped")  # under these names, or at all


def train(parts: Parts, position: Position, *, stop: StopRequest) -> Position:
    """Trains from `position` to the end of the run, or until `stop` is requested; the last state is saved.

    GaveUp: the guard reached its bounds. CheckpointError: a checkpoint could not be written. RunError: the machine
    does not compute what it did before the resume.
    """
    past = fold(parts.journal.records)
    watch = _Watch(past, resumed_at=position.update)
    saver = Saver(parts, saved=position.update if past.saved or position.update else None)
    feed = parts.batches(position.update, position.cursor, past)
    in_flight: list[tuple[list[Fed], dict[str, jax.Array]]] = []
    fed: Fed | None = None
    stretch: int | None = None
    compiled, steady, stopping, profiling = False, False, False, False
    clock = time.perf_counter()
    if saver.saved is None:
        saver.save(position, past)  # there is always a state to go back to
    try:
        while position.update < parts.updates and not stopping:
            # Read once: a signal that comes later in this round is seen in the next one. Several processes stop at
            # the same update, when the vote that each sent off with its batch has come back.
            stopping = bool(stop.name)

            # 1. Dispatch. The host does not wait: unless updates go in turn, metrics are fetched one dispatch late.
            due = stopping or saver.retry
            if not stopping:
                group = _take(parts, feed, most=parts.together if compiled and not due else 1)
                stretch = _announce(parts, position, group, before=stretch)
                profiling = profiling or _start_profile(parts, group[0].update)
                state = _spoil(position.state, group[0])
                with nullcontext() if compiled else parts.console.phase("compiling"):
                    if not compiled:
                        faults.reach("compile")
                    votes = {} if parts.vote is None else parts.vote(stop.number)
                    batches = [one.batch | votes for one in group]
                    with jax.transfer_guard("allow" if _on_host(batches[0]) else "disallow"):
                        state, metrics = parts.step(state, batches)
                    if not compiled:
                        jax.block_until_ready(metrics)
                        compiled = True
                position = replace(position, state=state)
                in_flight.append((group, metrics))
                due = due or _due(parts, group[-1].update + 1)

            # 2. Settle what has finished. A suspect batch left the state as it was, and so did those sent with and
            #    after it, which were meant for later updates: the same update is tried again with the data that follow.
            before, fired, restart = position.update, "", False
            while len(in_flight) > (0 if due or parts.in_turn else 1) and not fired:
                group, metrics = in_flight.pop(0)
                found = fetch(metrics, len(group))
                clock, started = time.perf_counter(), clock
                for fed, values in zip(group, found, strict=True):
                    _spend(fed)
                    stop.hear(values.pop("vote", 0))
                    position, fired = _judge(parts, position, fed, values)
                    if position.recent[-1].suspect and parts.guard.policy != "off":
                        past.suspects.append(_suspect(parts, position, past, fed, values))
                        in_flight, due, restart = [], stopping, True
                        _give_up_skipping(parts, position)
                        break
                    watch.compare(parts, position.update, values["loss"])
                    _record(parts, position, fed, values, seconds=(clock - started) / len(group), steady=steady)
                    if fired:
                        break
                    if past.replay is not None and position.cursor >= past.replay["trigger"]["cursor"]:
                        past = rollback.conclude(parts, position, past, differs=watch.differs)
                steady = steady or position.update > before
            # The first update after a save is told at once: a resume compares its loss.
            first = saver.saved == before < position.update
            if parts.journal.behind(patience=0) if first else parts.journal.behind():
                write(parts, position, "boundary", reason="progress")
            saver.look(position)
            profiling = profiling and not _stop_profile(parts, position.update)

            # 3. Save, then evaluate: an evaluation that fails or is interrupted loses nothing.
            if due and not stopping and not fired:
                try:
                    if saver.retry or _save_due(parts, position.update):
                        saver.save(position, past)
                    if every(parts.train.evaluate_every, position.update) and position.update < parts.updates:
                        evaluate(parts, position, whole=False)
                except NotFinite as error:
                    fired = _not_saved(parts, position, error)
                clock = time.perf_counter()

            # 4. Go back, if the guard says so.
            if fired:
                feed.close()
                saver.settle(position)
                assert fed is not None
                position, past = rollback.recover(parts, position, past, fed, rule=fired)
                watch, in_flight, stretch, restart = _Watch(past), [], None, True
                saver.saved, saver.retry = position.update, False
            if restart:
                feed.close()
                feed = parts.batches(position.update, position.cursor, past)
    finally:
        feed.close()

    if stopping:
        if saver.saved != position.update:
            saver.save(position, past)
        write(parts, position, "signal", name=stop.name)
    saver.finish(position, past)
    return position


def _on_host(batch: dict[str, Any]) -> bool:
    """Whether the device is to read the host's arrays: a CPU, alone."""
    return all(isinstance(array, np.ndarray) for array in jax.tree.leaves(batch["arrays"]))


def _take(parts: Parts, feed: Iterator[Fed], *, most: int) -> list[Fed]:
    """The next batches to send off at once: none beyond an update at which something happens."""

    def alone(update: int) -> bool:
        return faults.wait(("update", "params", "opt_state"), at=update + 1)

    group = [next(feed)]
    most = 1 if alone(group[0].update) else most
    while len(group) < most and not (_due(parts, group[-1].update + 1) or alone(group[-1].update + 1)):
        group.append(next(feed))
    return group


def _due(parts: Parts, update: int) -> bool:
    """Something happens once `update` updates are applied, so the device must have caught up."""
    traced = parts.train.profile
    return (
        _save_due(parts, update)
        or every(parts.train.evaluate_every, update)
        or (bool(traced) and update in (traced[0] - 1, traced[1]))
    )


def _save_due(parts: Parts, update: int) -> bool:
    return update == parts.updates or every(parts.checkpoint.every, update)


def _announce(parts: Parts, position: Position, group: list[Fed], *, before: int | None) -> int | None:
    """Journals announced changes, at which the guard starts anew; returns the last batch's stretch."""
    for fed in group:
        if before not in (None, fed.stretch):
            write(parts, position, "boundary", reason="announced change", batch=fed.sequences)
        before = fed.stretch
    return before


def _spoil(state: Any, fed: Fed) -> Any:
    """The state before an update, with the faults that a test has armed."""
    at = fed.update + 1
    faults.reach("update", at=at)
    params, opt_state = faults.change("params", state.params, at=at), faults.change("opt_state", state.opt_state, at=at)
    return state.replace(params=params, opt_state=opt_state)


def _spend(fed: Fed) -> None:
    """The faults of a batch that counts have happened: others were made ahead and are made again."""
    for point, number in (("batch", fed.update + 1), ("learning_rate", fed.update + 1), ("data", fed.before)):
        faults.spend(point, at=number)


# ---- Settling a batch -----------------------------------------------------------------------------------------------


def _judge(parts: Parts, position: Position, fed: Fed, values: dict[str, Any]) -> tuple[Position, str]:
    """The position behind a batch, and the guard's rule that it fires (empty: none)."""
    config, off = parts.guard, parts.guard.policy == "off"
    suspect, hard = (values["suspect"], values["hard"]) if not off else (False, False)
    tried = Tried(position.update, fed.before, fed.cursor, suspect, hard)
    position = replace(
        position,
        update=position.update + (not suspect),
        cursor=fed.cursor,
        wall_step=position.wall_step + 1,
        recent=(*position.recent, tried)[-guard.remembered(config) :],
    )
    if config.policy != "rollback":
        return position, ""
    broken = suspect and guard.reason(values, config) == guard.NOT_FINITE and not all_finite(position.state.params)
    diverged = values["diverged"] and not suspect
    return position, guard.rule(position.recent, config=config, diverged=diverged, broken=bool(broken))


def _suspect(parts: Parts, position: Position, past: History, fed: Fed, values: dict[str, Any]) -> dict[str, Any]:
    """Journals a batch that was not applied, with all that the guard saw; returns the record."""
    why = guard.reason(values, parts.guard)
    seen = ("loss", "grad_norm", "param_norm", "z_loss", "z_grad_norm")
    details = {name: values[name].hex() for name in seen}
    samples = parts.samples(fed.before, fed.cursor, past)
    hard = values["hard"]
    write(parts, position, "suspect", reason=why, hard=hard, batch=fed.sequences, samples=samples, **details)
    parts.console.event(
        f"update {fed.update + 1}: suspect ({why}: loss {values['loss']:.4g}, z {values['z_loss']:.1f}; gradient norm "
        f"{values['grad_norm']:.3g}, z {values['z_grad_norm']:.1f}), not applied"
    )
    return parts.journal.records[-1]


def _give_up_skipping(parts: Parts, position: Position) -> None:
    """GaveUp: a policy without rollbacks has left out too many batches in a row."""
    bound = parts.guard.rejected_in_a_row
    last = position.recent[-bound:]
    if parts.guard.policy == "skip" and len(last) == bound and all(batch.suspect for batch in last):
        write(parts, position, "end", status="gave up", why=f"{bound} suspects in a row")
        raise GaveUp(f"{bound} batches in a row were suspect; guard.policy=rollback would go back", position)


class _Watch:
    """Compares losses with those that the journal has from the time that the run was here before.

    differs: the first update whose loss is another one than then.
    """

    def __init__(self, past: History, *, resumed_at: int | None = None) -> None:
        self.differs: int | None = None
        self._expected = past.expected
        self._resumed_at = resumed_at

    def compare(self, parts: Parts, update: int, loss: float) -> None:
        """RunError: the first loss after a resume is another one than before."""
        expected = self._expected.pop(update, None)
        if expected is None or self.differs is not None:
            return
        before = float.fromhex(expected.loss)
        tolerance = 0.0 if expected.machine == parts.machine else parts.tolerance
        if abs(loss - before) <= tolerance * abs(before):
            return
        self.differs = update
        parts.console.event(f"update {update}: the loss is {loss}, and was {before} when the run was here before")
        if self._resumed_at == update - 1 and parts.guard.canary:
            raise RunError(
                f"update {update}: the first loss after the resume is {loss}, the journal has {before}: what is "
                "resumed is not what was saved, or this machine computes something else; "
                "guard.canary=false --allow-change guard.canary goes on nevertheless"
            )


def _record(
    parts: Parts, position: Position, fed: Fed, values: dict[str, Any], *, seconds: float, steady: bool
) -> None:
    """Notes an applied update for the journal, shows and records it; the first one, whose time is mostly
    compilation, has no speed."""
    loss, grad_norm = values["loss"], values["grad_norm"]
    parts.journal.note(update=position.update, cursor=fed.cursor, loss=loss, grad_norm=grad_norm)
    tokens = parts.tokens(position.update)
    computed = (tokens - parts.tokens(position.update - 1)) * fed.share
    speed = computed / max(seconds, 1e-9) if steady else math.nan
    record = {
        "update": position.update,
        "loss": loss,
        "learning_rate": fed.learning_rate,
        "grad_norm": grad_norm,
        "batch_size": fed.sequences,
        "tokens": tokens,
        "tokens_per_second": speed,
        "mfu": speed * parts.flops_per_token / parts.peak_flops,
        "seconds": seconds,
        **{name: value for name, value in values.items() if name not in _NOT_RECORDED},
    }
    parts.console.update(record)
    if every(parts.train.log_every, position.update) or position.update in (1, parts.updates):
        parts.recorder.write(record)


# ---- Around updates -------------------------------------------------------------------------------------------------


def _not_saved(parts: Parts, position: Position, error: NotFinite) -> str:
    """A state that is not finite: what the guard makes of it. NotFinite: nothing."""
    parts.console.event(str(error))
    if parts.guard.policy == "rollback":
        return guard.PARAMETERS
    if position.update == parts.updates:
        raise error
    return ""


def evaluate(parts: Parts, position: Position, *, whole: bool) -> dict[str, float]:
    """Evaluates, records and returns the metrics; a failure is said aloud, gives none, and costs nothing else."""
    try:
        faults.reach("evaluate")
        with parts.console.phase("evaluating"):
            values = parts.evaluate(position.state, whole)
    except Exception as error:
        parts.console.event(f"update {position.update}: the evaluation failed ({error}); training goes on")
        return {}
    record = {"update": position.update, "tokens": parts.tokens(position.update), **values}
    parts.recorder.write(record)
    parts.console.update(record)
    if "val_loss" in values:
        parts.checkpoints.scores[position.update] = values["val_loss"]
    return values


def _start_profile(parts: Parts, update: int) -> bool:
    """Traces the updates first..last of `train.profile` (counted from 1), as the main process has them, into
    `<run>/profile`; whether it begins."""
    begins = bool(parts.train.profile) and update == parts.train.profile[0] - 1 and jax.process_index() == 0
    if begins:
        jax.profiler.start_trace(str(parts.run_dir / "profile"))
    return begins


def _stop_profile(parts: Parts, updates: int) -> bool:
    """Whether the trace has ended."""
    ends = updates >= parts.train.profile[1]
    if ends:
        jax.profiler.stop_trace()
        parts.console.event(f"profile of updates {parts.train.profile}: {parts.run_dir / 'profile'}")
    return ends
