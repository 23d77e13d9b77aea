"""What to do about a spike: how far to go back, which data to leave out, when to give up. Pure functions.

PaLM (Chowdhery et al. 2022, 5.1) went back about 100 steps and left out 200 to 500 batches; GLM-130B and BLOOM did
alike, by hand. Here the first attempt leaves out little, the next ones more.
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
    """A rollback.

    rule: what triggered it. kind: `replay` the same data (to see whether the spike comes again) or `skip` them.
    onset, trigger: the batches where the trouble began and where it was noticed. target: the update to go back to, and
    its cursor. attempt: the how manieth in this neighbourhood; level: of escalation. reproduced: a replay showed the
    spike again. positions: what a skip leaves out, from (incl.) to (excl.). cut: (update, factor, over) of the
    learning rate. verdict: why the guard gives up; empty if it does not.
    """

    rule: str
    kind: str
    onset: Tried
    trigger: Tried
    target: int
    target_cursor: int
    attempt: int
    level: int
    reproduced: bool
    positions: tuple[int, int] | None = None
    cut: tuple[int, float, int] | None = None
    verdict: str = ""

    def fields(self) -> dict[str, Any]:
        """As fields of a journal record; `onset` tells the update and the cursor before it."""
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
    """What to do now that `rule` has fired on the last of the `recent` batches.

    checkpoints: cursor by update, of those whose files are whole. batch: samples of the last batch (its cursors may lie
    further apart, over samples left out). samples: of the whole run. every: updates between checkpoints.
    """
    onset, trigger = detector.onset(recent, fired=rule, config=config), recent[-1]
    last = past.rollbacks[-1] if past.rollbacks else None
    near = last is not None and onset.update <= last["trigger"]["update"] + config.neighbourhood
    reproduced = past.replay is not None and trigger.cursor > past.replay["onset"]["cursor"]
    if last is not None and reproduced:
        kind, attempt, level = "skip", last["attempt"], last["level"]
    elif last is not None and near:
        # What did not come again was no fault of the data: it is replayed first this time too.
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
    """The newest healthy checkpoint far enough before the onset, or the healthy one before that."""
    good = targets(past, checkpoints, onset=onset.update, every=every, config=config)
    # Nothing healthy and no initial state: the oldest there is, rather than to stay in a spike.
    good = good or [min(checkpoints)]
    return good[max(-1 - int(earlier), -len(good))]


def targets(past: History, updates: Iterable[int], *, onset: float, every: int, config: GuardConfig) -> list[int]:
    """The checkpoints, oldest first, to which a rollback can go back from a trouble that began at update `onset`."""
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
    """Why the guard must give up, or nothing."""
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
