"""Inputs of the training loop: functions, scheduled batches, the position of the run."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmjax.config import CheckpointConfig, GuardConfig, TrainConfig
from lmjax.display.console import Console
from lmjax.guard.decision import Decision
from lmjax.journal.history import History, Ranges, Tried
from lmjax.journal.journal import Journal
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.dispatch import Dispatch
from lmjax.training.events import Notify
from lmjax.training.metrics import Recorder
from lmjax.training.speed import Speed
from lmjax.training.state import State
from lmjax.training.step import Step


@dataclass(frozen=True)
class ScheduledBatch:
    """A batch on the devices, scheduled for an update."""

    #: Number of updates applied before the batch.
    update: int
    #: Cursor before the batch.
    before: int
    #: Cursor after the batch.
    cursor: int
    #: Size in sequences.
    sequences: int
    learning_rate: float
    #: Number of announced changes before the batch.
    regime: int
    #: Argument of the update (`lmjax.training.step`).
    batch: dict[str, Any]
    #: Share of the tokens of full-length samples that the rows have places for.
    share: float = 1.0


@dataclass(frozen=True)
class Position:
    """Position of a run: the state and its three counters."""

    state: State
    #: Number of updates applied.
    update: int
    #: Position in the sample order.
    cursor: int
    #: Number of batches tried; never decreases.
    wall_step: int
    #: The last batches tried, for the guard.
    recent: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class LoopInputs:
    """Everything that the loop needs. The loop knows no model, no data and no evaluator."""

    run_dir: Path
    train: TrainConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    #: Number of updates of the complete run.
    updates: int
    #: Number of sequences of the complete run.
    sequences: int
    #: How updates are dispatched to the devices.
    dispatch: Dispatch
    #: (state, batches of one dispatch) -> (state, metrics).
    step: Step
    #: (update, cursor, history) -> scheduled batches from there on, without the data that the history leaves out.
    batches: Callable[[int, int, History], Generator[ScheduledBatch, None, None]]
    #: (start, stop, history) -> ids of the samples at these positions that the history does not leave out.
    samples: Callable[[int, int, History], Ranges]
    #: (state, complete split) -> metrics.
    evaluate: Callable[[State, bool], dict[str, float]]
    #: Number of a signal -> arrays to add to a batch, so that all processes learn of it; None for a single process.
    vote: Callable[[int], dict[str, jax.Array]] | None
    #: Number of updates -> number of tokens trained on after them.
    tokens: Callable[[int], int]
    #: Computes the speed of the run.
    speed: Speed
    #: Write the report of a spike.
    autopsy: Callable[[State, ScheduledBatch, Decision], None]
    #: (update, text): add a line to the report of the spike at an update.
    conclude: Callable[[int, str], None]
    #: An evaluation was due at the first position, and the last session did not complete it.
    evaluation_due: bool
    #: What the bits of a loss depend on besides the configuration (`history.machine_of`).
    machine: tuple[Any, ...]
    #: Relative difference allowed between the first loss after a resume and the journal's, if the machine changed.
    tolerance: float
    #: Hashes of the tokenizer and the data.
    fingerprints: dict[str, str]
    #: Report an event to the callbacks.
    notify: Notify
    journal: Journal
    checkpoints: Checkpoints
    recorder: Recorder
    console: Console


class GaveUp(RuntimeError):
    """The guard has reached its bounds; the newest checkpoint is healthy."""

    def __init__(self, why: str, position: Position) -> None:
        super().__init__(why)
        #: Position at which the guard gave up.
        self.position = position


def write(inputs: LoopInputs, position: Position, event: str, **details: Any) -> None:
    """Journal an event at a position."""
    inputs.journal.write(event, wall_step=position.wall_step, update=position.update, cursor=position.cursor, **details)


def every(period: int, update: int) -> bool:
    """Whether `update` is a multiple of `period` (0: never)."""
    return period > 0 and update % period == 0
