"""Rollback to a healthy checkpoint.

It is announced in the journal first. After a crash at any point, the next start finishes it.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lmjax.guard import detector
from lmjax.guard.decision import Decision, decide
from lmjax.journal.history import ROLLED_BACK, TRANSIENT, History, fold
from lmjax.journal.journal import Journal
from lmjax.parallel import processes
from lmjax.system import faults
from lmjax.system.files import sync_folder
from lmjax.training import checkpoint
from lmjax.training.inputs import GaveUp, LoopInputs, Position, ScheduledBatch, write
from lmjax.training.state import abstract_state


def recover(
    parts: LoopInputs, position: Position, past: History, fed: ScheduledBatch, *, rule: str
) -> tuple[Position, History]:
    """Go back to a healthy checkpoint because `rule` fired on a batch.

    Args:
        parts: The parts of the loop.
        position: The run's position.
        past: The run's history.
        fed: The batch.
        rule: The rule.

    Returns:
        The position and the history after the rollback.

    Raises:
        GaveUp: A limit is reached; the newest checkpoint is then a healthy one.
    """
    decision = _decide(parts, position, past, rule, batch=fed.sequences)
    with parts.console.phase("autopsy"):
        try:
            parts.autopsy(position.state, fed, decision)
        except Exception as error:  # a failed report must not stop the run
            parts.console.event(f"no report of the spike at update {position.update}: {error}")
    if decision.verdict:
        _give_up(parts, position, decision)
    faults.reach("rollback")
    write(parts, position, "rollback", **decision.fields())
    faults.reach("rollback.announced")
    _say(parts, decision)
    return _go_back(parts, position)


def finish(journal: Journal, root: Path, pending: dict[str, Any], *, samples: Any) -> list[int]:
    """Execute an announced rollback: quarantine later checkpoints, then record that.

    Args:
        journal: The run's journal.
        root: Folder of the checkpoints.
        pending: The record that announced the rollback.
        samples: Maps (from, to position) to sample ids.

    Returns:
        The updates of the quarantined checkpoints.
    """
    moved = set_aside(root, after=pending["target"])
    counters = {
        "wall_step": journal.wall_step,
        "update": pending["target"],
        "cursor": pending["target_cursor"],
    }
    if pending["kind"] == "skip":
        start, stop = pending["positions"]
        journal.write("skip", **counters, positions=[start, stop], samples=samples(start, stop), quarantined=moved)
    else:
        journal.write("boundary", **counters, reason=ROLLED_BACK, quarantined=moved)
    return moved


def conclude(parts: LoopInputs, position: Position, past: History, *, differs: int | None) -> History:
    """End a replay that passed the trigger without a spike.

    Args:
        parts: The parts of the loop.
        position: The run's position.
        past: The run's history.
        differs: The first update whose bits differ from those before the rollback.
    """
    assert past.replay is not None
    write(parts, position, "boundary", reason=TRANSIENT, differs=differs)
    where = f"; the bits first differed at update {differs}" if differs else ""
    text = f"Replayed: the spike did not come again, so the data stay{where}."
    parts.console.event(f"update {position.update}: {text}")
    try:
        parts.conclude(past.replay["trigger"]["update"], text)
    except OSError as error:
        parts.console.event(f"no verdict in the report of the spike: {error}")
    return replace(past, replay=None)


def _decide(parts: LoopInputs, position: Position, past: History, rule: str, *, batch: int) -> Decision:
    """Decide what to do, considering the checkpoints whose files are intact."""
    damaged: set[str] = set()
    while True:
        candidates = [path for path in checkpoint.folders(parts.checkpoints.folder) if path.name not in damaged]
        cursors = {}
        for folder in candidates:
            try:
                cursors[int(folder.name)] = checkpoint.read(folder).meta["cursor"]
            except checkpoint.CheckpointError:
                damaged.add(folder.name)
        if not cursors:
            raise checkpoint.CheckpointError(f"a rollback is due ({rule}), but no checkpoint can be read")
        decision = decide(
            past,
            position.recent,
            rule,
            checkpoints=cursors,
            batch=batch,
            samples=parts.sequences,
            every=parts.checkpoint.every,
            config=parts.guard,
        )
        name = str(decision.target)
        problem = checkpoint.verify(parts.checkpoints.folder / name)
        if problem is None:
            return decision
        damaged.add(name)
        parts.console.event(f"checkpoint {name}: {problem}; going back further")


def _go_back(parts: LoopInputs, position: Position) -> tuple[Position, History]:
    past = fold(parts.journal.records)
    assert past.pending is not None
    root = parts.checkpoints.folder
    finish(parts.journal, root, past.pending, samples=lambda start, stop: parts.samples(start, stop, past))
    faults.reach("rollback.restore")
    faults.over()
    abstract = abstract_state(position.state)
    jax.tree.map(lambda leaf: leaf.delete(), position.state)  # two states may not fit
    loaded, state, problems = checkpoint.load(root, abstract, announced=past.announced)
    counters = {"update": loaded.meta["update"], "cursor": loaded.meta["cursor"], "wall_step": position.wall_step}
    if problems:
        parts.console.event("fell back to an older checkpoint: " + "; ".join(problems))
        parts.journal.write("fallback", **counters, problems=problems)
        set_aside(root, after=counters["update"])  # these checkpoints would contradict the journal later
    parts.checkpoints.scores = {u: loss for u, loss in parts.checkpoints.scores.items() if u <= counters["update"]}
    parts.recorder.rewind(counters["update"])
    past = fold(parts.journal.records)
    faults.reach("rollback.done")
    recent = past.recent(detector.remembered(parts.guard), cursor=counters["cursor"])
    return Position(state, **counters, recent=recent), past


def set_aside(root: Path, *, after: int) -> list[int]:
    """Quarantine the checkpoints after an update.

    The main process moves them, and the others wait.
    """
    processes.barrier("before quarantine")
    moved = quarantine(root, after=after) if processes.is_main() else []
    processes.barrier("after quarantine")
    return moved


def quarantine(root: Path, *, after: int) -> list[int]:
    """Move the checkpoints after update `after` to `quarantine/`, newest first.

    After a crash, another call moves the remaining checkpoints. Folders already in `quarantine/` retain their names.

    Returns:
        The updates of the moved checkpoints.
    """
    moved = []
    for folder in reversed(checkpoint.folders(root)):
        if int(folder.name) <= after:
            break
        faults.reach("rollback.quarantine")
        aside = root / "quarantine"
        aside.mkdir(exist_ok=True)
        names = (f"{folder.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 10_000))))
        os.replace(folder, next(aside / name for name in names if not (aside / name).exists()))
        moved.append(int(folder.name))
    sync_folder(root)
    return moved


def _say(parts: LoopInputs, decision: Decision) -> None:
    action = "to replay the same data" if decision.kind == "replay" else f"to skip {_samples(decision)} samples"
    cut = f", learning rate x {parts.guard.cut:g} for a while" if decision.cut else ""
    parts.console.event(
        f"spike at update {decision.trigger.update + 1} ({decision.rule}), begun at {decision.onset.update + 1}: "
        f"back to update {decision.target} {action}{cut}"
    )


def _samples(decision: Decision) -> str:
    assert decision.positions is not None
    return f"{decision.positions[1] - decision.positions[0]:,}"


def _give_up(parts: LoopInputs, position: Position, decision: Decision) -> None:
    """Record the reason in the journal and make the healthy checkpoint the newest."""
    write(parts, position, "end", status="gave up", rule=decision.rule, why=decision.verdict, target=decision.target)
    set_aside(parts.checkpoints.folder, after=decision.target)
    raise GaveUp(f"{decision.rule} at update {decision.trigger.update + 1}: {decision.verdict}", position)
