"""Going back: announced in the journal first, so that a crash at any point is finished by the next start."""

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
from lmjax.training import checkpoint
from lmjax.training.inputs import GaveUp, LoopInputs, Position, ScheduledBatch, write
from lmjax.training.state import abstract_state


def recover(
    parts: LoopInputs, position: Position, past: History, fed: ScheduledBatch, *, rule: str
) -> tuple[Position, History]:
    """Goes back to a healthy checkpoint because `rule` fired on the batch `fed`: where the run then stands.

    GaveUp: the bounds are reached; the newest checkpoint is then a healthy one.
    """
    decision = _decide(parts, position, past, rule, batch=fed.sequences)
    with parts.console.phase("autopsy"):
        try:
            parts.autopsy(position.state, fed, decision)
        except Exception as error:  # a report is not worth a run
            parts.console.event(f"no report of the spike at update {position.update}: {error}")
    if decision.verdict:
        _give_up(parts, position, decision)
    faults.reach("rollback")
    write(parts, position, "rollback", **decision.fields())
    faults.reach("rollback.announced")
    _say(parts, decision)
    return _go_back(parts, position)


def finish(journal: Journal, root: Path, pending: dict[str, Any], *, samples: Any) -> list[int]:
    """Does what a rollback record announced: sets later checkpoints aside, then says so. Returns their updates.

    root: of the checkpoints. samples: (from, to position) -> sample ids.
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
    """Ends a replay that went past the trigger without a spike; `differs`: the first update with other bits."""
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
    """What to do, among the checkpoints whose files are whole."""
    damaged: set[str] = set()
    while True:
        found = [path for path in checkpoint.folders(parts.checkpoints.folder) if path.name not in damaged]
        cursors = {}
        for folder in found:
            try:
                cursors[int(folder.name)] = checkpoint.read(folder).meta["cursor"]
            except (OSError, ValueError, KeyError):
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
    found, state, problems = checkpoint.load(root, abstract, digests=past.digests)
    counters = {"update": found.meta["update"], "cursor": found.meta["cursor"], "wall_step": position.wall_step}
    if problems:
        parts.console.event("fell back to an older checkpoint: " + "; ".join(problems))
        parts.journal.write("fallback", **counters, problems=problems)
        set_aside(root, after=counters["update"])  # what is read again later would no longer fit the journal
    parts.checkpoints.scores = {u: loss for u, loss in parts.checkpoints.scores.items() if u <= counters["update"]}
    parts.recorder.rewind(counters["update"])
    past = fold(parts.journal.records)
    faults.reach("rollback.done")
    recent = past.recent(detector.remembered(parts.guard), cursor=counters["cursor"])
    return Position(state, **counters, recent=recent), past


def set_aside(root: Path, *, after: int) -> list[int]:
    """By the main process; the others wait."""
    processes.barrier("before quarantine")
    moved = checkpoint.quarantine(root, after=after) if processes.is_main() else []
    processes.barrier("after quarantine")
    return moved


def _say(parts: LoopInputs, decision: Decision) -> None:
    what = "to replay the same data" if decision.kind == "replay" else f"to skip {_samples(decision)} samples"
    cut = f", learning rate x {parts.guard.cut:g} for a while" if decision.cut else ""
    parts.console.event(
        f"spike at update {decision.trigger.update + 1} ({decision.rule}), begun at {decision.onset.update + 1}: "
        f"back to update {decision.target} {what}{cut}"
    )


def _samples(decision: Decision) -> str:
    assert decision.positions is not None
    return f"{decision.positions[1] - decision.positions[0]:,}"


def _give_up(parts: LoopInputs, position: Position, decision: Decision) -> None:
    """The journal says why, the healthy checkpoint becomes the newest."""
    write(parts, position, "end", status="gave up", rule=decision.rule, why=decision.verdict, target=decision.target)
    set_aside(parts.checkpoints.folder, after=decision.target)
    raise GaveUp(f"{decision.rule} at update {decision.trigger.update + 1}: {decision.verdict}", position)
