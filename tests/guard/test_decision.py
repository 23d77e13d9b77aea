"""What the guard decides about a spike: where to, what to leave out, when to give up; each rule written out anew."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import GuardConfig
from lmjax.guard.decision import Decision, decide, targets
from lmjax.guard.detector import DIVERGENCE
from lmjax.journal.history import Applied, History, Tried, fold, machine_of

GUARD = GuardConfig()
SIZE = 8  # samples a batch
ROW = "3 suspects in a row"
fast = settings(deadline=None, max_examples=200)


def tried(update: int, marks: str) -> list[Tried]:
    """One batch a letter, the last ones of a run: `.` accepted, `s` suspect; `update` applied before the first."""
    found = []
    for mark in marks:
        cursor = found[-1].cursor if found else SIZE * update
        found.append(Tried(update, cursor, cursor + SIZE, mark == "s"))
        update += mark == "."
    return found


def suspects(*updates: int) -> list[dict[str, Any]]:
    """Records of suspect batches tried after so many updates."""
    return [{"update": n, "cursor": SIZE * (n + 1), "hard": False, "samples": [[0, SIZE]]} for n in updates]


def spike(past: History, update: int, *, checkpoints: Any = range(0, 2000, 100), **more: Any) -> Decision:
    """The decision about three suspects in a row after `update` updates; a checkpoint's cursor: 8 a update."""
    recent = tried(update - 10, "." * 10 + "sss")
    past = dataclasses.replace(past, suspects=[*past.suspects, *suspects(update, update, update)])
    places = {n: SIZE * n for n in checkpoints}
    options = {"batch": SIZE, "samples": 10**6, "every": 100, "config": GUARD, **more}
    return decide(past, recent, ROW, checkpoints=places, **options)


def after(*decisions: Decision, concluded: bool = False, excluded: int = 0) -> History:
    """The history once these rollbacks were carried out; concluded: the last replay showed nothing."""
    records = [{"kind": d.kind, **d.fields()} for d in decisions]
    replay = records[-1] if records and records[-1]["kind"] == "replay" and not concluded else None
    return History(rollbacks=records, replay=replay, exclude=((0, excluded),) if excluded else ())


# ---- Where to -------------------------------------------------------------------------------------------------------


@fast
@given(
    st.sets(st.integers(0, 60), max_size=10),
    st.lists(st.integers(0, 600), max_size=5),
    st.integers(60, 600),
    st.sampled_from([0, 10, 100, 1000]),
    st.booleans(),
)
def test_the_target_is_the_newest_healthy_checkpoint_far_enough_back(
    tens: set[int], lone: list[int], onset: int, every: int, zero: bool
) -> None:
    """Healthy: no suspect, the onset's included, from 16 before to min(100, save interval) after; 16 before the onset;
    0 always."""
    checkpoints = {10 * n for n in tens} | ({0} if zero else set()) or {70}
    known = [n for n in lone if n <= onset] + [onset]
    horizon = min(100, every or 100)
    good = [
        n
        for n in checkpoints
        if n == 0
        or (n + 16 <= onset and not any(n - 16 <= bad <= n + horizon for bad in known) and onset > n + horizon)
    ]
    past = History(suspects=suspects(*(n for n in lone if n <= onset)))
    decision = spike(past, onset, checkpoints=checkpoints, every=every)
    assert decision.target == (max(good) if good else min(checkpoints))
    assert decision.target_cursor == SIZE * decision.target
    # And for the third attempt the one before.
    skipped = dataclasses.replace(decision, kind="skip", positions=(0, 8), attempt=2, level=2)
    past = dataclasses.replace(after(skipped), suspects=past.suspects)
    third = spike(past, onset, checkpoints=checkpoints, every=every)
    assert third.level == 3
    assert third.target == (sorted(good)[-2:][0] if good else min(checkpoints))


def test_targets_of_a_run_with_a_few_suspects() -> None:
    past = History(suspects=suspects(185, 305))
    found = targets(past, range(0, 1000, 100), onset=750, every=100, config=GUARD)
    # 100 and 300 are followed, 200 and 300 preceded too closely by a suspect; 700 is too young.
    assert found == [0, 400, 500, 600]
    assert targets(past, [100, 200], onset=750, every=100, config=GUARD) == []
    assert targets(past, [0], onset=3, every=100, config=GUARD) == [0]


