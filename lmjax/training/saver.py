"""Saves during training: what is journaled, what is kept, and what happens when a save fails."""

import math
from dataclasses import dataclass

from lmjax.guard import decision, detector
from lmjax.journal.history import SAVING, History
from lmjax.pytrees import digest
from lmjax.training.checkpoint import CheckpointError, folders
from lmjax.training.inputs import LoopInputs, Position, write


@dataclass
class Saver:
    """The saves of one call of the loop. saved: the update of the last save begun. retry: one failed, and is due."""

    parts: LoopInputs
    saved: int | None = None
    failures: int = 0
    retry: bool = False

    def save(self, position: Position, past: History) -> None:
        """Starts a checkpoint, announced in the journal.

        NotFinite: the state is not worth saving. CheckpointError: the save before failed, and too often.
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
            # Whatever a checkpoint contains, the journal knows before it.
            write(parts, position, "boundary", reason=SAVING, digest=meta["digest"])
            parts.checkpoints.save(position.state, meta, protect=self._needed(position, past))
        self.saved, self.retry = position.update, False

    def settle(self, position: Position) -> None:
        """Waits for the save in flight, and looks."""
        self.parts.checkpoints.wait()
        self.look(position)

    def look(self, position: Position) -> None:
        """Journals what has been committed and says aloud what failed. CheckpointError: it failed too often."""
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
        problem = parts.checkpoints.failure()
        if problem is None:
            return
        self.failures += 1
        self.retry = self.failures <= parts.checkpoint.retries and parts.vote is None
        self.saved = None
        write(parts, position, "fallback", problems=[problem])
        if not self.retry and parts.checkpoint.on_failure == "stop":
            raise CheckpointError(f"{problem}; tried {self.failures} times; the older checkpoints stand, resume later")
        parts.console.event(f"{problem}; {'trying again' if self.retry else 'training continues without it'}")

    def finish(self, position: Position, past: History) -> None:
        """Waits for the save in flight and tries again what failed. CheckpointError: the end could not be saved."""
        with self.parts.console.phase("saving"):
            self.settle(position)
        self.failures = 0  # the end is tried as often as any
        self.retry = self.saved is None and self.parts.vote is None
        while self.retry:
            self.save(position, past)
            self.settle(position)
        if self.saved is None:
            raise CheckpointError(f"update {position.update} could not be saved; the older checkpoints stand")

    def _needed(self, position: Position, past: History) -> list[int]:
        """The checkpoints that retention must keep for rollbacks.

        These are the two newest to which a rollback could go back, however early a spike seen from now on began, and
        those that may become such.
        """
        config, every = self.parts.guard, self.parts.checkpoint.every
        updates = [int(folder.name) for folder in folders(self.parts.checkpoints.folder)]
        onset = position.update - detector.remembered(config)
        sure = decision.targets(past, updates, onset=onset, every=every, config=config)
        possible = decision.targets(past, updates, onset=math.inf, every=every, config=config)
        return sorted({*possible} - {*sure[:-2]})
