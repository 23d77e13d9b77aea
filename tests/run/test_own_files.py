"""A run notices that its directory, its lock or its files are no longer its own."""

import shutil
from pathlib import Path

import pytest

from lmjax.config import UserError
from lmjax.config.errors import RunError
from lmjax.run.own_files import OwnFiles
from lmjax.system.files import Lock, locked


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "extensions" / "of-1a2b").mkdir(parents=True)
    (folder / "extensions" / "of-1a2b" / "model.py").write_text("WIDTH = 8")
    return folder


def test_files_that_were_lost_are_written_again(run_dir: Path) -> None:
    reports: list[str] = []
    with locked(run_dir) as lock:
        own = OwnFiles(run_dir, lock, reports.append)
        own.check()
        (run_dir / "config.json").unlink()
        (run_dir / "tokenizer.json").write_text("")
        shutil.rmtree(run_dir / "checkpoints")
        shutil.rmtree(run_dir / "extensions")
        own.check()
        own.check()
    assert (run_dir / "config.json").read_text() == "{}"
    assert (run_dir / "tokenizer.json").read_text() == '{"a": 1}'
    assert (run_dir / "extensions" / "of-1a2b" / "model.py").read_text() == "WIDTH = 8"
    assert (run_dir / "checkpoints").is_dir()
    assert [report.removeprefix(f"{run_dir}/") for report in reports] == [
        "checkpoints was deleted by another program: the next checkpoint begins a new folder",
        "config.json was deleted by another program: written again",
        "tokenizer.json was changed by another program: written again",
        "extensions/of-1a2b/model.py was deleted by another program: written again",
    ]


def test_a_folder_that_a_write_under_way_makes_again_is_a_deleted_one(run_dir: Path) -> None:
    reports: list[str] = []
    with locked(run_dir) as lock:
        own = OwnFiles(run_dir, lock, reports.append)
        own.check()
        (run_dir / "checkpoints" / "20.partial").mkdir()
        own.check()
        assert not reports
        (run_dir / "checkpoints").rename(run_dir.with_name("aside"))
        (run_dir / "checkpoints" / "20.partial").mkdir(parents=True)
        own.check()
        (run_dir / "checkpoints" / "20.partial").rmdir()  # the write failed
        own.check()
    assert [report.removeprefix(f"{run_dir}/") for report in reports] == [
        "checkpoints was deleted by another program: the next checkpoint begins a new folder"
    ]


def test_what_a_killed_process_left_half_written_is_removed(run_dir: Path) -> None:
    (run_dir / "config.json.partial").write_text("{")
    (run_dir / "metrics.jsonl.partial").symlink_to(run_dir / "config.json")
    (run_dir / "journal.jsonl.partial").mkdir()
    (run_dir / "notes.partial").write_text("mine")
    with locked(run_dir) as lock:
        OwnFiles(run_dir, lock, print).check()
    assert sorted(path.name for path in run_dir.glob("*.partial")) == ["journal.jsonl.partial", "notes.partial"]
    assert (run_dir / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_folder_in_the_place_of_another_ends_the_run(run_dir: Path, name: str) -> None:
    with locked(run_dir) as lock:
        own = OwnFiles(run_dir, lock, lambda text: None)
        own.check()
        folder = run_dir / name
        folder.rename(run_dir.with_name("aside"))
        if not name:
            with pytest.raises(RunError, match=f"{folder} was deleted or moved"):
                own.check()
        (folder / "7").mkdir(parents=True)  # a checkpoint of another run
        with pytest.raises(RunError, match=f"{folder} was replaced"):
            own.check()


def test_a_deleted_lock_is_locked_again(run_dir: Path) -> None:
    reports: list[str] = []
    with locked(run_dir) as lock:
        own = OwnFiles(run_dir, lock, reports.append)
        (run_dir / ".lock").unlink()
        own.check()
        assert reports == [f"{run_dir / '.lock'} was deleted by another program: locked again"]
        with pytest.raises(UserError, match="is in use by"), locked(run_dir):
            pass
    assert not (run_dir / ".lock").exists()


def test_a_second_process_that_got_in_ends_the_first(run_dir: Path) -> None:
    with locked(run_dir) as lock:
        own = OwnFiles(run_dir, lock, lambda text: None)
        (run_dir / ".lock").unlink()
        second = Lock(run_dir)
        second.acquire()
        with pytest.raises(RunError, match=r"works in .* now: this process stops"):
            own.check()
        second.release()
        own.check()  # locked again
