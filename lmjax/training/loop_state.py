"""What changes from one iteration of the training loop to the next."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from lmjax.config.errors import RunError
from lmjax.journal.history import OTHER_REWARDS, History, Sampled
from lmjax.training.inputs import LoopInputs, Position, ScheduledBatch
from lmjax.training.saver import Saver

_OTHER_STATE = "the restored state is not the saved one, or this machine computes something else"


class Watch:
    """Compares each loss with the loss that the journal recorded for the same update earlier."""

    def __init__(self, history: History, *, resumed_at: int | None = None) -> None:
        #: The first update whose loss is different.
        self.differs: int | None = None
        self._expected = history.expected
        self._resumed_at = resumed_at

    def compare(self, inputs: LoopInputs, update: int, loss: float, now: Sampled | None = None) -> None:
        """Compare the loss of an applied update, and what was sampled in it.

        Raises:
            RunError: The first loss after a resume is different, or the first answers on the same machine.
        """
        expected = self._expected.pop(update, None)
        if expected is None or self.differs is not None:
            return
        if now is not None and expected.sampled is not None and now.tokens != expected.sampled.tokens:
            self._other_answers(inputs, update, same_machine=expected.machine == inputs.machine)
            return
        before = float.fromhex(expected.loss)
        tolerance = 0.0 if expected.machine == inputs.machine else inputs.tolerance
        if abs(loss - before) <= tolerance * abs(before):
            return
        self.differs = update
        inputs.console.event(f"update {update}: the loss is {loss}, the journal has {before}")
        if self._resumed_at == update - 1 and inputs.guard.canary:
            other_rewards = now is not None and expected.sampled is not None and now.reward != expected.sampled.reward
            raise RunError(
                f"update {update}: the first loss after the resume is {loss}, the journal has {before}: "
                f"{OTHER_REWARDS if other_rewards else _OTHER_STATE}; to continue nevertheless: "
                "guard.canary=false --allow-change guard.canary"
            )

    def _other_answers(self, inputs: LoopInputs, update: int, *, same_machine: bool) -> None:
        """Report that an update sampled other answers: losses can be compared no more.

        On another machine this is expected, since a different last digit of a logit may select another token.
        """
        self.differs = update
        reason = "" if same_machine else ", as is to be expected on another machine"
        inputs.console.event(f"update {update}: the answers are not those in the journal{reason}")
        if same_machine and self._resumed_at == update - 1 and inputs.guard.canary:
            raise RunError(
                f"update {update}: the first answers after the resume are not those in the journal: {_OTHER_STATE}; to "
                "continue nevertheless: guard.canary=false --allow-change guard.canary"
            )


def sampled(values: Mapping[str, Any]) -> Sampled | None:
    """Return what an update sampled, from its metrics; None if it samples nothing."""
    if "tokens_sha256" not in values:
        return None
    return Sampled(values["reward"].hex(), values["kl"].hex(), values["tokens_sha256"])


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
