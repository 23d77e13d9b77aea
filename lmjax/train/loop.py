"""The training loop: the only place of a run with side effects. It reads top to bottom.

Three counters, never mixed up: `update` (optimizer updates applied), `cursor` (position in the sample order),
`wall_step` (batches tried; never goes back). All else is a pure function of them and of the configuration.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from lmjax.config import CheckpointConfig, TrainConfig
from lmjax.console import Console
from lmjax.pytrees import digest
from lmjax.train.checkpoint import Checkpoints
from lmjax.train.journal import Journal
from lmjax.train.metrics import Recorder
from lmjax.train.signals import StopRequest
from lmjax.train.state import State

MAX_REJECTED_IN_A_ROW = 10


@dataclass(frozen=True)
class Fed:
    """One batch on the devices: `update` it is meant for, `cursor` after it, its size in sequences and tokens."""

    update: int
    cursor: int
    sequences: int
    learning_rate: float
    batch: dict[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run stands: the state and its three counters."""

    state: State
    update: int
    cursor: int
    wall_step: int


@dataclass(frozen=True)
class Parts:
    """What the loop is handed; it knows no model, no data and no evaluator.

    step: the jitted update. batches: (update, cursor) -> the batches from there on. evaluate: (state, whole split)
    -> metrics. tokens: trained on after so many updates. peak_flops: of all devices together.
    """

    run_dir: Path
    train: TrainConfig
    checkpoint: CheckpointConfig
    updates: int
    tokens: Callable[[int], int]
    flops_per_token: float
    peak_flops: float
    step: Callable[[State, dict[str, Any]], tuple[State, dict[str, jax.Array]]]
    batches: Callable[[int, int], Generator[Fed, None, None]]
    evaluate: Callable[[State, bool], dict[str, float]]
    fingerprints: dict[str, str]
    journal: Journal
    checkpoints: Checkpoints
    recorder: Recorder
    console: Console


class GaveUp(RuntimeError):
    """The guard cannot help any more; the newest checkpoint is the one to look at."""


def train(parts: Parts, position: Position, *, stop: StopRequest) -> Position:
    """Trains from `position` to the end of the run, or until `stop` is requested; the last state is saved.

    GaveUp: update after update was rejected. CheckpointError: a checkpoint could not be written.
    """
    feed = parts.batches(position.update, position.cursor)
    in_flight: list[tuple[Fed, dict[str, jax.Array]]] = []
    rejected_in_a_row, sequences, compiled, steady = 0, 0, False, False
    saved_at = position.update or None  # what a run was resumed from is saved already
    clock = time.perf_counter()
    stopping = False
    try:
        while position.update < parts.updates and not stopping:
            # Read once: a signal that comes later in this round is seen in the next one.
            stopping = bool(stop.name)

            # 1. Dispatch. The host does not wait: metrics are fetched one update late.
            due = stopping
            if not stopping:
                fed = next(feed)
                sequences = _announce(parts, position, fed, before=sequences)
                _start_profile(parts, fed.update)
                with nullcontext() if compiled else parts.console.phase("compiling"):
                    with jax.transfer_guard("disallow"):
                        state, metrics = parts.step(position.state, fed.batch)
                    if not compiled:
                        jax.block_until_ready(metrics)
                        compiled = True
                position = replace(position, state=state)
                in_flight.append((fed, metrics))
                due = _due(parts, fed.update + 1)

            # 2. Settle what has finished. A rejected batch left the state as it was, and so did the one sent after
            #    it, which was meant for the next update: the same update is tried again with the data that follow.
            while len(in_flight) > (0 if due else 1):
                fed, metrics = in_flight.pop(0)
                values = {name: value.item() for name, value in jax.device_get(metrics).items()}
                position = replace(position, cursor=fed.cursor, wall_step=position.wall_step + 1)
                if values["skipped"]:
                    rejected_in_a_row += 1
                    _reject(parts, position, fed, values, in_a_row=rejected_in_a_row)
                    feed.close()
                    feed, in_flight, due = parts.batches(position.update, position.cursor), [], stopping
                else:
                    rejected_in_a_row = 0
                    position = replace(position, update=fed.update + 1)
                    clock, started = time.perf_counter(), clock
                    _record(parts, position, fed, values, seconds=clock - started, steady=steady)
                    steady = True
            _journal_checkpoints(parts, position)
            _stop_profile(parts, position.update)

            # 3. Save, then evaluate: an evaluation that fails or is interrupted loses nothing.
            if due and not stopping:
                if _every(parts.checkpoint.every, position.update) or position.update == parts.updates:
                    saved_at = _save(parts, position)
                if _every(parts.train.evaluate_every, position.update) and position.update < parts.updates:
                    evaluate(parts, position, whole=False)
                clock = time.perf_counter()
    finally:
        feed.close()

    if stopping:
        if saved_at != position.update:
            _save(parts, position)
        write(parts, position, "signal", name=stop.name)
    with parts.console.phase("saving"):
        parts.checkpoints.wait()
    _journal_checkpoints(parts, position)
    return position