# ---- Replay first, then three levels --------------------------------------------------------------------------------


def test_the_first_spike_is_replayed_and_what_comes_again_is_skipped() -> None:
    first = spike(History(), 1050)
    assert (first.kind, first.attempt, first.level, first.reproduced) == ("replay", 1, 1, False)
    assert (first.target, first.onset.update, first.trigger.update) == (900, 1050, 1050)
    assert (first.positions, first.cut, first.verdict) == (None, None, "")
    again = spike(after(first), 1050)
    assert (again.kind, again.attempt, again.level, again.reproduced) == ("skip", 1, 1, True)


def test_without_attribution_it_is_skipped_at_once() -> None:
    first = spike(History(), 1050, config=GuardConfig(attribute=False))
    assert (first.kind, first.attempt, first.level, first.reproduced) == ("skip", 1, 1, False)


def test_three_attempts_leave_out_more_and_more() -> None:
    """The onset at 1050, positions from 8400 on; the trigger two batches behind it, so 8 batches follow."""
    replay = spike(History(), 1050)
    one = spike(after(replay), 1050)
    assert one.positions == (8400 - 8 * SIZE, 8400 + 3 * SIZE + 8 * SIZE)
    assert (one.target, one.cut) == (900, None)

    two = spike(after(replay, one), 1050)
    assert (two.kind, two.attempt, two.level) == ("skip", 2, 2)
    assert two.positions == (900 * SIZE, 8400 + 3 * SIZE + 16 * SIZE)
    assert (two.target, two.cut) == (900, None)

    three = spike(after(replay, one, two), 1050, samples=10**7)
    assert (three.kind, three.attempt, three.level) == ("skip", 3, 3)
    assert three.positions == (800 * SIZE, 8400 + 3 * SIZE + 32 * SIZE)
    assert (three.target, three.cut) == (800, (800, 0.5, 100))
    assert three.verdict == ""

    four = spike(after(replay, one, two, three), 1050, samples=10**7)
    assert four.verdict == "3 attempts around update 1050 did not help"


def test_a_long_spike_is_followed_by_as_many_batches_and_never_reaches_behind_the_checkpoint() -> None:
    recent = tried(990, "." * 20 + "s......" + "sss")
    past = dataclasses.replace(after(spike(History(), 1010)), suspects=suspects(1010, 1016, 1016, 1016))
    config = GuardConfig(among=12)
    found = decide(past, recent, ROW, checkpoints={0: 0, 1008: 8064}, batch=SIZE, samples=10**6, every=0, config=config)
    assert found.onset == recent[20]
    assert found.positions == ((1010 - 8) * SIZE, recent[-1].cursor + 9 * SIZE)
    assert found.target == 0
    near = GuardConfig(among=12, margin=0, horizon=1)
    past = dataclasses.replace(past, suspects=suspects(1010, 1016, 1016, 1016))
    found = decide(past, recent, ROW, checkpoints={0: 0, 1008: 8064}, batch=SIZE, samples=10**6, every=0, config=near)
    assert found.target == 1008
    assert found.positions == (8064, recent[-1].cursor + 9 * SIZE)


def test_a_divergence_begins_with_the_losses_whose_median_is_too_high() -> None:
    recent = tried(1000, "." * 40)
    found = decide(
        History(),
        recent,
        DIVERGENCE,
        checkpoints={n: SIZE * n for n in range(0, 1001, 100)},
        batch=SIZE,
        samples=10**6,
        every=100,
        config=GuardConfig(attribute=False),
    )
    assert (found.onset, found.trigger) == (recent[8], recent[39])
    assert found.target == 900
    assert found.positions == ((1008 - 8) * SIZE, (1040 + 31) * SIZE)


