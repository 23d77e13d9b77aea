"""Only regular files with content are read; nothing waits for a pipe or reads a device."""

import os
import socket
import time
from pathlib import Path

import pytest

from lmjax.config import regular_files
from lmjax.config.regular_files import open_regular, read_regular


def test_a_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "empty").touch()
    for name in ("a", "b"):
        assert read_regular(tmp_path / name) == content
        with open_regular(tmp_path / name) as file:
            assert file.read() == content
    assert read_regular(tmp_path / "a", largest=len(content)) == content
    assert read_regular(tmp_path / "empty") == b""


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        started = time.monotonic()
        for name in ("pipe", "link", "zero", "socket"):
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                read_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    assert time.monotonic() - started < 5  # a pipe without a writer would block forever


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(OSError, match="it has more than 2 bytes"):
        read_regular(tmp_path / "a", largest=2)


def test_a_sparse_file_is_refused_and_a_small_hole_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_files, "HOLES", 1 << 20)
    path = tmp_path / "a"
    path.write_bytes(b"a" * 4096)
    os.truncate(path, 1 << 20)
    with open_regular(path) as file:
        assert len(file.read()) == 1 << 20
    with path.open("r+b") as file:  # content at both ends, and a hole between them
        file.truncate(1 << 40)
        file.seek(-4096, os.SEEK_END)
        file.write(b"b" * 4096)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    with pytest.raises(OSError, match="sparse file"):
        open_regular(path)


def test_a_dense_file_of_any_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_files, "HOLES", 10)
    (tmp_path / "a").write_bytes(b"abc" * 10_000)
    assert len(read_regular(tmp_path / "a")) == 30_000
