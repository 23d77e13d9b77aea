"""Files of a run that are deleted, replaced or forged, while it works and between its sessions."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from lmjax.config import Config, UserError
from lmjax.config.codec import to_json
from lmjax.config.errors import RunError
from lmjax.diagnose import audit
from lmjax.journal import journal
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError
from lmjax.training.metrics import Recorder
from tests.faults import runs
from tests.faults.runs import cases
from tests.journal import forged
from tests.small_disk import resize, small_disk


@pytest.fixture(scope="module")
def finished(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, undisturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert runs.start(short, folder) == 0
    return folder


@pytest.fixture(scope="module")
def other(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same data with another seed, stopped after update 45."""
    folder = tmp_path_factory.mktemp("other") / "run"
    assert runs.start(short, folder, "update=SIGTERM@45", "seed=7") == 0
    return folder


def at_update(monkeypatch: pytest.MonkeyPatch, update: int, damage: Callable[[], Any]) -> None:
    """Do something once when a run has recorded an update."""
    write, pending = Recorder.write, [update]

    def writing(self: Recorder, record: Any) -> Any:
        if pending and record["update"] >= pending[0]:
            pending.clear()
            damage()
        return write(self, record)

    monkeypatch.setattr(Recorder, "write", writing)


# ---- While the run works --------------------------------------------------------------------------------------------

LOST: dict[str, Callable[[Path], Any]] = {
    "journal.jsonl": Path.unlink,
    "metrics.jsonl": Path.unlink,
    "config.json": Path.unlink,
    "tokenizer.json": lambda path: path.write_text(""),
    "checkpoints": lambda path: path.rename(path.parent.parent / "aside"),
    ".lock": Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_written_again_and_the_run_ends_as_it_would(
    short: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    folder = tmp_path / "run"
    at_update(monkeypatch, 25, lambda: LOST[name](folder / name))
    assert runs.start(short, folder) == 0
    assert f"{folder / name} was " in capsys.readouterr().out.replace("\n", "")
    assert runs.digest(folder) == runs.digest(finished)
    assert (folder / "metrics.jsonl").read_bytes().count(b"val_loss") == 3
    for item in ("config.json", "tokenizer.json"):
        assert (folder / item).read_bytes() == (finished / item).read_bytes()
    assert audit.show(folder) == 0


@pytest.mark.slow
def test_a_truncated_journal_is_written_again(
    short: Config, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    at_update(monkeypatch, 25, lambda: os.truncate(folder / "journal.jsonl", 700))
    assert runs.start(short, folder) == 0
    assert runs.losses(folder) == runs.losses(finished)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "checkpoints", "journal.jsonl", "metrics.jsonl"])
def test_what_is_replaced_ends_the_run_at_once_in_one_line(
    short: Config, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "run"

    def replace() -> None:
        (folder / name).rename(tmp_path / "aside")
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy
        copy(other / name, folder / name)

    at_update(monkeypatch, 25, replace)
    with pytest.raises(RunError, match=r"was replaced") as caught:
        runs.start(short, folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    for path in checkpoint.folders(folder / "checkpoints"):  # nothing of this run among those of the other
        assert not name or name == "checkpoints" or checkpoint.verify(path) is None
    if name == "checkpoints":
        assert runs.updates(folder) == runs.updates(other)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["256k", "400k"])
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_resumes(
    short: Config, finished: Path, tmp_path: Path, size: str
) -> None:
    (tmp_path / "short.json").write_text(to_json(short))
    cache = f"data.cache={short.data.cache}"
    with small_disk(tmp_path / "disk", size=size) as disk:
        folder = disk / "run"
        done = runs.train_py(tmp_path / "short.json", cache, "--run-dir", folder)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert str(folder) in done.stderr or "checkpoint" in done.stderr
        for path in checkpoint.folders(folder / "checkpoints"):
            assert checkpoint.verify(path) is None
        journal.read(folder / "journal.jsonl")
        resize(disk, "20m")
        assert runs.resume(folder) == 0
        assert runs.losses(folder) == runs.losses(finished)


# ---- Between the sessions -------------------------------------------------------------------------------------------


def drop_records(folder: Path, count: int) -> None:
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-count]))


@pytest.mark.slow
@pytest.mark.parametrize("count", cases(2, 4, rest=[1, 3, 5, 8]))
def test_a_journal_without_its_last_records_does_not_follow_checkpoints_it_does_not_know(
    finished: Path, folder: Path, count: int
) -> None:
    drop_records(folder, count)
    announced = runs.history(folder).announced
    assert runs.resume(folder) == 0
    assert runs.records(folder, "resume")[-1]["update"] == max(announced)
    assert runs.digest(folder) == runs.digest(finished)
    assert audit.show(folder) == 0


