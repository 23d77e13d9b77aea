"""Storage that is full, read-only, slow or broken: training goes on, what stood stands, and the trouble is named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import Config, UserError
from lmjax.config.errors import RunError
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError
from tests.faults import runs
from tests.faults.runs import cases


@pytest.fixture(scope="module")
def whole(short: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run ends with on storage that works."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert runs.start(short, folder) == 0
    return runs.digest(folder)


def intact(folder: Path) -> list[int]:
    """The updates of the checkpoints; all are whole."""
    for path in checkpoint.folders(folder / "checkpoints"):
        assert checkpoint.verify(path) is None
    return runs.updates(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    cases(
        "save.manifest=full@3",
        "save=error@3-4",
        "save.rename=error@7",
        rest=[
            "save=full@1", "save.arrays=error@3", "save.arrays=full@7", "save.manifest=full@1-2",
            "save.manifest=full@7", "save.rename=full@3-4", "save.committed=error@3", "save.committed=full@7",
            "save.retain=error@1", "save.retain=full@2",
        ],
    ),
)  # fmt: skip
def test_a_save_that_fails_is_said_journaled_and_tried_again(
    short: Config, whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """Saves 1, 2, 3, ... 7 are those after 0, 10, 20, ... 60 updates."""
    folder = tmp_path / "run"
    assert runs.start(short, folder, fault) == 0
    said = capsys.readouterr().out
    why = "No space left on device" if "full" in fault else "Input/output error"
    failures = runs.records(folder, "fallback")
    assert len(failures) == (2 if "-" in fault else 1)
    for failure in failures:
        (problem,) = failure["problems"]
        assert problem.startswith("checkpoint ")
        assert why in problem
        assert problem in said.replace("\n", "")
    assert "trying again" in said
    assert intact(folder)[-3:][0] >= 40  # the last three stay, whatever failed
    assert runs.digest(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("fault", cases("save.manifest=full@3-99", rest=["save=error@4-99", "save.rename=full@7-99"]))
def test_saves_that_keep_failing_end_the_run_and_delete_nothing(
    short: Config, whole: str, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"^checkpoint \d+ could not be written: .*; tried 3 times"):
        runs.start(short, folder, fault)
    saved = int(fault.partition("@")[2].partition("-")[0]) - 1
    committed = [record["update"] for record in runs.records(folder, "checkpoint")]
    assert committed == [0, 10, 20, 30, 40, 50][:saved]
    assert intact(folder)[-3:] == committed[-3:]
    assert runs.resume(folder) == 0  # once there is room again
    assert runs.digest(folder) == whole


@pytest.mark.slow
def test_the_door_names_what_failed_and_exits_with_1(short: Config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(runs.to_json(short))
    done = runs.train_py(tmp_path / "config.json", "--run-dir", tmp_path / "run", fault="save.manifest=full@2-99")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint ")
    assert "No space left on device; tried 3 times" in done.stderr
    assert "Traceback" not in done.stderr
    assert intact(tmp_path / "run") == [0]


@pytest.mark.slow
def test_by_policy_training_goes_on_without_checkpoints_but_not_to_an_unsaved_end(
    short: Config, whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert runs.start(short, folder, "save=full@3-8", "checkpoint.on_failure=continue") == 0
    assert "training continues without it" in capsys.readouterr().out
    # Three tries after 20 updates, one each after 30, 40 and 50.
    assert [record["update"] for record in runs.records(folder, "checkpoint")] == [0, 10, 60]
    assert runs.digest(folder) == whole

    folder = tmp_path / "unsaved"
    with pytest.raises(CheckpointError, match="update 60 could not be saved; older checkpoints are intact"):
        runs.start(short, folder, "save=full@7-99", "checkpoint.on_failure=continue")
    assert intact(folder)[-1] == 50
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole


@pytest.mark.slow
def test_nothing_is_deleted_before_the_new_one_is_durable(
    short: Config, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, seen = checkpoint._delete, list[bool]()

    def watched(doomed: Path) -> None:
        durable = [path for path in checkpoint.folders(doomed.parent) if checkpoint.verify(path) is None]
        repeated = doomed.with_name(f"{doomed.name}.partial")  # of the same update, about to take its place
        if repeated.exists():
            assert json.loads((repeated / checkpoint.MANIFEST).read_text()) == checkpoint.hashes(repeated)
        else:
            assert int(durable[-1].name) > int(doomed.name)
        seen.append(repeated.exists())
        delete(doomed)

    monkeypatch.setattr(checkpoint, "_delete", watched)
    assert runs.start(short, tmp_path / "run", "save.manifest=full@4 save.retain=error@1") == 0
    assert {*seen} == {True, False}
    assert runs.digest(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", cases("journal.torn=full@6", rest=["journal.torn=full@1", "journal.torn=error@2", "journal.torn=full@17"])
)
def test_a_journal_that_cannot_be_written_ends_the_run_as_it_was(
    short: Config, whole: str, tmp_path: Path, fault: str
) -> None:
    """No action goes unannounced: what cannot be written down is not begun."""
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"cannot write .*journal\.jsonl: .*; correct this, then resume the run"):
        runs.start(short, folder, fault)
    number = int(fault.partition("@")[2])
    assert len(runs.records(folder)) == number - 1
    assert (folder / "journal.jsonl").read_bytes()[-1:] in (b"\n", b"")
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole


# ---- Slow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_goes_on_while_a_save_is_slow(short: Config, whole: str, tmp_path: Path) -> None:
    """The third save, after 20 updates, takes two seconds, in which the ten updates before the next one happen."""
    folder = tmp_path / "run"
    assert runs.start(short, folder, "save.rename=sleep:2@3") == 0
    noticed = {record["update"]: record["wall_step"] for record in runs.records(folder, "checkpoint")}
    assert 25 <= noticed[20] <= 30
    assert list(noticed) == [0, 10, 20, 30, 40, 50, 60]
    assert runs.digest(folder) == whole


@pytest.mark.slow
def test_at_most_one_save_is_in_flight(short: Config, whole: str, tmp_path: Path, monkeypatch: Any) -> None:
    commit, now, most = checkpoint.Checkpoints._commit, [], []

    def watched(*arguments: Any) -> None:
        now.append(1)
        most.append(len(now))
        commit(*arguments)
        now.pop()

    monkeypatch.setattr(checkpoint.Checkpoints, "_commit", watched)
    folder = tmp_path / "run"
    assert runs.start(short, folder, "save.manifest=sleep:0.1@1-7", "checkpoint.every=5") == 0
    assert most == [1] * 13
    assert runs.digest(folder) == whole


@pytest.mark.slow
def test_an_error_of_the_writer_surfaces_within_one_update(short: Config, tmp_path: Path) -> None:
    """Each update takes a quarter of a second, far longer than writing: the failure is told at the next one."""
    assert runs.start(short, tmp_path / "run", "save.manifest=error@3 update=sleep:0.25@21-24!") == 0
    (record,) = runs.records(tmp_path / "run", "fallback")
    assert record["problems"] == ["checkpoint 20 could not be written: [Errno 5] Input/output error"]
    assert record["update"] in (20, 21)


# ---- Read-only ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_a_users_mistake(short: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*; choose another place with --run-dir") as caught:
        runs.start(short, tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_that_may_not_be_written_is_a_users_mistake(short: Config, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot write to"):
            runs.start(short, tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_keeps_what_it_has(
    short: Config, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `save` meets it where the file system was remounted: no folder can be made below checkpoints/."""
    folder, mkdir = tmp_path / "run", Path.mkdir

    def refuse(path: Path, *arguments: Any, **settings: Any) -> None:
        if path.name.endswith(".partial") and path.name != "0.partial":
            raise PermissionError(30, os.strerror(30), str(path))
        mkdir(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(CheckpointError, match=r"checkpoint [12]\d could not be written: .*Read-only file system"):
            runs.start(short, folder)
    assert intact(folder) == [0]
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole
