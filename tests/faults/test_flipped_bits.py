"""One flipped bit in each file that a resume and an audit read.

A resume refuses the file in one line, repairs it, or ends with the bits of the undisturbed run. Compiled programs are
in `tests/system/test_programs.py`, responses of an evaluation in `tests/evaluation/test_cache.py`.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lmjax.config import Config, UserError, presets
from lmjax.config.errors import RunError
from lmjax.diagnose import audit
from lmjax.run import resume, saved
from lmjax.training import checkpoint
from tests.faults import runs

pytestmark = pytest.mark.slow


class Sound(NamedTuple):
    """A run that was stopped after update 45, and the store of its tokens, which only it uses."""

    run: Path
    store: Path
    #: What the run ends with if nothing is damaged.
    digest: str


@pytest.fixture(scope="module")
def sound(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    cache = f"data.cache={folder / 'cache'}"
    assert runs.start(short, folder / "whole", "", cache) == 0
    assert runs.start(short, folder / "run", "update=SIGTERM@45", cache) == 0
    (manifest,) = (folder / "cache").glob("*/manifest.json")
    return Sound(folder / "run", manifest.parent, runs.digest(folder / "whole"))


def flip(path: Path, place: Callable[[int], int], bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place(len(content))] ^= 1 << bit
    path.write_bytes(content)


def resumed(folder: Path) -> str:
    """The digest of the run after a resume, or the line that refuses it."""
    try:
        config = presets.load(str(folder / "config.json"), resuming=True, report=lambda line: None)
        assert resume.resume(config, folder) == 0
    except (UserError, RunError) as error:
        return str(error)
    return runs.digest(folder)


def audited(folder: Path) -> int | str:
    try:
        return audit.show(folder)
    except (UserError, RunError) as error:
        return str(error)


#: Files of a run whose damage must be refused, and those that are repaired or not needed.
REFUSED = ("config.json", "config.sha256", "journal.jsonl")
REPAIRED = ("tokenizer.json", "metrics.jsonl", "summary.json")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*REFUSED, *REPAIRED])
def test_a_bit_of_a_file_of_the_run(sound: Sound, tmp_path: Path, name: str, seed: int) -> None:
    folder = shutil.copytree(sound.run, tmp_path / "run")
    rng = random.Random(f"{name} {seed}")
    # The hash of a line of the journal is in the next line: the last one is checked by what it says.
    share = 0.9 if name == "journal.jsonl" else 1.0
    flip(folder / name, lambda size: int(rng.random() * share * (size - 1)), rng.randrange(7))
    found, outcome = audited(folder), resumed(folder)
    if name in REFUSED:
        assert found != 0
        assert name in outcome
        assert "\n" not in outcome
    else:
        assert found in (0, 1)  # 0: in a blank of tokenizer.json, or in a value that no other file has
        assert outcome == sound.digest


def test_a_bit_of_the_last_line_of_the_journal(sound: Sound, tmp_path: Path) -> None:
    folder = shutil.copytree(sound.run, tmp_path / "run")
    rng, content = random.Random(0), (sound.run / "journal.jsonl").read_bytes()
    start = content[:-1].rindex(b"\n") + 1
    for _ in range(4):
        flip(folder / "journal.jsonl", lambda size: rng.randrange(start, size), rng.randrange(8))
        outcome = resumed(folder)
        assert outcome == sound.digest or ("journal" in outcome and "\n" not in outcome)
        shutil.rmtree(folder)
        shutil.copytree(sound.run, folder)


@pytest.mark.parametrize("kind", ["ids", "starts", "tokenizer.json", "manifest.json"])
def test_a_bit_of_the_prepared_tokens(sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A store with a damaged manifest is not found; the data are then prepared again, in the cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = random.Random(kind)
    for path in sorted(sound.store.glob(f"*{kind}")):
        before = path.read_bytes()
        if not before:
            continue
        folder = shutil.copytree(sound.run, tmp_path / path.name)
        flip(path, rng.randrange, rng.randrange(8))
        try:
            found, outcome = audited(folder), resumed(folder)
        finally:
            path.write_bytes(before)
        if kind == "manifest.json" and outcome == sound.digest:
            continue
        assert found == 1
        assert "prepared data do not match their manifest" in outcome
        assert str(path) in outcome
        assert "\n" not in outcome


def test_a_bit_of_a_checkpoint(sound: Sound, tmp_path: Path) -> None:
    """Each file of the newest one, also the metadata of Orbax: an older one serves."""
    newest = checkpoint.folders(sound.run / "checkpoints")[-1]
    rng = random.Random(0)
    names = [path.relative_to(sound.run) for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    for name in rng.sample(sorted(names), 4):
        folder = shutil.copytree(sound.run, tmp_path / "run")
        flip(folder / name, rng.randrange, rng.randrange(8))
        assert audited(folder) == 1
        assert resumed(folder) == sound.digest
        assert runs.records(folder, "fallback")[-1]["problems"]
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_run_with_a_damaged_bit_is_not_loaded(sound: Sound, tmp_path: Path, name: str) -> None:
    """To generate, evaluate or export: a changed vocabulary or setting of the model would give other text."""
    folder = shutil.copytree(sound.run, tmp_path / "run")
    before, rng = (folder / name).read_bytes(), random.Random(name)
    sha256, refusals = saved.load(folder).tokenizer.sha256, []
    for _ in range(20):
        flip(folder / name, rng.randrange, rng.randrange(8))
        try:  # a flag of the tokenizer with another name counts as not set, as it was
            assert saved.load(folder).tokenizer.sha256 == sha256
        except UserError as error:
            refusals.append(str(error))
        (folder / name).write_bytes(before)
    assert [text for text in refusals if name not in text or "\n" in text] == []
    assert len(refusals) == 20 if name == "config.json" else len(refusals) > 15
