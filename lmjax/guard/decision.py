"""Decisions about a spike: the rollback target, the data to skip, when to give up.

All functions are pure. PaLM (Chowdhery et al. 2022, 5.1) went back about 100 steps and skipped 200 to 500 batches;
GLM-130B and BLOOM did the same by hand. Here the first attempt skips few samples, and later attempts skip more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.journal.history import History, Tried


@dataclass(frozen=True)
class Decision:
    """A rollback."""

    #: The rule that triggered it.
    rule: str
    #: `replay` the same data (the spike may be transient) or `skip` them.
    kind: str
    #: The batch with which the spike began.
    onset: Tried
    #: The batch at which the rule fired.
    trigger: Tried
    #: The update to go back to.
    target: int
    #: The cursor of the target.
    target_cursor: int
    #: Number of this attempt in its neighbourhood, from 1.
    attempt: int
    #: Level of escalation, 1 to 3.
    level: int
    #: A replay reproduced the spike.
    reproduced: bool
    #: Half-open range of positions that a skip leaves out.
    positions: tuple[int, int] | None = None
    #: (update, factor, updates) of a cut of the learning rate.
    cut: tuple[int, float, int] | None = None
    #: Why the guard gives up; empty if it does not.
    verdict: str = ""

    def fields(self) -> dict[str, Any]:
        """Return the fields of a journal record; `onset` has the update and the cursor before it."""
        fields = asdict(self)
        fields["onset"] = {"update": self.onset.update, "cursor": self.onset.before}
        fields["trigger"] = {"update": self.trigger.update, "cursor": self.trigger.cursor}
        return fields


def decide(
    past: History,
    recent: Sequence[Tried],
    rule: str,
    *,
    checkpoints: Mapping[int, int],
    batch: int,
    samples: int,
    every: int,
    config: GuardConfig,
) -> Decision:
    """Decide what to do after `rule` has fired on the last of the `recent` batches.

    Args:
        past: The run's history.
        recent: The last batches that were tried.
        rule: The rule that fired.
        checkpoints: Cursor by update of the checkpoints whose files are intact.
        batch: Samples of the last batch. The difference of its cursors also counts excluded samples.
        samples: Samples of the complete run.
        every: Updates between checkpoints.
        config: The guard's settings.
    """
    onset, trigger = detector.onset(recent, fired=rule, config=config), recent[-1]
    last = past.rollbacks[-1] if past.rollbacks else None
    near = last is not None and onset.update <= last["trigger"]["update"] + config.neighbourhood
    reproduced = past.replay is not None and trigger.cursor > past.replay["onset"]["cursor"]
    if last is not None and reproduced:
        kind, attempt, level = "skip", last["attempt"], last["level"]
    elif last is not None and near:
        # A spike that a replay did not reproduce has another cause than the data: replay first this time too.
        kind = "replay" if last["kind"] == "replay" else "skip"
        attempt, level = last["attempt"] + 1, last["level"] + (last["kind"] == "skip")
    else:
        kind, attempt, level = "replay" if config.attribute else "skip", 1, 1
    level = min(level, 3)

    target = _target(past, onset, checkpoints, earlier=level == 3, every=every, config=config)
    positions = None
    if kind == "skip":
        length = max(config.skip_after, sum(tried.before >= onset.before for tried in recent) - 1)
        before = max(checkpoints[target], onset.before - config.skip_before * batch)
        begin = before if level == 1 else checkpoints[target]
        positions = begin, max(begin, trigger.cursor + (1, 2, 4)[level - 1] * length * batch)
    verdict = _verdict(past, attempt, reproduced, positions, trigger, batch=batch, samples=samples, config=config)
    return Decision(
        rule=rule,
        kind=kind,
        onset=onset,
        trigger=trigger,
        target=target,
        target_cursor=checkpoints[target],
        attempt=attempt,
        level=level,
        reproduced=reproduced,
        positions=positions,
        cut=(target, config.cut, config.rewarm) if level == 3 and kind == "skip" else None,
        verdict=verdict,
    )


def _target(
    past: History,
    onset: Tried,
    checkpoints: Mapping[int, int],
    *,
    earlier: bool,
    every: int,
    config: GuardConfig,
) -> int:
    """Return the newest target of a rollback; with `earlier`, the second newest."""
    healthy = targets(past, checkpoints, onset=onset.update, every=every, config=config)
    # Without a healthy checkpoint and without the initial state, the oldest checkpoint is better than the spike.
    healthy = healthy or [min(checkpoints)]
    return healthy[max(-1 - int(earlier), -len(healthy))]


def targets(past: History, updates: Iterable[int], *, onset: float, every: int, config: GuardConfig) -> list[int]:
    """Return the updates that a rollback of a spike can go back to, oldest first.

    These are the healthy checkpoints at least `margin` updates before the onset, and the initial state.
    """
    suspects = [record["update"] for record in past.suspects]
    return [
        update
        for update in sorted(updates)
        if (update == 0 or update + config.margin <= onset)
        and detector.healthy(update, suspects=suspects, now=onset, every=every, config=config)
    ]


def _verdict(
    past: History,
    attempt: int,
    reproduced: bool,
    positions: tuple[int, int] | None,
    trigger: Tried,
    *,
    batch: int,
    samples: int,
    config: GuardConfig,
) -> str:
    """Return why the guard must give up; empty if it need not."""
    so_far = sum(not record["reproduced"] for record in past.rollbacks) + (not reproduced)
    if attempt > config.attempts:
        return f"{config.attempts} attempts around update {trigger.update} did not help"
    if so_far > config.attempts_in_run:
        return f"{config.attempts_in_run} rollbacks in this run"
    if positions is not None:
        new = np.ones(positions[1] - positions[0], bool)
        for start, stop in (record["positions"] for record in past.rollbacks if record["positions"]):
            new[max(start - positions[0], 0) : max(stop - positions[0], 0)] = False
        skipped = past.skipped(cursor=positions[0]) + int(new.sum())
        allowed = max(config.skip_share * samples, config.skip_batches * batch)
        if skipped > allowed:
            return f"{skipped:,} of {samples:,} samples would be left out, more than the {int(allowed):,} allowed"
    return ""
