"""Damage to any file of a checkpoint is found, said aloud and journaled, and an older checkpoint serves."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from lmjax.config import Config, UserError
from lmjax.run import saved
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError
from tests.faults import runs
from tests.faults.runs import cases


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {"flip": flip, "truncate": truncate, "delete": Path.unlink, "zero": zero}


@pytest.fixture(scope="module")
def whole(short: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run ends with if nothing is damaged."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert runs.start(short, folder) == 0
    return runs.digest(folder)


@pytest.fixture(scope="module")
def stopped(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, stopped by a signal after update 45, where it was saved last."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert runs.start(short, folder, "update=SIGTERM@45") == 0
    assert runs.updates(folder)[-2:] == [40, 45]
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(stopped, tmp_path / "run")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def newest(folder: Path) -> Path:
    return checkpoint.folders(folder / "checkpoints")[-1]


def falls_back(folder: Path, said: str, update: int, *names: str) -> None:
    """It was journaled once that the run fell back to `update`, and said aloud; every name was named."""
    (record,) = runs.records(folder, "fallback")
    assert record["update"] == update
    text = "; ".join(record["problems"])
    assert "fell back to an older checkpoint: " in said
    for name in names:
        assert name in text
        assert name in said.replace("\n", "")
    assert f"resuming {folder} after update {update}" in said.replace("\n", "")


@pytest.mark.slow
def test_another_use_of_the_run_refuses_a_damaged_newest_checkpoint(folder: Path) -> None:
    """A resume repeats the updates between two checkpoints; who loads parameters would get older ones."""
    path = newest(folder)
    DAMAGE["flip"](max(path.joinpath("state").rglob("*"), key=lambda file: file.stat().st_size * file.is_file()))
    with pytest.raises(UserError, match=r"checkpoint 45: .*; bring .*/45 back, or remove it to use .* update 40"):
        saved.load(folder)
    assert saved.load(folder, 40).update == 40
    shutil.rmtree(path)
    assert saved.load(folder).update == 40


KINDS = ("data", "manifest.json", "meta.json", "metadata")
CHOSEN = [("flip", "data"), ("truncate", "manifest.json"), ("delete", "meta.json"), ("zero", "data")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "kind"), cases(*CHOSEN, rest=[pair for pair in product(DAMAGE, KINDS) if pair not in CHOSEN])
)
def test_a_damaged_file_is_found_and_an_older_checkpoint_serves(
    whole: str, folder: Path, capsys: pytest.CaptureFixture[str], damage: str, kind: str
) -> None:
    """data: the largest file. metadata: the largest that Orbax writes beside it."""
    path = newest(folder)
    arrays = sorted(path.joinpath("state").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    chosen = {"data": arrays[-1], "metadata": path / "state" / "_METADATA"}.get(kind, path / kind)
    DAMAGE[damage](chosen)
    capsys.readouterr()
    assert runs.resume(folder) == 0
    falls_back(folder, capsys.readouterr().out, 40, "checkpoint 45")
    assert runs.digest(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_no_damage_to_any_file_goes_unseen(folder: Path, damage: str) -> None:
    """Every file of the newest checkpoint, one at a time; whitespace and empty files included."""
    path = newest(folder)
    names = files(path)
    assert {"manifest.json", "meta.json"} <= {*names}
    assert len(names) > 5
    for name in names:
        before = (path / name).read_bytes()
        if not before and damage != "delete":
            continue
        DAMAGE[damage](path / name)
        problem = checkpoint.verify(path)
        (path / name).write_bytes(before)
        assert problem, name
        if name != "manifest.json":
            assert name in problem or name == "meta.json"
    assert checkpoint.verify(path) is None


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.slow
@pytest.mark.parametrize("what", cases("file", "folder", rest=["state", "meta", "meta and state", "all"]))
def test_exchanged_checkpoints_are_found(
    whole: str, folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Checkpoints 40 and 45: one file of each, the folders, the arrays; where both are wrong, 30 serves."""
    one, other = (folder / "checkpoints" / name for name in ("40", "45"))
    if what == "file":
        swap(*(max(path.glob("state/**/d/*"), key=lambda file: file.stat().st_size) for path in (one, other)))
    elif what in ("folder", "all"):
        swap(one, other)
        if what == "all":  # and then make them look right again, as far as names go
            for path in (one, other):
                meta = json.loads((path / "meta.json").read_text()) | {"update": int(path.name)}
                (path / "meta.json").write_text(json.dumps(meta))
                (path / "manifest.json").write_text(json.dumps(checkpoint.hashes(path)))
    else:
        if "state" in what:
            swap(one / "state", other / "state")
        if "meta" in what:
            swap(one / "meta.json", other / "meta.json")
    capsys.readouterr()
    assert runs.resume(folder) == 0
    falls_back(folder, capsys.readouterr().out, 30, "checkpoint 45", "checkpoint 40")
    assert runs.digest(folder) == whole


@pytest.mark.slow
def test_a_checkpoint_that_is_gone_is_no_obstacle(whole: str, folder: Path) -> None:
    shutil.rmtree(newest(folder))
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("damage", cases("flip", rest=["truncate", "delete", "zero"]))
def test_a_run_with_no_whole_checkpoint_ends_and_names_the_files(folder: Path, damage: str) -> None:
    before = {}
    for path in checkpoint.folders(folder / "checkpoints"):
        DAMAGE[damage](path / "meta.json")
        before |= {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    journal = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        runs.resume(folder)
    assert str(caught.value).startswith(f"no checkpoint in {folder / 'checkpoints'} can be read")
    assert str(caught.value).count("meta.json") == len(runs.updates(folder))
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "journal.jsonl").read_bytes() == journal


@pytest.mark.slow
def test_the_door_says_so_in_one_line_and_exits_with_1(folder: Path) -> None:
    for path in checkpoint.folders(folder / "checkpoints"):
        flip(path / "manifest.json")
    done = runs.train_py("--resume", folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("error: no checkpoint in ")


@pytest.mark.slow
def test_folders_that_were_all_deleted_are_not_a_new_run(folder: Path) -> None:
    """The journal tells of checkpoints: to begin at update 0 without them would pass for a resume."""
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="can be read: there is none"):
        runs.resume(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "target"),
    cases((["30"], 20), rest=[(["30", "20"], 10), (["30", "40"], 20), (["0", "10", "20"], 30)]),
)
def test_a_rollback_passes_over_a_damaged_checkpoint(
    short: Config, whole: str, folder: Path, damaged: list[str], target: int
) -> None:
    """Without damage it would go back from 48 to 30; the fault is transient, so nothing remains of it."""
    for name in damaged:
        flip(folder / "checkpoints" / name / "meta.json")
    assert runs.resume(folder, "params=nan@48") == 0
    (record,) = runs.records(folder, "rollback")
    assert record["target"] == target
    assert runs.digest(folder) == whole
