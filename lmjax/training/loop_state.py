"""What changes from one iteration of the training loop to the next."""

from collections.abc import Generator
from dataclasses import dataclass, field

import jax

from lmjax.config.errors import RunError
from lmjax.journal.history import History
from lmjax.training.inputs import LoopInputs, Position, ScheduledBatch
from lmjax.training.saver import Saver


class Watch:
    """Compares each loss with the loss that the journal recorded for the same update earlier."""

    def __init__(self, history: History, *, resumed_at: int | None = None) -> None:
        #: The first update whose loss is different.
        self.differs: int | None = None
        self._expected = history.expected
        self._resumed_at = resumed_at

    def compare(self, inputs: LoopInputs, update: int, loss: float) -> None:
        """Compare the loss of an applied update.

        Raises:
            RunError: The first loss after a resume is different.
        """
        expected = self._expected.pop(update, None)
        if expected is None or self.differs is not None:
            return
        before = float.fromhex(expected.loss)
        tolerance = 0.0 if expected.machine == inputs.machine else inputs.tolerance
        if abs(loss - before) <= tolerance * abs(before):
            return
        self.differs = update
        inputs.console.event(f"update {update}: the loss is {loss}, the journal has {before}")
        if self._resumed_at == update - 1 and inputs.guard.canary:
            raise RunError(
                f"update {update}: the first loss after the resume is {loss}, the journal has {before}: the restored "
                "state is not the saved one, or this machine computes something else; to continue nevertheless: "
                "guard.canary=false --allow-change guard.canary"
            )


@dataclass
class LoopState:
    """The mutable state of the loop."""

    #: The training state and its three counters, after the last settled update.
    position: Position
    #: The history according to the journal.
    history: History
    watch: Watch
    saver: Saver
    #: Scheduled batches, from the position on.
    feed: Generator[ScheduledBatch, None, None]
    #: Dispatched batches with their metrics, which the host has not read yet.
    in_flight: list[tuple[list[ScheduledBatch], dict[str, jax.Array]]] = field(default_factory=list)
    #: The last settled batch.
    settled: ScheduledBatch | None = None
    #: Announced changes (batch size, mixture) before the last dispatched batch.
    regime: int | None = None
    #: The update has been compiled.
    compiled: bool = False
    #: Updates take their usual time: the one with the compilation has been settled.
    steady: bool = False
    #: A profiler trace is being recorded.
    profiling: bool = False
    #: When the last settled dispatch ended, in seconds of `time.perf_counter`.
    clock: float = 0.0
