"""Going back, with the real loop on a model of one number: what is left in the end is always a run without trouble."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmjax.config.errors import RunError
from lmjax.journal.history import ROLLED_BACK, TRANSIENT, History, fold
from lmjax.system import faults
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError
from lmjax.training.inputs import GaveUp, Position
from lmjax.training.loop import train
from lmjax.training.signals import StopRequest
from tests import all_slow_but
from tests.training import miniature
from tests.training.miniature import GUARD, LONG, at, events, fresh, options, parts, records, resumed, run, same

UPDATES = LONG["updates"]


def past(run_dir: Path) -> History:
    return fold(records(run_dir))


def rollbacks(run_dir: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["level"]) for record in records(run_dir) if record["event"] == "rollback"]


def passes(spoiled: dict[int, int], bad: float = math.nan) -> Callable[[int, list[float]], list[float]]:
    """A fault of the machine: the batch at a cursor is spoiled the first so many times that it is made."""
    left = dict(spoiled)

    def spoil(before: int, x: list[float]) -> list[float]:
        left[before] = left.get(before, 0) - 1
        return [bad] * len(x) if left[before] >= 0 else x

    return spoil


@pytest.fixture(
    autouse=True, scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids="{} per dispatch".format
)
def updates_per_dispatch(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every test of this file twice: one update per dispatch, and several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "UPDATES_PER_DISPATCH", request.param)
        yield request.param


@pytest.fixture(scope="module")
def quiet(updates_per_dispatch: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Position, History]:
    """The run that nothing happens to, and its history."""
    run_dir = tmp_path_factory.mktemp("quiet") / "run"
    end = run(run_dir)
    assert not {"suspect", "rollback", "fallback"} & set(events(run_dir))
    return end, past(run_dir)


# ---- The data are bad (I1) ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "length", "bad"),
    [
        (60, 4, math.nan),  # two batches, in the middle
        (61, 5, 1e4),
        (2, 5, math.nan),  # before the window is armed, and before any checkpoint but the first
        (33, 4, 1e4),  # right behind the checkpoint of update 16
        (77, 9, math.nan),  # across the change of the batch size
        (110, 24, 1e4),  # six batches of four; one attempt may leave out too little
        (167, 9, math.nan),  # at the very end
    ],
)
def test_bad_data_end_as_if_they_had_been_excluded_from_the_start(
    tmp_path: Path, start: int, length: int, bad: float
) -> None:
    poison = at(*range(start, start + length))
    end = run(tmp_path / "spike", poison=poison, bad=bad)
    found = past(tmp_path / "spike")
    kinds = [kind for kind, _ in rollbacks(tmp_path / "spike")]
    assert kinds[0] == "replay"
    assert set(kinds[1:]) == {"skip"}
    assert end.update == UPDATES

    out = found.left_out()
    skips = [record["positions"] for record in records(tmp_path / "spike") if record["event"] == "skip"]
    assert {i for first, last in skips for i in at(*range(first, last))} <= {i for a, b in out for i in range(a, b)}
    assert {i for i in poison if LONG["order"].position(i) < end.cursor} <= {i for a, b in out for i in range(a, b)}
    order = LONG["order"].excluding(out)
    never = run(tmp_path / "never", poison=poison, bad=bad, order=order, cuts=found.cuts)
    assert not {"suspect", "rollback"} & set(events(tmp_path / "never"))
    same(end, never)
    assert found.path == past(tmp_path / "never").path  # every cursor, loss and gradient norm of the way


@pytest.mark.slow
def test_two_spikes_far_apart_are_two_first_attempts(tmp_path: Path) -> None:
    poison = at(*range(40, 44), *range(140, 148))
    end = run(tmp_path / "spikes", poison=poison)
    assert rollbacks(tmp_path / "spikes") == [("replay", 1), ("skip", 1)] * 2
    never = run(tmp_path / "never", poison=poison, order=LONG["order"].excluding(past(tmp_path / "spikes").left_out()))
    same(end, never)


def test_a_lone_bad_batch_is_left_out_without_going_back(tmp_path: Path) -> None:
    poison = at(60)
    end = run(tmp_path / "lone", poison=poison)
    assert "rollback" not in events(tmp_path / "lone")
    out = past(tmp_path / "lone").left_out()
    assert sum(b - a for a, b in out) == 2
    same(end, run(tmp_path / "never", poison=poison, order=LONG["order"].excluding(out)))


# ---- The machine is at fault (I2) -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("params=nan@30", marks=pytest.mark.slow),
        "params=inf@17",
        pytest.param("opt_state=nan@30", marks=pytest.mark.slow),
        pytest.param("opt_state=inf@40", marks=pytest.mark.slow),
        "learning_rate=times:1e6@25",
    ],
)
def test_a_fault_of_the_machine_leaves_no_trace(tmp_path: Path, quiet: tuple[Position, History], fault: str) -> None:
    with faults.armed(fault):
        end = run(tmp_path / "run")
    assert [kind for kind, _ in rollbacks(tmp_path / "run")] == ["replay"]
    found = past(tmp_path / "run")
    concluded = [record for record in records(tmp_path / "run") if record.get("reason") == TRANSIENT]
    assert len(concluded) == 1
    assert (found.replay, found.left_out(), found.cuts) == (None, (), ())
    same(end, quiet[0])
    assert found.path == quiet[1].path


@pytest.mark.parametrize("bad", [math.nan, 1e4])
def test_data_that_were_spoiled_on_the_way_are_used_after_all(
    tmp_path: Path, quiet: tuple[Position, History], bad: float
) -> None:
    # The batch behind a suspect one is on its way already, dropped, and made again.
    end = run(tmp_path / "run", spoil=passes({50: 1, 52: 2, 54: 1}, bad=bad))
    assert rollbacks(tmp_path / "run") == [("replay", 1)]
    same(end, quiet[0])
    assert past(tmp_path / "run").path == quiet[1].path


def test_parameters_that_are_not_finite_trigger_at_once(tmp_path: Path) -> None:
    with faults.armed("params=nan@30"):
        run(tmp_path / "run")
    first = next(record for record in records(tmp_path / "run") if record["event"] == "rollback")
    assert first["rule"] == "parameters not finite"
    assert first["onset"]["update"] == first["trigger"]["update"] == 29
    assert first["target"] == 16  # 24 lies less than 8 before it


def test_what_keeps_failing_ends_the_run_at_last(tmp_path: Path) -> None:
    guard = replace(GUARD, skip_share=1.0)
    with faults.armed("params=nan@30!"), pytest.raises(GaveUp, match="3 attempts around update 29 did not help"):
        run(tmp_path / "run", guard=guard)
    kinds = rollbacks(tmp_path / "run")
    assert kinds[0][0] == "replay"
    assert len(kinds) <= 6


# ---- It does not get better (I9) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [60, 1])
def test_data_that_stay_bad_end_in_a_verdict_with_the_healthy_checkpoint_newest(
    tmp_path: Path, quiet: tuple[Position, History], start: int
) -> None:
    poison = at(*range(start, 1009))
    with pytest.raises(GaveUp):
        run(tmp_path / "run", poison=poison)
    told = records(tmp_path / "run")[-1]
    assert (told["event"], told["status"]) == ("end", "gave up")
    assert told["why"]
    assert 2 <= len(rollbacks(tmp_path / "run")) <= 4
    root = tmp_path / "run" / "checkpoints"
    newest = checkpoint.folders(root)[-1]
    assert int(newest.name) == told["target"] <= max(start // 2 - 4, 0)
    assert checkpoint.verify(newest) is None
    assert checkpoint.read(newest).meta["cursor"] <= start
    assert (root / "quarantine").exists() == (start > 16)


# ---- Crashes between any two steps (I3) -----------------------------------------------------------------------------

SPIKE = at(*range(101, 106))


@pytest.fixture(scope="module")
def spiked(updates_per_dispatch: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Position, Path]:
    run_dir = tmp_path_factory.mktemp("spiked") / "run"
    end = run(run_dir, poison=SPIKE)
    assert rollbacks(run_dir) == [("replay", 1), ("skip", 1)]
    return end, run_dir


def crash(run_dir: Path, fault: str, **more: Any) -> Position:
    """A run that crashes once at `fault`, and the one that goes on."""
    with (
        faults.armed(fault),
        parts(run_dir, **options(**more)) as made,
        pytest.raises((OSError, RunError)),
    ):
        train(made, fresh(made.guard), stop=StopRequest())
    with parts(run_dir, **options(**more)) as made:
        return train(made, resumed(made), stop=StopRequest())


POINTS = ["rollback", "rollback.announced", "rollback.restore", "rollback.done"]


@pytest.mark.parametrize(
    "fault",
    all_slow_but({1}, (f"{point}=error@{n}" for point in (*POINTS, "rollback.quarantine") for n in (1, 2))),
)
def test_a_crash_within_a_rollback_is_finished_by_the_next_start(
    tmp_path: Path, spiked: tuple[Position, Path], fault: str
) -> None:
    end = crash(tmp_path / "run", fault, poison=SPIKE)
    same(end, spiked[0])
    found, other = past(tmp_path / "run"), past(spiked[1])
    assert (found.path, found.exclude) == (other.path, other.exclude)
    assert found.pending is None


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("journal.write=error", marks=pytest.mark.slow),
        "journal.torn=full",
        pytest.param("journal.written=error", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "record",
    [pytest.param("rollback", marks=pytest.mark.slow), pytest.param("boundary", marks=pytest.mark.slow), "skip"],
)
def test_a_crash_around_each_record_of_a_rollback(
    tmp_path: Path, spiked: tuple[Position, Path], point: str, record: str
) -> None:
    told = records(spiked[1])
    number = 1 + next(
        n
        for n, one in enumerate(told)
        if one["event"] == record and (record != "boundary" or one["reason"] == ROLLED_BACK)
    )
    end = crash(tmp_path / "run", f"{point}@{number}", poison=SPIKE)
    same(end, spiked[0])
    assert past(tmp_path / "run").exclude == past(spiked[1]).exclude


def test_a_checkpoint_that_cannot_be_restored_is_passed_over(
    tmp_path: Path, spiked: tuple[Position, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are whole, and yet the target does not load: the rollback ends at the one before."""
    restore, tries = checkpoint.restore, []

    def broken(found: checkpoint.Checkpoint, abstract: Any) -> Any:
        tries.append(found.meta["update"])
        if len(tries) == 1:
            raise CheckpointError("broken")
        return restore(found, abstract)

    monkeypatch.setattr(checkpoint, "restore", broken)
    end = run(tmp_path / "run", poison=SPIKE)
    assert tries[1] < tries[0]
    same(end, spiked[0])
    assert past(tmp_path / "run").path == past(spiked[1]).path
