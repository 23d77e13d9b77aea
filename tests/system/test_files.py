"""Files that are there whole or not at all, and a lock that one process holds."""

import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from lmjax.config import UserError
from lmjax.system import files
from tests import ROOT


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("one", "two: \N{GREEK SMALL LETTER PI}"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_replaced_file_appears_complete_or_not_at_all(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.png"
    with files.replacing(path, sync=sync) as partial:
        partial.write_bytes(b"one")
        assert not path.exists()

    def interrupted() -> None:
        with files.replacing(path, sync=sync) as partial:
            partial.write_bytes(b"half of two")
            assert path.read_bytes() == b"one"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(FileNotFoundError), files.replacing(path, sync=sync):
        pass  # nothing was written
    assert path.read_bytes() == b"one"


# ---- The lock -------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time, pathlib
from lmjax.system.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_told_who_holds(tmp_path: Path) -> None:
    me = f"process {os.getpid()} on {platform.node()}"
    with files.locked(tmp_path):
        for _ in range(2):  # also after one was refused
            with pytest.raises(UserError, match=f"{tmp_path} is in use by {me}; wait"), files.locked(tmp_path):
                raise AssertionError("held twice")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_lets_go_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with files.locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "process 1 on elsewhere\n", "\0" * 5000])
def test_a_lock_file_left_behind_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with files.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}\n"


def test_other_folders_are_not_locked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with files.locked(tmp_path / "a"), files.locked(tmp_path / "b"):
        pass


def test_one_who_waits_goes_on_when_the_holder_lets_go(tmp_path: Path) -> None:
    lock, asked, order = tmp_path / "name.lock", threading.Event(), []

    def second() -> None:
        with files.locked(lock, wait=asked.set):
            order.append("second")

    with files.locked(lock):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_process_lets_go_of_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"in use by process {process.pid} "), files.locked(tmp_path):
                raise AssertionError("held twice")
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert (tmp_path / ".lock").exists()  # nobody was there to remove it
    with files.locked(tmp_path):
        pass


def test_without_a_home_directory_the_cache_is_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = files.cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert files.cache_folder() == folder
    folder.chmod(0o777)  # another user could put programs into it
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        files.cache_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        files.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.cache_folder() == Path("/x/lmjax")
