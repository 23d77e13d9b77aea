"""What the loop works with and on: the functions it is handed, a batch on its way, where the run stands."""

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
from lmjax.training.metrics import Recorder
from lmjax.training.state import State
from lmjax.training.step import Step


@dataclass(frozen=True)
class ScheduledBatch:
    """One batch on the devices."""

    #: Update that the batch is meant for.
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
    batch: dict[str, Any]
    #: Share of a full-length sample's tokens that the rows have places for.
    share: float = 1.0


@dataclass(frozen=True)
class Position:
    """Where a run stands: the state, its three counters, and the last batches tried, for the guard."""

    state: State
    update: int
    cursor: int
    wall_step: int
    recent: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class LoopInputs:
    """Everything the loop needs; it knows no model, no data and no evaluator.

    in_turn: wait for each update before dispatching the next. On a CPU, two queued updates would both hold their
        memory.
    vote: arrays to add to a batch so that all processes learn of a signal (by number); None for a single process.
    together: maximum number of updates in one dispatch. step: the jitted update, for one dispatch.
    batches: scheduled batches from (update, cursor) on, with what a history decided. samples: the ids at positions
        from..to that are not already left out. evaluate: (state, complete split) -> metrics.
    autopsy: write the report of a spike: (state, batch, decision). conclude: add a line to the report of an update.
    tokens: number of tokens trained on after an update. sequences: of the complete run. peak_flops: of all devices.
    machine: what the bits depend on (`history.machine_of`). tolerance: relative difference allowed between the first
        loss after a resume and the journal's, if that was another machine.
    """

    run_dir: Path
    train: TrainConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    updates: int
    sequences: int
    in_turn: bool
    vote: Callable[[int], dict[str, jax.Array]] | None
    tokens: Callable[[int], int]
    flops_per_token: float
    peak_flops: float
    together: int
    step: Step
    batches: Callable[[int, int, History], Generator[ScheduledBatch, None, None]]
    samples: Callable[[int, int, History], Ranges]
    evaluate: Callable[[State, bool], dict[str, float]]
    autopsy: Callable[[State, ScheduledBatch, Decision], None]
    conclude: Callable[[int, str], None]
    machine: tuple[Any, ...]
    tolerance: float
    fingerprints: dict[str, str]
    journal: Journal
    checkpoints: Checkpoints
    recorder: Recorder
    console: Console


class GaveUp(RuntimeError):
    """The guard cannot help any more; the newest checkpoint is a healthy one. position: where it gave up."""

    def __init__(self, why: str, position: Position) -> None:
        super().__init__(why)
        self.position = position


def write(parts: LoopInputs, position: Position, event: str, **details: Any) -> None:
    """Journals an event at a position."""
    parts.journal.write(event, wall_step=position.wall_step, update=position.update, cursor=position.cursor, **details)


def every(period: int, update: int) -> bool:
    """Whether `update` is one of each `period` (0: never)."""
    return period > 0 and update % period == 0
