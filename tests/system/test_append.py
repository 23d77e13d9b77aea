"""A file that is appended to: a failed write leaves nothing, and changes from outside are noticed."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lmjax.config.errors import RunError
from lmjax.system.append import AppendFile
from lmjax.system.files import write_text
from tests.small_disk import resize, small_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_what_is_appended_is_there_at_once_and_after_another_start(path: Path) -> None:
    AppendFile(path).append(b"one\n")
    file = AppendFile(path)
    file.append(b"two\n", sync=True)
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_deleted_file_is_written_again_from_the_descriptor(path: Path) -> None:
    reports: list[str] = []
    file = AppendFile(path, report=reports.append)
    file.append(b"one\n" * 100_000)
    path.unlink()
    file.append(b"two\n")
    assert path.read_bytes() == b"one\n" * 100_000 + b"two\n"
    assert reports == [f"{path} was deleted by another program: written again"]


@pytest.mark.parametrize("beginning", [b"", b"one", b"one\n"])
def test_a_file_replaced_by_a_first_part_of_it_is_written_again(path: Path, beginning: bytes) -> None:
    file = AppendFile(path)
    file.append(b"one\ntwo\n")
    path.with_name("new").write_bytes(beginning)
    path.with_name("new").replace(path)
    file.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_truncated_file_needs_its_content(path: Path) -> None:
    lines = [b"one\n", b"two\n"]
    file = AppendFile(path, content=lambda: b"".join(lines))
    file.append(b"one\ntwo\n")
    os.truncate(path, 5)
    file.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"

    file = AppendFile(path)
    os.truncate(path, 3)
    with pytest.raises(RunError, match=f"{path} was truncated to 3 bytes while this process used it"):
        file.append(b"four\n")
    assert path.read_bytes() == b"one"


def damage_append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"from elsewhere\n")


def damage_replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"of another run\n")


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_parent(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize("damage", [damage_append, damage_replace, damage_folder, damage_parent])
def test_any_other_change_ends_the_writing(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "journal.jsonl"
    file = AppendFile(path, content=lambda: b"one\n")
    file.append(b"one\n")
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(RunError, match="another program changed it") as caught:
            file.append(b"two\n")
        assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_write_that_the_system_splits_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:3]))
    AppendFile(path).append(b"a longer line\n")
    assert path.read_bytes() == b"a longer line\n"


# ---- A disk that is really full -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """256 kB, which is 64 pages."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 4096, 6000, 20_000])
def test_on_a_full_disk_the_file_is_as_before(disk: Path, size: int) -> None:
    path, line = disk / "journal.jsonl", b"x" * (size - 1) + b"\n"
    file = AppendFile(path)
    count = 0
    with suppress(OSError):
        while count < 10_000:
            file.append(line, sync=True)
            count += 1
    assert 5 < count < 10_000
    for _ in range(3):
        assert path.read_bytes() == line * count
        with pytest.raises(OSError, match="No space left on device"):
            file.append(line)
    assert path.read_bytes() == line * count
    resize(disk, "1m")
    file.append(line)
    assert path.read_bytes() == line * (count + 1)


@pytest.mark.slow
def test_on_a_full_disk_a_replaced_file_is_as_before(disk: Path) -> None:
    path = disk / "manifest.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "new" * 100_000)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [item.name for item in disk.iterdir()] == ["manifest.json"]
