"""Saves during training: journal records, retention, and retries of failed saves."""

import math
from dataclasses import dataclass

from lmjax.guard import decision, detector
from lmjax.journal.history import SAVING, History
from lmjax.pytrees import digest
from lmjax.training.checkpoint import CheckpointError, folders
from lmjax.training.inputs import LoopInputs, Position, write


@dataclass
class Saver:
    """The saves of one call of the loop."""

    #: The parts of the loop.
    parts: LoopInputs
    #: Update of the last save that was begun and has not failed.
    saved: int | None = None
    #: Number of consecutive failed saves.
    failures: int = 0
    #: A save failed and is to be repeated.
    retry: bool = False

    def save(self, position: Position, past: History) -> None:
        """Announce a checkpoint in the journal and start to save it.

        Raises:
            NotFinite: The state is not finite.
            CheckpointError: The previous save failed, and saves have failed too often.
        """
        parts = self.parts
        with parts.console.phase("saving"):
            self.settle(position)  # journal the result of the previous save before this one begins
            meta = {
                "update": position.update,
                "cursor": position.cursor,
                "wall_step": position.wall_step,
                "digest": digest(position.state),
                **parts.fingerprints,
            }
            # The journal has the digest of every checkpoint before the checkpoint exists.
            write(parts, position, "boundary", reason=SAVING, digest=meta["digest"])
            parts.checkpoints.save(position.state, meta, protect=self._needed(position, past))
        self.saved, self.retry = position.update, False

    def settle(self, position: Position) -> None:
        """Wait for the save in flight and record its result."""
        self.parts.checkpoints.wait()
        self.look(position)

    def look(self, position: Position) -> None:
        """Record committed checkpoints in the journal, and report a failed save.

        Raises:
            CheckpointError: Saves have failed too often.
        """
        parts = self.parts
        for checkpoint in parts.checkpoints.committed():
            meta = checkpoint.meta
            parts.journal.write(
                "checkpoint",
                wall_step=position.wall_step,
                update=meta["update"],
                cursor=meta["cursor"],
                digest=meta["digest"],
            )
            self.failures = 0
            parts.notify("checkpoint", meta["update"], {"digest": meta["digest"]})
        problem = parts.checkpoints.failure()
        if problem is None:
            return
        self.failures += 1
        self.retry = self.failures <= parts.checkpoint.retries and parts.vote is None
        self.saved = None
        write(parts, position, "fallback", problems=[problem])
        if not self.retry and parts.checkpoint.on_failure == "stop":
            raise CheckpointError(f"{problem}; tried {self.failures} times; older checkpoints are intact, resume later")
        parts.console.event(f"{problem}; {'trying again' if self.retry else 'training continues without it'}")

    def finish(self, position: Position, past: History) -> None:
        """Wait for the save in flight and repeat it if it failed.

        Raises:
            CheckpointError: The final state could not be saved.
        """
        with self.parts.console.phase("saving"):
            self.settle(position)
        self.failures = 0  # the final save has as many attempts as any other
        self.retry = self.saved is None and self.parts.vote is None
        while self.retry:
            self.save(position, past)
            self.settle(position)
        if self.saved is None:
            raise CheckpointError(f"update {position.update} could not be saved; older checkpoints are intact")

    def _needed(self, position: Position, past: History) -> list[int]:
        """Return the checkpoints that retention must preserve for rollbacks.

        These are the two newest that a rollback could go back to for the earliest possible onset of a future spike,
        and those that may become such.
        """
        config, every = self.parts.guard, self.parts.checkpoint.every
        updates = [int(folder.name) for folder in folders(self.parts.checkpoints.folder)]
        onset = position.update - detector.remembered(config)
        sure = decision.targets(past, updates, onset=onset, every=every, config=config)
        possible = decision.targets(past, updates, onset=math.inf, every=every, config=config)
        return sorted({*possible} - {*sure[:-2]})
