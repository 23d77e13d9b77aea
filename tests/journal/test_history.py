"""The fold over a journal: against a little run that remembers everything, and record by record."""

import copy
import zlib
from dataclasses import dataclass, field
from itertools import count as counting
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.journal import journal
from lmjax.journal.history import (
    ROLLED_BACK,
    SAVING,
    TRANSIENT,
    Announced,
    Applied,
    History,
    Ranges,
    Tried,
    fold,
    last,
    machine_of,
)
from lmjax.journal.journal import Journal
from tests.journal import records

BATCH = 4
MACHINE = {"jax": "1", "devices": 2, "processes": 1, "platform": "cpu"}
fast = settings(deadline=None, max_examples=200)


# ---- A run that remembers -------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where the run stands and which way it came: what a checkpoint of it would hold, and more."""

    cursor: int = 0
    path: list[Applied] = field(default_factory=list)
    used: tuple[int, ...] = ()
    tried: list[Tried] = field(default_factory=list)
    suspects: list[dict[str, Any]] = field(default_factory=list)


class Miniature:
    """A deterministic run: sample ids are positions, a batch with a bad sample is suspect, and the loss is a hash of
    all samples used and of the cuts that have begun. Journals as the loop does; keeps the truth in copies, not by
    going back."""

    def __init__(self, bad: frozenset[int] = frozenset(), exclude: Ranges = ()) -> None:
        self.bad = bad
        self.exclude = exclude
        self.cuts: tuple[Any, ...] = ()
        self.machine = machine_of(MACHINE)
        self.here = Place()
        self.saved: dict[int, Place] = {}
        self.records: list[dict[str, Any]] = []
        self.waiting: list[Applied] = []
        self.rollbacks = 0
        self.write("start", seed=0, **MACHINE)
        self.save()

    @property
    def update(self) -> int:
        return len(self.here.path)

    def write(self, event: str, **details: Any) -> None:
        counters = {"wall_step": len(self.records), "update": self.update, "cursor": self.here.cursor}
        record = {**counters, "event": event, **details}
        if self.waiting:
            columns = {"cursors": "cursor", "losses": "loss", "grad_norms": "grad_norm"}
            first = self.update - len(self.waiting) + 1
            told = {name: [getattr(one, column) for one in self.waiting] for name, column in columns.items()}
            record["applied"] = {"first": first, **told}
        self.waiting = []
        self.records.append(record)

    def step(self) -> None:
        here = self.here
        out = {i for a, b in self.exclude for i in range(a, b)}
        ids = [i for i, _ in zip((i for i in counting(here.cursor) if i not in out), range(BATCH), strict=False)]
        before, here.cursor = here.cursor, ids[-1] + 1
        suspect = bool(self.bad & set(ids))
        here.tried.append(Tried(self.update, before, here.cursor, suspect, suspect))
        if suspect:
            self.write("suspect", hard=True, samples=[[i, i + 1] for i in ids])
            here.suspects.append(self.records[-1])
            return
        here.used += tuple(ids)
        begun = tuple(cut for cut in self.cuts if cut[0] <= self.update)
        loss = float(zlib.crc32(repr((here.used, begun)).encode())).hex()
        here.path.append(Applied(here.cursor, loss, loss, self.machine))
        expected = fold(self.records).expected.get(self.update)
        assert expected is None or expected[:3] == here.path[-1][:3]  # it came again, to the bit
        self.waiting.append(here.path[-1])

    def save(self) -> None:
        self.write("boundary", reason=SAVING, digest=f"d{self.update}")
        self.saved[self.update] = copy.deepcopy(self.here)
        self.write("checkpoint", digest=f"d{self.update}")

    def resume(self, choice: int, *, changed: bool = False, fallback: bool = False) -> None:
        """After a crash: what waited is lost; a rollback that was announced is finished."""
        before = fold(self.records)
        self.waiting = []
        if before.pending is not None:
            self.finish(before.pending)
        updates = sorted(self.saved)
        update = updates[choice % len(updates)] if fallback else updates[-1]
        self.here = copy.deepcopy(self.saved[update])
        self.saved = {n: place for n, place in self.saved.items() if n <= update}  # what is damaged never comes back
        self.write("resume", changed=["key"] if changed else [], **MACHINE)
        after = fold(self.records)
        if before.pending is None and not changed:  # all that was journaled is expected again
            assert after.expected.keys() >= set(range(update + 1, len(before.path) + 1))
        assert not (changed and after.expected)

    def rollback(self, kind: str, choice: int, *, crash: bool) -> None:
        targets = [update for update in self.saved if update <= self.update]
        target = targets[choice % len(targets)]
        place = self.saved[target]
        since = [tried for tried in self.here.tried if tried.before >= place.cursor]
        if not since:
            return
        onset, trigger = since[choice % len(since)], since[-1]
        positions = [min(onset.before, place.cursor + BATCH), trigger.cursor + BATCH] if kind == "skip" else None
        self.write(
            "rollback",
            kind=kind,
            target=target,
            target_cursor=place.cursor,
            onset={"update": onset.update, "cursor": onset.before},
            trigger={"update": trigger.update, "cursor": trigger.cursor},
            positions=positions,
            cut=[target, 0.5, 10] if kind == "skip" and choice % 5 == 0 else None,
        )
        self.rollbacks += 1
        before, past = self.here.path, fold(self.records)
        assert past.pending == self.records[-1]
        if kind == "replay":
            assert past.replay == self.records[-1]
            again = {n for n, one in enumerate(before, 1) if n > target and one.cursor <= onset.before}
            assert past.expected.keys() >= again
        if crash:
            self.resume(0)
        else:
            self.finish(self.records[-1])

    def finish(self, pending: dict[str, Any]) -> None:
        self.here = copy.deepcopy(self.saved[pending["target"]])
        self.saved = {update: place for update, place in self.saved.items() if update <= pending["target"]}
        if pending["kind"] == "skip":
            start, stop = pending["positions"]
            out = {i for a, b in self.exclude for i in range(a, b)}
            ranges = [[i, i + 1] for i in range(start, stop) if i not in out]
            self.write("skip", positions=[start, stop], samples=ranges)
            self.exclude = (*self.exclude, *((a, b) for a, b in ranges))
        else:
            self.write("boundary", reason=ROLLED_BACK)
        self.cuts = (*self.cuts, tuple(pending["cut"])) if pending["cut"] else self.cuts

    def act(self, name: str, choice: int) -> None:
        match name:
            case "steps":
                for _ in range(choice % 9 + 1):
                    self.step()
            case "save":
                self.save()
            case "progress":
                self.write("boundary", reason="progress")
            case "conclude" if fold(self.records).replay is not None:
                self.write("boundary", reason=TRANSIENT)
            case "crash" | "change" | "fallback":
                self.resume(choice, changed=name == "change", fallback=name == "fallback")
            case "replay" | "skip":
                self.rollback(name, choice, crash=choice % 3 == 0)

    def check(self) -> History:
        """The fold agrees with the truth, but for what no record has told yet."""
        past, here = fold(self.records), self.here
        assert past.path == here.path[: len(here.path) - len(self.waiting)]
        assert past.suspects == here.suspects
        assert (past.exclude, past.cuts) == (self.exclude, self.cuts)
        assert len(past.rollbacks) == self.rollbacks
        assert past.pending is None
        assert past.saved >= {update for update in self.saved if update <= len(past.path)}
        assert all(number > len(past.path) for number in past.expected)
        for update, place in self.saved.items():
            assert past.cursor(len(past.path[:update])) <= place.cursor  # suspects may follow the last applied one
        if not self.waiting:
            for length in (1, 5, 32):
                assert list(past.recent(length, cursor=here.cursor)) == here.tried[-length:]
        return past


