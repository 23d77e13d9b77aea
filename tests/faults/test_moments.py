"""Spikes at the moments where going back is hardest: the run ends with the bits of a fresh one whose plan left out what
was skipped, or it gives up with status 3."""

import json
from pathlib import Path

import pytest

from lmjax.config import Config
from lmjax.data.store import preparation
from lmjax.display.console import Console
from lmjax.run import build, session
from tests.faults import runs
from tests.faults.runs import cases

GROWTH = ("batch.tokens=((0,128),(12800,256))",)  # 16 sequences an update from update 101 on
AFTER_A_SAVE, BEFORE_A_SAVE = "data=random@800-823!", "data=random@776-799!"  # batches of updates 101-103, 98-100


def ends_like_a_fresh_run(folder: Path, config: Config, tmp_path: Path, *changes: str) -> None:
    fresh = runs.without(folder, runs.apply_overrides(config, changes), tmp_path / "fresh")
    assert runs.digest(fresh) == runs.digest(folder)
    assert runs.losses(fresh) == runs.losses(folder)
    assert runs.records(fresh)[-1]["cursor"] == runs.records(folder)[-1]["cursor"]
    assert not runs.records(fresh, "suspect")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "target", "changes"),
    cases(
        (AFTER_A_SAVE, 60, ()),
        ("data=nan@160-175!", 0, ()),  # in update 21, long before the guard is armed: what is no number is hard
        ("data=nan@784-815!", 60, GROWTH),  # the last two batches before the growth, and the first one after
        ("data=nan@0-15!", 0, ()),
        rest=[
            (BEFORE_A_SAVE, 60, ()),
            (AFTER_A_SAVE, 60, ("guard.attribute=false",)),
            (AFTER_A_SAVE, 90, ("checkpoint.every=5", "guard.margin=5")),
            (AFTER_A_SAVE, 0, ("checkpoint.every=0",)),
            ("data=random@784-799!", 60, GROWTH),  # what is skipped reaches over the growth
            ("data=nan@800-831!", 60, GROWTH),
            ("data=nan@1584-1599!", 160, ()),  # the last two updates
            ("data=nan@1584-1615!", 160, ()),
            ("data=random@520-543!", 40, ()),  # updates 66-68: the guard has just been armed
        ],
    ),
)
def test_bad_data_are_skipped_from_the_right_checkpoint(
    guarded: Config, tmp_path: Path, fault: str, target: int, changes: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, fault, *changes) == 0
    rollbacks = runs.records(folder, "rollback")
    kinds = ["skip"] if "guard.attribute=false" in changes else ["replay", "skip"]
    assert [record["kind"] for record in rollbacks] == kinds
    assert {record["target"] for record in rollbacks} == {target}
    assert {record["level"] for record in rollbacks} == {1}
    ends_like_a_fresh_run(folder, guarded, tmp_path, *changes)


@pytest.mark.slow
@pytest.mark.parametrize("first", cases(-16, rest=[-24, -8, 0]))
def test_a_spike_across_the_end_of_an_epoch(guarded: Config, tmp_path: Path, first: int) -> None:
    """Four batches (the last only touched) around the sample with which the second epoch begins."""
    parts = build.build(guarded, preparation.prepare(guarded.data, report=Console().report))
    (epoch,) = parts.order.windows
    begin = epoch // 8 * 8 + first
    assert begin - 64 < epoch < begin + 88 < 1600  # what is skipped lies on both sides
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, f"data=random@{begin}-{begin + 23}!") == 0
    assert [record["kind"] for record in runs.records(folder, "rollback")] == ["replay", "skip"]
    ends_like_a_fresh_run(folder, guarded, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    cases(
        "learning_rate=times:1000@30", rest=["params=times:1e30@12", "params=nan@1", "params=inf@9", "params=nan@200"]
    ),
)
def test_a_passing_fault_before_the_guard_is_fully_armed_or_at_either_end(
    guarded: Config, tmp_path: Path, fault: str
) -> None:
    """Hard suspects count from the eighth accepted update on, what is not finite always."""
    assert runs.start(guarded, tmp_path / "clean") == 0
    assert runs.start(guarded, tmp_path / "run", fault) == 0
    (record,) = runs.records(tmp_path / "run", "rollback")
    assert record["kind"] == "replay"
    assert runs.digest(tmp_path / "run") == runs.digest(tmp_path / "clean")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "positions"),
    cases(
        ("data=nan@720-735!", (656, 800)),  # before the place that is being replayed
        rest=[
            ("data=nan@792-807!", (728, 872)),  # at it
            ("data=nan@480-495!", (416, 560)),  # right behind the checkpoint: an older one must serve
        ],
    ),
)
def test_a_spike_inside_a_replay(guarded: Config, tmp_path: Path, second: str, positions: tuple[int, int]) -> None:
    """The parameters break in update 100 for once; while the data are replayed others turn out to be bad for good."""
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, "params=nan@100 rollback.done=SIGTERM") == 0
    assert runs.resume(folder, second) == 0
    first, *others = runs.records(folder, "rollback")
    assert (first["kind"], first["target"]) == ("replay", 60)
    # What comes before the place that is being replayed is another trouble, whose data are replayed first.
    assert [record["kind"] for record in others] == (["skip"] if "792" in second else ["replay", "skip"])
    assert others[-1]["reproduced"]
    assert tuple(others[-1]["positions"]) == positions
    assert all(record["target"] <= record["onset"]["update"] - guarded.guard.margin for record in others)
    ends_like_a_fresh_run(folder, guarded, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "levels"), cases((160, [1, 1, 2]), rest=[(64, [1, 1]), (320, [1, 1, 2, 3]), (240, [1, 1, 2])])
)
def test_a_wider_spike_is_answered_with_more(guarded: Config, tmp_path: Path, width: int, levels: list[int]) -> None:
    """As much data may be left out as is needed: the second level leaves out all since the checkpoint, the third goes
    back one further and lowers the learning rate."""
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, f"data=random@800-{799 + width}!", "guard.skip_batches=1000") == 0
    rollbacks = runs.records(folder, "rollback")
    assert [record["level"] for record in rollbacks] == levels
    for record in rollbacks:
        if record["level"] == 2:
            assert record["positions"][0] == record["target_cursor"]
        assert (record["cut"] is not None) == (record["level"] == 3)
    ends_like_a_fresh_run(folder, guarded, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "newest", "changes"),
    cases(
        ("data=random@800-99999!", 60, ()),
        rest=[
            ("data=nan@0-99999!", 0, ()),
            ("data=nan@800-99999!", 60, GROWTH),
            ("data=nan@1584-99999!", 160, ()),
            ("data=random@1040-99999!", 60, ()),
            ("data=random@800-99999!", 60, ("guard.attribute=false",)),
            ("data=nan@800-99999!", 0, ("checkpoint.every=0",)),
        ],
    ),
)
def test_data_that_stay_bad_end_the_run_in_bounded_attempts(
    guarded: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    newest: int,
    changes: tuple[str, ...],
) -> None:
    """I9: status 3; the newest checkpoint is a healthy one, from before the first bad batch."""
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, fault, *changes) == session.GAVE_UP
    assert "given up: " in capsys.readouterr().out
    end = runs.records(folder)[-1]
    assert (end["event"], end["status"]) == ("end", "gave up")
    skips = [record for record in runs.records(folder, "rollback") if not record["reproduced"]]
    assert 1 <= len(skips) <= guarded.guard.attempts
    assert runs.updates(folder)[-1] == end["target"] == newest
    assert newest == 0 or newest + guarded.guard.margin <= runs.records(folder, "suspect")[0]["update"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "gave up"