@pytest.mark.slow
def test_a_journal_or_checkpoints_of_another_run_are_refused(folder: Path, other: Path) -> None:
    for name in ("journal.jsonl", "checkpoints"):
        copy = folder.with_name(f"with other {name}")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(name))
        (shutil.copytree if name == "checkpoints" else shutil.copy)(other / name, copy / name)
        before = (copy / "journal.jsonl").read_bytes()
        with pytest.raises((UserError, CheckpointError), match="journal") as caught:
            runs.resume(copy)
        assert "\n" not in str(caught.value)
        assert (copy / "journal.jsonl").read_bytes() == before
        assert audit.show(copy) == 1
    shutil.rmtree(folder / "checkpoints" / "45")
    shutil.copytree(other / "checkpoints" / "45", folder / "checkpoints" / "45")
    assert runs.resume(folder) == 0
    (record,) = runs.records(folder, "fallback")
    assert record["update"] == 40
    assert "its digest is not the one in the journal" in record["problems"][0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["delete", "empty", "forge"])
def test_the_copy_of_the_tokenizer_is_restored(folder: Path, finished: Path, capsys: Any, damage: str) -> None:
    path = folder / "tokenizer.json"
    before = path.read_bytes()
    path.unlink() if damage == "delete" else path.write_text("" if damage == "empty" else "[" * 10_000)
    assert runs.resume(folder) == 0
    assert path.read_bytes() == before
    assert "written again from the prepared data" in capsys.readouterr().out
    assert runs.digest(folder) == runs.digest(finished)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[" * 10**6, '{"status": "finished", "seconds": "many"', '{"seconds": [1]}'])
def test_a_damaged_summary_is_no_obstacle(folder: Path, finished: Path, content: str) -> None:
    (folder / "summary.json").write_text(content)
    (folder / "metrics.jsonl").write_text('{"update": "x"}\n{"update": 5, "val_loss": "low"}\n' + "[" * 10**5 + "\n")
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == runs.digest(finished)


@pytest.mark.slow
def test_things_in_the_folder_of_checkpoints_that_are_no_checkpoints(folder: Path, finished: Path) -> None:
    root, outside = folder / "checkpoints", folder.with_name("outside")
    outside.mkdir()
    (outside / "file").write_text("mine")
    (root / "50.partial").symlink_to(outside)
    (root / "60.partial").mkdir()
    (root / "70.partial").write_text("x")
    (root / "notes.partial").write_text("mine")
    (root / "00045").mkdir()
    (root / ("9" * 200)).mkdir()
    (root / "55").symlink_to(outside)
    (root / "46").write_text("a file")
    assert runs.resume(folder) == 0
    assert (outside / "file").read_text() == (root / "notes.partial").read_text() == "mine"
    assert runs.digest(folder) == runs.digest(finished)
    assert not any((root / f"{n}.partial").is_symlink() or (root / f"{n}.partial").exists() for n in (50, 60, 70))


@pytest.mark.slow
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=forged.st.data())
def test_an_edited_journal_is_resumed_on_its_path_or_refused_in_one_line(
    stopped: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("edited") / "run")
    records = data.draw(forged.edited(runs.records(stopped)))
    forged.write(folder / "journal.jsonl", records)
    if records:
        assert audit.show(folder) in (0, 1)
    problem, announced = "", journal.scan(folder / "journal.jsonl").history.announced
    try:
        assert runs.resume(folder) == 0
    except (UserError, RunError) as error:
        problem = str(error)
    assert "\n" not in problem
    if problem:
        return
    if announced:
        assert runs.records(folder, "resume")[-1]["update"] in announced
    runs.history(folder)  # still readable


FORGERIES: list[Any] = [[], {}, {"update": 45}, {"update": 45, "cursor": -1}, {"update": 10**400}, "x", None, 10**400]


@pytest.mark.slow
@pytest.mark.parametrize("forgery", FORGERIES, ids=range(len(FORGERIES)))
def test_forged_files_of_a_checkpoint_are_passed_over(folder: Path, forgery: Any) -> None:
    newest = folder / "checkpoints" / "45"
    (newest / "meta.json").write_text(json.dumps(forgery))
    (newest / "manifest.json").write_text(json.dumps(checkpoint.hashes(newest)))
    problem = checkpoint.verify(newest)
    assert problem is not None
    assert problem.startswith("unreadable (meta.json")
    for manifest in (forgery, {"../../config.json": "0" * 64}, {"/etc/passwd": 1}, {"meta.json": ["x"]}):
        (newest / "manifest.json").write_text(json.dumps(manifest))
        assert checkpoint.verify(newest) is not None
    (newest / "state" / "link").symlink_to("/etc/passwd")
    assert "link is not a regular file" in (checkpoint.verify(newest) or "")