def _due(parts: Parts, update: int) -> bool:
    """Something happens once `update` updates are applied, so the device must have caught up."""
    return (
        update == parts.updates
        or _every(parts.checkpoint.every, update)
        or _every(parts.train.evaluate_every, update)
        or update in parts.train.profile
    )


def _every(period: int, update: int) -> bool:
    return period > 0 and update % period == 0


def write(parts: Parts, position: Position, event: str, **details: Any) -> None:
    """Journals an event at a position."""
    parts.journal.write(event, wall_step=position.wall_step, update=position.update, cursor=position.cursor, **details)


def _announce(parts: Parts, position: Position, fed: Fed, *, before: int) -> int:
    """Journals a change of batch size; returns the new size in sequences."""
    if before not in (0, fed.sequences):
        write(parts, position, "boundary", batch_before=before, batch_after=fed.sequences)
    return fed.sequences


def _reject(parts: Parts, position: Position, fed: Fed, values: dict[str, float], *, in_a_row: int) -> None:
    """Journals an update that was not applied. GaveUp after too many in a row."""
    details = {"loss": float(values["loss"]).hex(), "grad_norm": float(values["grad_norm"]).hex()}
    write(parts, position, "suspect", reason="not finite", batch=fed.sequences, **details)
    parts.console.event(f"update {fed.update + 1}: loss {values['loss']}, not applied; going on with the next data")
    if in_a_row >= MAX_REJECTED_IN_A_ROW:
        write(parts, position, "end", status="gave up")
        raise GaveUp(f"{in_a_row} batches in a row gave a loss or gradient that is not finite")


def _record(
    parts: Parts, position: Position, fed: Fed, values: dict[str, float], *, seconds: float, steady: bool
) -> None:
    """Shows and records an applied update; the first one, whose time is mostly compilation, has no speed."""
    tokens = parts.tokens(position.update)
    speed = (tokens - parts.tokens(position.update - 1)) / max(seconds, 1e-9) if steady else math.nan
    record = {
        "update": position.update,
        "loss": values["loss"],
        "learning_rate": fed.learning_rate,
        "grad_norm": values["grad_norm"],
        "batch_size": fed.sequences,
        "tokens": tokens,
        "tokens_per_second": speed,
        "mfu": speed * parts.flops_per_token / parts.peak_flops,
        "seconds": seconds,
        **{name: value for name, value in values.items() if name not in ("loss", "grad_norm")},
    }
    parts.console.update(record)
    if _every(parts.train.log_every, position.update) or position.update in (1, parts.updates):
        parts.recorder.write(record)


def _save(parts: Parts, position: Position) -> int:
    """Starts a checkpoint; returns its update."""
    with parts.console.phase("saving"):
        meta = {
            "update": position.update,
            "cursor": position.cursor,
            "wall_step": position.wall_step,
            "digest": digest(position.state),
            **parts.fingerprints,
        }
        parts.checkpoints.save(position.state, meta)
    return position.update


def _journal_checkpoints(parts: Parts, position: Position) -> None:
    for checkpoint in parts.checkpoints.committed():
        meta = checkpoint.meta
        parts.journal.write(
            "checkpoint",
            wall_step=position.wall_step,
            update=meta["update"],
            cursor=meta["cursor"],
            digest=meta["digest"],
        )


def evaluate(parts: Parts, position: Position, *, whole: bool) -> dict[str, float]:
    """Evaluates, records and returns the metrics; a failure is said aloud, gives none, and costs nothing else."""
    try:
        with parts.console.phase("evaluating"):
            values = parts.evaluate(position.state, whole)
    except Exception as error:
        parts.console.event(f"update {position.update}: the evaluation failed ({error}); training goes on")
        return {}
    record = {"update": position.update, "tokens": parts.tokens(position.update), **values}
    parts.recorder.write(record)
    parts.console.update(record)
    return values


def _start_profile(parts: Parts, update: int) -> None:
    """Traces the updates first..last of `train.profile` (counted from 1) into `<run>/profile`."""
    if parts.train.profile and update == parts.train.profile[0] - 1:
        jax.profiler.start_trace(str(parts.run_dir / "profile"))


def _stop_profile(parts: Parts, updates: int) -> None:
    if parts.train.profile and updates == parts.train.profile[1]:
        jax.profiler.stop_trace()
        parts.console.event(f"profile of updates {parts.train.profile}: {parts.run_dir / 'profile'}")
