"""Ingestion that is interrupted, resumed, concurrent, or meets a full disk."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import SourceConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.sources import text as text
from lmjax.data.store import ingest, preparation
from tests.data.store.corpus import configuration, documents, split_up

# ---- Going on after a kill --------------------------------------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH", 200)
    monkeypatch.setattr(ingest, "COMMIT", 500)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("split", ["hash", "tail"])
@pytest.mark.usefixtures("small_steps")
def test_interrupted_anywhere_is_as_if_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Dies at every durable step in turn, each time with rubbish written after the last commit."""
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(d.replace("D", name) for d in documents(40)))
    parts = tuple(SourceConfig(files=(str(tmp_path / f"{name}.txt"),)) for name in "bc")
    options = {"files": (), "mixture": parts, "validation": split, "validation_fraction": 0.2}
    expected = preparation.prepare(configuration(tmp_path, cache=str(tmp_path / "whole"), **options))
    config = configuration(tmp_path, **options)
    truncate, write = os.truncate, ingest.write_text
    deaths = 0

    def die_once(after: bool, call: Any, *args: Any) -> None:
        nonlocal left, deaths
        left -= 1
        if left == 0 and not after:
            deaths += 1
            raise Killed
        call(*args)
        if left == 0:
            deaths += 1
            for path in (tmp_path / "cache").glob("*.partial/*.*s"):
                with path.open("ab") as file:
                    file.write(b"rubbish")
            raise Killed

    encoded: list[str] = []
    encode = tokenizer.Tokenizer.encode_batch
    monkeypatch.setattr(
        tokenizer.Tokenizer, "encode_batch", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    monkeypatch.setattr(ingest, "write_text", lambda *args: die_once(deaths % 2 == 0, write, *args))
    monkeypatch.setattr(ingest.os, "truncate", lambda *args: die_once(True, truncate, *args))
    for attempt in range(200):
        left = 1 + attempt
        try:
            made = preparation.prepare(config)
            break
        except Killed:
            pass
    assert deaths == attempt > 6
    assert made.fingerprint == expected.fingerprint
    assert made.manifest["files"] == expected.manifest["files"]
    assert made.manifest["streams"] == expected.manifest["streams"]
    assert made.manifest["sources"] == expected.manifest["sources"]
    assert len(encoded) < 80 * deaths / 2  # what was committed is not encoded again


@pytest.mark.slow
def test_killed_by_the_system_and_started_again(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    expected = preparation.prepare(dataclasses.replace(config, cache=str(tmp_path / "whole")))
    code = (
        "import os, signal; from lmjax.config import *; from lmjax.data.store import ingest, preparation\n"
        "ingest.BATCH, ingest.COMMIT, calls = 100, 300, []\n"
        "def report(done, total, message):\n"
        "    calls.append(done)\n"
        "    if len(calls) == 15: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"print(calls, preparation.prepare({config!r}, report=report).fingerprint)"
    )
    for _ in range(10):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        if run.returncode == 0:
            break
        assert run.returncode == -9, run.stderr
        progress = json.loads(next((tmp_path / "cache").glob("*.partial/progress.json")).read_text())
        assert progress["pieces"] > 0
    assert run.stdout.split()[-1] == expected.fingerprint


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    "change",
    [
        {"pieces": "x"}, {"finished": [1]}, {"finished": {}}, {"sizes": {"train-0.ids": -4}}, {"sizes": []},
        {"text_bytes": {"train-0": None}}, {"sha256": 5}, {"stream": []}, {"tails_cut": "no"}, {"unknown": 1},
        {"pieces": 10**30}, {"finished": [{"documents": 5, "documents_sha256": "x"}], "sizes": {}},
    ],
)  # fmt: skip
def test_damaged_progress_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    config = configuration(tmp_path)
    monkeypatch.setattr(ingest, "write_text", lambda path, text, write=ingest.write_text: die_after(write, path, text))
    with pytest.raises(Killed):
        preparation.prepare(config)
    monkeypatch.undo()
    path = next((tmp_path / "cache").glob("*.partial/progress.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    made = preparation.prepare(config)
    whole = preparation.prepare(configuration(tmp_path, cache=str(tmp_path / "whole")))
    assert made.fingerprint == whole.fingerprint


@pytest.mark.usefixtures("small_steps")
def test_a_beginning_of_another_text_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path)
    path = tmp_path / "a.txt"
    stamp = path.stat()
    monkeypatch.setattr(ingest, "write_text", lambda path, text, write=ingest.write_text: die_after(write, path, text))
    with pytest.raises(Killed):
        preparation.prepare(config)
    monkeypatch.undo()
    path.write_text(path.read_text("utf-8").replace("Document", "dOCUMENT"), "utf-8")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the change cannot be seen from outside
    made = preparation.prepare(config)
    assert {d[:8] for d in split_up(made.sources[0], made)} == {"dOCUMENT"}


def die_after(call: Any, *args: Any) -> None:
    call(*args)
    raise Killed


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    config = configuration(tmp_path)

    def report(done: int, total: int | None, message: str) -> None:
        if message == "encoding":
            os.utime(tmp_path / "a.txt", ns=(1, 1))

    with pytest.raises(UserError, match="changed while it was read"):
        preparation.prepare(config, report=report)
    assert not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.slow
def test_processes_at_the_same_time_make_one_store(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    code = (
        "from lmjax.config import *; from lmjax.data.store import ingest, preparation; ingest.COMMIT = 300\n"
        f"made = preparation.prepare({config!r}, verify=True, report=lambda done, total, message: print(message))\n"
        "print(made.fingerprint)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len({output[-1] for output in outputs}) == 1
    assert sum("hashing" in output for output in outputs) == 1


def test_progress_is_reported_in_bytes_of_text(tmp_path: Path) -> None:
    config = configuration(tmp_path, document="file", validation="tail")
    calls: list[tuple[int, int | None, str]] = []
    preparation.prepare(config, report=lambda *call: calls.append(call))
    size = (tmp_path / "a.txt").stat().st_size
    assert (size, size, "encoding") in calls
    assert [message for *_, message in calls][-1] == "hashing"


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert preparation.cache_folder("") == tmp_path / "lmjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert preparation.cache_folder("") == Path.home() / ".cache/lmjax"
    assert preparation.cache_folder("~/x") == Path.home() / "x"


# ---- Full disk --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("split", ["hash", "tail"])
def test_a_full_disk_leaves_nothing_that_counts_as_complete(tmp_path: Path, split: str) -> None:
    """A real tmpfs, filled so that the ingestion ends at another place in each attempt; then it gets enough room."""
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(documents(4000)), encoding="utf-8")
    config = configuration(tmp_path, validation=split, validation_fraction=0.2, cache=str(tmp_path / "small"))
    expected = preparation.prepare(dataclasses.replace(config, cache=str(tmp_path / "whole")))
    (tmp_path / "small").mkdir()
    code = (
        "from pathlib import Path; from lmjax.config import *; from lmjax.data.store import ingest, preparation\n"
        "ingest.BATCH, ingest.COMMIT = 3000, 9000\n"
        f"config, space = {config!r}, Path({str(tmp_path / 'small')!r})\n"
        "for blocks in (255, 240, 220, 200, 190, 185, 180, 175, 170, 165, 160, 155, 150, 140, 120, 60, 0):\n"
        "    (space / 'fill').write_bytes(b'x' * (blocks * 4096))\n"
        "    try:\n"
        "        made = preparation.prepare(config, verify=True)\n"
        "    except UserError as error:\n"
        "        print(f'refused: {error}')\n"
        "        assert not [path for path in space.iterdir() if path.is_dir() and path.suffix != '.partial']\n"
        "    else:\n"
        "        print('made', made.fingerprint)\n"
        "        break\n"
    )
    mount = 'mount -t tmpfs -o size=1100k tmpfs "$1" && exec "$2" -c "$3"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path / "small"), sys.executable, code]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if ("refused" not in run.stdout and "denied" in run.stderr) or "not permitted" in run.stderr:
        pytest.skip("mounting is not permitted")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) > 3
    assert all("cannot write prepared data" in line and "No space left" in line for line in lines[:-1])
    assert lines[-1] == f"made {expected.fingerprint}"