ACTIONS = ("steps", "steps", "steps", "save", "save", "progress", "conclude")
TROUBLES = ("crash", "change", "fallback", "replay", "skip")
actions = st.lists(st.tuples(st.sampled_from(ACTIONS + TROUBLES), st.integers(0, 1000)), min_size=1, max_size=50)
bad_samples = st.frozensets(st.integers(0, 120), max_size=12)


@fast
@given(actions, bad_samples)
def test_the_fold_agrees_with_a_run_that_remembers(todo: list[tuple[str, int]], bad: frozenset[int]) -> None:
    run = Miniature(bad)
    for name, choice in todo:
        run.act(name, choice)
        run.check()
    past = fold(run.records)

    # Every sample it passed over, left out from the start, gives the same run (I1, as far as data and losses go).
    fresh = Miniature(exclude=past.left_out())
    fresh.cuts = past.cuts
    while fresh.update < len(past.path):
        fresh.step()
    if not past.cuts:  # with them the losses before the cut differ, by the hash
        assert fresh.here.path == past.path
    assert [one.cursor for one in fresh.here.path] == [one.cursor for one in past.path]
    assert past.skipped() == sum(b - a for a, b in past.left_out())


@fast
@given(actions, bad_samples)
def test_a_journal_cut_anywhere_folds(todo: list[tuple[str, int]], bad: frozenset[int]) -> None:
    run = Miniature(bad)
    for name, choice in todo:
        run.act(name, choice)
    for cut in range(len(run.records) + 1):
        past = fold(run.records[:cut])
        assert len(past.path) <= max([record["update"] for record in run.records[:cut]], default=0)