# ---- Neighbourhoods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("later", "near"), [(0, True), (-300, True), (100, True), (101, False), (5000, False)])
def test_trouble_within_the_neighbourhood_is_the_next_attempt(later: int, near: bool) -> None:
    config = GuardConfig(neighbourhood=100)
    replay = spike(History(), 1050)
    past = after(replay, spike(after(replay), 1050))
    found = spike(past, 1050 + later, checkpoints=range(0, 7000, 100), config=config)
    expected = ("skip", 2, 2) if near else ("replay", 1, 1)
    assert (found.kind, found.attempt, found.level) == expected
    assert not found.reproduced


def test_what_did_not_come_again_is_replayed_again() -> None:
    """A machine that fails now and then: the data stay, but not for ever."""
    decisions = [spike(History(), 1050)]
    for attempt in (2, 3, 4):
        decisions.append(spike(after(*decisions, concluded=True), 1050))
        assert (decisions[-1].kind, decisions[-1].attempt, decisions[-1].level) == ("replay", attempt, 1)
    assert decisions[-2].verdict == ""
    assert decisions[-1].verdict == "3 attempts around update 1050 did not help"
    # And what then comes again is skipped, gently, and counts as the same attempt.
    found = spike(after(*decisions[:2]), 1050)
    assert (found.kind, found.attempt, found.level, found.verdict) == ("skip", 2, 1, "")


# ---- Bounds ---------------------------------------------------------------------------------------------------------


def test_ten_rollbacks_in_a_run_are_enough() -> None:
    """A replay and the skip that follows it are one."""
    past = History()
    for number in range(11):
        update = 1050 + 1000 * number
        options: dict[str, Any] = {"checkpoints": range(0, 20_000, 100), "samples": 10**9}
        replay = spike(past, update, **options)
        past = after_more(past, replay)
        skip = spike(past, update, **options)
        past = after_more(past, skip)
        for decision in (replay, skip):
            assert decision.attempt == 1
            assert decision.verdict == ("10 rollbacks in this run" if number == 10 else "")


def after_more(past: History, decision: Decision) -> History:
    record = decision.fields()
    return dataclasses.replace(
        past, rollbacks=[*past.rollbacks, record], replay=record if decision.kind == "replay" else None
    )


@pytest.mark.parametrize(
    ("samples", "excluded", "words"),
    [
        # The first skip leaves out 8 + 3 + 8 batches of 8: 152 samples. 64 batches (512) are allowed in any case.
        (1000, 0, ""),
        (1000, 360, ""),
        (1000, 361, "513 of 1,000 samples would be left out, more than the 512 allowed"),
        (10**6, 361, ""),
        (10**6, 9848, ""),
        (10**6, 9849, "10,001 of 1,000,000 samples would be left out, more than the 10,000 allowed"),
    ],
)
def test_no_more_than_a_share_of_the_data_is_left_out(samples: int, excluded: int, words: str) -> None:
    replay = spike(History(), 1050, samples=samples)
    assert replay.verdict == ""  # nothing is left out yet
    assert spike(after(replay, excluded=excluded), 1050, samples=samples).verdict == words


def test_suspects_left_out_before_the_skip_count_too() -> None:
    replay = spike(History(), 1050)
    past = after(replay, excluded=360)
    assert spike(past, 1050, samples=1000).verdict == ""
    past = dataclasses.replace(past, suspects=suspects(500))
    assert "520 of 1,000" in spike(past, 1050, samples=1000).verdict


# ---- As a record ----------------------------------------------------------------------------------------------------


def test_a_decision_is_read_back_from_its_record() -> None:
    replay = spike(History(), 1050)
    skip = spike(after(replay), 1050)
    path = {"first": 1, "cursors": [SIZE * n for n in range(1, 1051)], "losses": ["0x1p0"] * 1050}
    past = fold(
        [
            {"event": "start", "update": 0, "cursor": 0},
            {"event": "rollback", "applied": path | {"grad_norms": path["losses"]}, **skip.fields()},
        ]
    )
    assert past.pending is not None
    assert len(past.path) == 900
    assert past.path[-1] == Applied(7200, "0x1p0", "0x1p0", machine_of({}))
    assert set(past.expected) == set(range(901, 1043))  # up to what is skipped, 8 batches before the onset
    assert past.pending["positions"] == skip.positions
    assert past.pending["onset"] == {"update": 1050, "cursor": 8400}
    assert past.pending["trigger"] == {"update": 1050, "cursor": 8424}
