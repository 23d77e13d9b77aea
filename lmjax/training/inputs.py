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
    """One batch on the devices: the `update` it is meant for, the cursors before and behind it, its size in
    sequences, how many announced changes came before it (`regime`), and the share of a whole sample's tokens that its
    rows have places for."""

    update: int
    before: int
    cursor: int
    sequences: int
    learning_rate: float
    regime: int
    batch: dict[str, Any]
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
    """What the loop is handed; it knows no model, no data and no evaluator.

    in_turn: an update is sent off when the one before is settled: of two that wait for a CPU both hold their memory.
    vote: what to add to a batch so that all processes hear of a signal (by number); None for a single process.
    together: so many updates are sent off at once, at most. step: the jitted update, for as many batches in turn.
    batches: those from (update, cursor) on, with what a history decided. samples: the ids that stand at positions
    from..to and are not left out already. evaluate: (state, whole split) -> metrics.
    autopsy: writes a report of a spike: (state, batch, decision). conclude: adds a line to the report of an update.
    tokens: trained on after so many updates. sequences: of the whole run. peak_flops: of all devices together.
    machine: what the bits depend on, as `history.machine_of` tells it; tolerance: by how much, relative, the first loss
    after a resume may differ from the journal's where that was another machine.
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