# ---- One thing at a time --------------------------------------------------------------------------------------------


def applied(first: int, *cursors: int) -> dict[str, Any]:
    """Updates whose losses are their cursors."""
    hexes = [float(cursor).hex() for cursor in cursors]
    return {"applied": {"first": first, "cursors": list(cursors), "losses": hexes, "grad_norms": hexes}}


def record(event: str, update: int = 0, cursor: int = 0, **details: Any) -> dict[str, Any]:
    return {"wall_step": 0, "update": update, "cursor": cursor, "event": event, **details}


START = record("start", **MACHINE)


def one(cursor: int, machine: tuple[Any, ...] = machine_of(MACHINE)) -> Applied:
    return Applied(cursor, float(cursor).hex(), float(cursor).hex(), machine)


def test_nothing_folds_to_nothing() -> None:
    assert fold([]) == History()
    assert fold([]).cursor(0) == 0
    assert fold([]).recent(8, cursor=0) == ()
    assert fold([]).left_out() == ()


def test_a_resume_leaves_the_way_and_expects_it_again() -> None:
    records = [START, record("boundary", 4, 16, **applied(1, 4, 8, 12, 16)), record("resume", 2, 8, **MACHINE)]
    past = fold(records)
    assert past.path == [one(4), one(8)]
    assert past.expected == {3: one(12), 4: one(16)}
    past = fold([*records, record("boundary", 3, 12, **applied(3, 12))])
    assert past.expected == {4: one(16)}
    assert (past.cursor(0), past.cursor(2), past.cursor(3)) == (0, 8, 12)


def test_a_resume_on_another_machine_or_with_another_configuration() -> None:
    way = record("boundary", 2, 8, **applied(1, 4, 8))
    other = record("resume", 1, 4, jax="2", devices=8, platform="gpu")
    past = fold([START, way, other, record("boundary", 2, 8, **applied(2, 8))])
    assert past.machine == machine_of(other)
    assert past.path == [one(4), one(8, machine_of(other))]
    past = fold([START, way, other])
    assert past.expected == {2: one(8)}  # of the machine that computed it
    changed = record("resume", 1, 4, changed=["schedule.peak: 1 -> 2"], **MACHINE)
    assert fold([START, way, changed]).expected == {}
    elsewhere = record("resume", 1, 4, changed=["parallel.mesh.fsdp: 8 -> 1"], **MACHINE, mesh="one device")
    assert fold([START, way, elsewhere]).expected == {2: one(8)}  # what is learnt is the same
    assert fold([START, way, elsewhere]).machine != fold([START, way]).machine


def test_a_fallback_inside_a_rollback_leaves_the_way_too() -> None:
    """The checkpoint that the rollback went to could not be restored: an older one was."""
    way = record("boundary", 4, 16, **applied(1, 4, 8, 12, 16))
    back = rolled_back("replay", target=3, target_cursor=12)
    records = [
        START,
        way,
        back,
        record("boundary", 3, 12, reason=ROLLED_BACK),
        record("fallback", 1, 4, problems=["x"]),
    ]
    past = fold(records)
    assert past.path == [one(4)]
    assert past.expected == {2: one(8), 3: one(12)}
    assert fold([*records, record("boundary", 2, 8, **applied(2, 8))]).path == [one(4), one(8)]


def test_a_save_that_failed_changes_nothing() -> None:
    way = record("boundary", 2, 8, **applied(1, 4, 8))
    failed = record("fallback", 3, 12, problems=["checkpoint 2 could not be written"], **applied(3, 12))
    assert fold([START, way, failed]).path == [one(4), one(8), one(12)]


