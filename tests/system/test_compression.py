"""Compressed files: what other programs wrote, in blocks of bounded size, and one line for damage."""

import bz2
import functools
import gzip
import io
import lzma
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lmjax.config import UserError
from lmjax.system import compression, readers

CONTENT = ("Zwölf Boxkämpfer\r\n" * 100).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def unpack(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    return b"".join(compression.blocks(path))


@pytest.mark.parametrize("ending", [*PACK, *(ending.upper() for ending in PACK)])
def test_streams_and_damage(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "BLOCK", 64)
    path, pack = tmp_path / f"a.txt{ending}", PACK[ending.lower()]
    assert unpack(path, pack(CONTENT)) == CONTENT
    assert unpack(path, pack(CONTENT[:500]) + pack(b"") + pack(CONTENT[500:])) == CONTENT  # several compressed parts
    assert readers.read_text(path) == CONTENT.decode()
    assert all(len(block) <= 64 for block in compression.blocks(path))
    for damaged in (pack(CONTENT)[:-9], b"not packed at all, only text", pack(CONTENT) + b"more", b""):
        with pytest.raises(UserError, match=rf"cannot unpack '.*a.txt{ending}': .*; compress or copy it again"):
            unpack(path, damaged)


def test_settings_other_than_the_default(tmp_path: Path) -> None:
    long_window = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=long_window).compressobj()  # the frame does not have its size
    assert unpack(tmp_path / "long.zst", packer.compress(CONTENT) + packer.flush()) == CONTENT
    skipped = struct.pack("<II", 0x184D2A5F, 5) + b"12345"  # of RFC 8878, section 3.1.2
    assert unpack(tmp_path / "skipped.zst", skipped + zstandard.compress(CONTENT) + skipped) == CONTENT
    checked = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False, level=19)
    assert unpack(tmp_path / "checked.zst", checked.compress(CONTENT)) == CONTENT
    padded = lzma.compress(CONTENT[:99]) + bytes(8) + lzma.compress(CONTENT[99:], check=lzma.CHECK_SHA256) + bytes(4)
    assert unpack(tmp_path / "padded.xz", padded) == CONTENT
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    assert unpack(tmp_path / "large.xz", lzma.compress(CONTENT, filters=large)) == CONTENT
    stream = io.BytesIO()
    with gzip.GzipFile("a name", "wb", fileobj=stream, compresslevel=1) as file:
        file.write(CONTENT)
    assert unpack(tmp_path / "named.gz", stream.getvalue() + bytes(20)) == CONTENT


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name, message in (("none.txt", "No such file"), ("folder.txt", "Is a directory"), ("a\0.txt", "null byte")):
        with pytest.raises(UserError, match=f"cannot read '.*': .*{message}"):
            list(compression.blocks(tmp_path / name))


def bomb(path: Path, ending: str, megabytes: int) -> Path:
    """Zeros: a ratio of a thousand (.gz) to a million (.bz2)."""
    zeros = bytes(1 << 20)
    openers: dict[str, Callable[..., Any]] = {
        ".gz": functools.partial(gzip.open, compresslevel=1),
        ".bz2": functools.partial(bz2.open, compresslevel=1),
        ".xz": functools.partial(lzma.open, preset=0),
        ".zst": zstandard.open,
    }
    with openers[ending](path, "wb") as file:
        for _ in range(megabytes):
            file.write(zeros)
    return path


@pytest.mark.parametrize("ending", PACK)
def test_memory_does_not_depend_on_the_ratio(tmp_path: Path, ending: str) -> None:
    # The smallest steps of .zst have 32 MB, and are copied once.
    megabytes, limit = (96, 80e6) if ending == ".zst" else (16, 8e6)
    path = bomb(tmp_path / f"bomb.txt{ending}", ending, megabytes)
    tracemalloc.start()
    total = sum(len(block) for block in compression.blocks(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == megabytes << 20
    assert peak < limit


@pytest.mark.slow
@pytest.mark.parametrize("ending", PACK)
def test_a_bomb_of_a_gigabyte_ends_in_one_line_with_little_memory(tmp_path: Path, ending: str) -> None:
    """As text it is read in pieces; as a line of JSON it is refused at the limit."""
    text, table = (tmp_path / f"bomb{kind}{ending}" for kind in (".txt", ".jsonl"))
    table.symlink_to(bomb(text, ending, 1024))
    code = (
        "import resource, sys; from lmjax.config import DataConfig, UserError; from lmjax.data.sources import streams\n"
        "from lmjax.system import compression, readers; from pathlib import Path\n"
        "from datasets import IterableDataset\n"
        "data, path = DataConfig(files=(sys.argv[1],)), Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "print(sum(map(len, compression.blocks(path))) >> 20)\n"
        "pieces = streams.documents(streams.sources(data)[0], data)\n"
        "for _ in range(9): next(pieces)\n"
        "try: list(readers.rows(Path(sys.argv[2]), longest=1 << 24))\n"
        "except UserError as error: print(error)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"  # without the parent's
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(text), str(table)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    total, message, peak = done.stdout.splitlines()
    assert total == "1024"
    assert message == f"'{table}', line 1 has more than {1 << 24} bytes; write shorter lines"
    assert int(peak) < 1 << 20  # kilobytes