def rolled_back(kind: str, *, target: int, target_cursor: int, cut: list[float] | None = None) -> dict[str, Any]:
    return record(
        "rollback",
        4,
        20,
        kind=kind,
        target=target,
        target_cursor=target_cursor,
        onset={"update": 3, "cursor": 12},
        trigger={"update": 4, "cursor": 20},
        positions=[8, 28] if kind == "skip" else None,
        cut=cut,
    )


def test_a_rollback_expects_the_same_up_to_where_the_data_change() -> None:
    way = record("boundary", 4, 16, **applied(1, 4, 8, 12, 16))
    replay = fold([START, way, rolled_back("replay", target=1, target_cursor=4)])
    assert replay.path == [one(4)]
    assert replay.expected == {2: one(8), 3: one(12)}  # up to the onset
    skip = fold([START, way, rolled_back("skip", target=1, target_cursor=4)])
    assert skip.expected == {2: one(8)}  # up to what is skipped
    cut = fold([START, way, rolled_back("skip", target=1, target_cursor=4, cut=[1, 0.5, 100])])
    assert cut.cuts == ((1, 0.5, 100),)
    assert cut.expected == {}


def test_a_rollback_is_pending_until_it_is_finished_and_a_replay_until_it_is_concluded() -> None:
    replay, skip = (rolled_back(kind, target=0, target_cursor=0) for kind in ("replay", "skip"))
    done = record("boundary", reason=ROLLED_BACK)
    assert (fold([START, replay]).pending, fold([START, replay]).replay) == (replay, replay)
    assert (fold([START, replay, done]).pending, fold([START, replay, done]).replay) == (None, replay)
    other = record("boundary", 1, 4, reason="progress", **applied(1, 4))
    assert fold([START, replay, done, other]).replay == replay
    assert fold([START, replay, done, other, record("boundary", 1, 4, reason=TRANSIENT)]).replay is None
    past = fold([START, replay, done, skip])
    assert (past.pending, past.replay, past.exclude) == (skip, None, ())
    past = fold([START, replay, done, skip, record("skip", positions=[8, 28], samples=[[8, 20], [40, 48]])])
    assert (past.pending, past.exclude, past.skipped()) == (None, ((8, 20), (40, 48)), 20)
    assert past.rollbacks == [replay, skip]


def test_suspects_count_as_far_as_the_path_goes() -> None:
    def suspect(update: int, cursor: int) -> dict[str, Any]:
        return record("suspect", update, cursor, hard=False, samples=[[cursor - 4, cursor]])

    records = [
        START,
        record("boundary", 1, 4, **applied(1, 4)),
        suspect(1, 8),
        suspect(2, 16) | applied(2, 12),
        record("boundary", 3, 20, **applied(3, 20)),
    ]
    past = fold(records)
    assert past.left_out() == ((4, 8), (12, 16))
    assert past.left_out(cursor=15) == ((4, 8),)
    assert (past.skipped(), past.skipped(cursor=8)) == (8, 4)
    assert past.recent(3, cursor=20) == (
        Tried(1, 8, 12),
        Tried(2, 12, 16, suspect=True),
        Tried(2, 16, 20),
    )
    assert len(past.recent(99, cursor=20)) == 5
    past = fold([*records, record("resume", 1, 8, **MACHINE)])  # saved behind the first suspect
    assert past.left_out() == ((4, 8),)
    past = fold([*records, record("resume", 1, 4, **MACHINE)])  # saved before it
    assert past.left_out() == ()


def test_an_account_that_leaves_a_gap_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        fold([START, record("boundary", 3, 12, **applied(2, 12))])


def test_a_real_journal_folds(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.write("start", wall_step=0, update=0, cursor=0, **records.START)
    for update in (1, 2, 3):
        book.note(update=update, cursor=4 * update, loss=1 / update, grad_norm=2.0)
    book.write("boundary", wall_step=3, update=3, cursor=12, reason=SAVING, digest="abc")
    book.write("checkpoint", wall_step=3, update=2, cursor=8, digest="ab")
    past = fold(journal.read(book.path))
    assert [float.fromhex(applied.loss) for applied in past.path] == [1.0, 0.5, 1 / 3]
    assert (past.announced, past.saved) == ({3: Announced(12, "abc")}, {2})
    assert last(book.records, "start") == book.records[0]
    assert last(book.records, "end") is None
