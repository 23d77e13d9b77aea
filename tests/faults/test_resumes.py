"""Resuming as something else, on other devices, twice at once, from a journal or folder that someone was at."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmjax.config import Config, UserError
from lmjax.config.codec import apply_overrides, from_json
from lmjax.config.errors import RunError
from lmjax.run import resume
from tests.faults import runs
from tests.faults.runs import cases


@pytest.fixture(scope="module")
def clean(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run from start to end."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert runs.start(short, folder) == 0
    return folder


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- As something else ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    cases(
        "model.width=32",
        "schedule.peak=0.02",
        "seed=1",
        rest=[
            "model.layers=3", "model.heads=4", "model.vocab_size=300", "model.dtype=bfloat16", "model.norm=rmsnorm",
            "schedule.shape=linear", "schedule.warmup=0.2", "optimizer.name=lion", "optimizer.beta2=0.99",
            "batch.tokens=((0,256),)", "train.updates=80", "guard.policy=off", "checkpoint.every=5",
            "data.tokenizer.kind=characters", "data.shuffle=false", "data.exclude=((0,8),)",
            "data.validation_fraction=0.2",
        ],
    ),
)  # fmt: skip
def test_another_configuration_is_refused_and_nothing_is_changed(folder: Path, change: str) -> None:
    before = everything(folder)
    config = from_json((folder / "config.json").read_text(), Config)
    key, _, value = change.partition("=")
    with pytest.raises(UserError) as caught:
        resume.resume(apply_overrides(config, [change]), folder)
    said = str(caught.value)
    assert said.startswith("the run has another configuration (")
    assert f"--allow-change {key}" in said
    if not value.startswith("("):
        assert f"{key}: " in said
        assert f"-> {value}" in said.lower().replace("'", "")
    assert "\n" not in said
    assert everything(folder) == before


@pytest.mark.slow
def test_the_door_shows_the_difference_and_exits_with_2(folder: Path) -> None:
    before = everything(folder)
    done = runs.train_py("--resume", folder, "model.layers=3")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "model.layers: 2 -> 3" in done.stderr
    assert everything(folder) == before


@pytest.mark.slow
def test_an_allowed_change_is_journaled_and_takes_effect(folder: Path, clean: Path) -> None:
    assert runs.resume(folder, "", "schedule.peak=0.02") == 0
    (record,) = runs.records(folder, "resume")
    assert record["changed"] == ["schedule.peak: 0.01 -> 0.02"]
    assert from_json((folder / "config.json").read_text(), Config).schedule.peak == 0.02
    assert runs.digest(folder) != runs.digest(clean)
    assert runs.losses(folder)[:46] == runs.losses(clean)[:46]  # up to the first update behind the change


@pytest.mark.slow
def test_another_shape_of_the_model_is_refused_even_if_allowed(folder: Path) -> None:
    """What was saved does not fit into it: no checkpoint is taken for another's."""
    before = everything(folder)
    with pytest.raises(
        RunError, match=r"no checkpoint in .* can be read: .*was saved with shape \(2, 16\), the run has \(2, 32\)"
    ):
        runs.resume(folder, "", "model.width=32")
    assert everything(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("what", cases("data", rest=["tokenizer"]))
def test_other_data_or_another_tokenizer_are_refused(short: Config, corpus: Path, tmp_path: Path, what: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    kind = "bytes" if what == "data" else "characters"
    folder = tmp_path / "run"
    changes = (f"data.files=[{text}]", f"data.tokenizer.kind={kind}")
    assert runs.start(short, folder, "update=SIGTERM@15", *changes) == 0
    before = everything(folder)
    swapped = (b"cat", b"cow") if what == "data" else (b"cat", "çat".encode())
    text.write_bytes(corpus.read_bytes().replace(*swapped))
    with pytest.raises(UserError, match=r"changed since the run began \(sha256 .* -> .*\); restore the old files"):
        runs.resume(folder)
    assert everything(folder) == before
    text.write_bytes(corpus.read_bytes())
    assert runs.resume(folder) == 0


# ---- On other devices -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("steps", cases((2,), rest=[((2, 8),), ((8, 1),)]))
def test_other_numbers_of_devices_see_the_same_samples(folder: Path, clean: Path, steps: tuple[int, ...]) -> None:
    """1 -> 2 -> 8 devices: the same cursors; sums are taken in another order, so losses may differ by 1e-5."""
    for count, fault in zip(steps, ["", "update=SIGTERM@53"][: len(steps)][::-1], strict=True):
        environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}.items()
        words = ("--resume", folder, f"parallel.devices={count}", "--allow-change", "parallel.devices")
        done = runs.train_py(*words, fault=fault, environment=environment)
        assert done.returncode == 0, done.stderr
    assert [record["devices"] for record in runs.records(folder, "resume")] == list(steps)
    assert runs.records(folder)[-1]["status"] == "finished"
    expected, found = runs.losses(clean), runs.losses(folder)
    assert [cursor for cursor, _ in found] == [cursor for cursor, _ in expected]
    for (_, loss), (_, before) in zip(found, expected, strict=True):
        assert float.fromhex(loss) == pytest.approx(float.fromhex(before), rel=1e-5)


# ---- Two at once, and leftovers -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_is_at_work(short: Config, clean: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = runs.forked(short, folder, "update=sleep:20@25")
    limit = time.monotonic() + 120
    while 20 not in (runs.updates(folder) if folder.exists() else []):
        assert first.is_alive()
        assert time.monotonic() < limit
        time.sleep(0.01)
    before: dict = {}
    while before != (before := everything(folder)):  # it goes on to update 25, where it sleeps
        time.sleep(0.5)
    with pytest.raises(UserError, match=f"is in use by process {first.pid} on .*; wait for it, or stop it first"):
        runs.resume(folder)
    with pytest.raises(UserError, match="exists: resume it with --resume"):
        runs.start(short, folder)
    assert everything(folder) == before
    done = runs.train_py("--resume", folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    first.kill()
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    assert runs.resume(folder) == 0  # the lock that was left behind is no obstacle
    assert runs.digest(folder) == runs.digest(clean)


@pytest.mark.slow
def test_a_stale_lock_is_no_obstacle_and_a_held_one_is(folder: Path, clean: Path) -> None:
    (folder / ".lock").write_text("process 1 on a machine that is gone\n")
    with open(folder / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by process 1 on a machine that is gone"):
            runs.resume(folder)
    assert runs.resume(folder) == 0
    assert not (folder / ".lock").exists()
    assert runs.digest(folder) == runs.digest(clean)


@pytest.mark.slow
def test_leftovers_are_removed_and_what_is_not_ours_is_left_alone(folder: Path, clean: Path) -> None:
    root = folder / "checkpoints"
    for name in ("46.partial", "40.old.partial"):
        shutil.copytree(root / "40", root / name)
        (root / name / "manifest.json").unlink()
    (folder / "summary.json.partial").write_text("{")
    foreign = [
        folder / "notes.txt",
        root / "README",
        root / "best" / "a",
        root / "007x" / "b",
        folder / "journal.jsonl~",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    beside = folder.parent / "beside"
    beside.mkdir()
    (beside / "50").write_text("mine")
    (root / "49").symlink_to(beside)  # not a checkpoint, and not to be followed into
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == runs.digest(clean)
    assert not list(root.glob("*.partial"))
    assert [path.read_text() for path in foreign] == ["mine"] * len(foreign)
    assert {path: path.read_text() for path in folder.parent.rglob("50") if path.parent == beside} == {
        beside / "50": "mine"
    }


@pytest.mark.slow
@pytest.mark.parametrize("fault", cases("params=nan@48", rest=["", "save.manifest=full@3"]))
def test_nothing_outside_of_the_run_is_touched(
    short: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The prepared tokens stand in data.cache; with these there, only the run directory changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "older" / "checkpoints" / "50").mkdir(parents=True)
    (tmp_path / "runs" / "older" / "checkpoints" / "50" / "x").write_text("mine")
    (tmp_path / "checkpoints").mkdir()

    def rest() -> dict[Path, int]:
        places = [tmp_path, Path(short.data.cache), Path(short.data.files[0]).parent]
        found = (path for place in places for path in place.rglob("*"))
        return {path: path.stat().st_mtime_ns for path in found if not path.is_relative_to(tmp_path / "runs" / "new")}

    before = rest()
    assert runs.start(short, Path("runs/new"), f"{fault} update=SIGTERM@55") == 0
    assert runs.resume(Path("runs/new")) == 0
    after = rest()
    after[tmp_path / "runs"] = before[tmp_path / "runs"]  # has a new entry
    assert after == before


# ---- The journal ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bytes_left", cases(40, rest=[1, -1]))
def test_a_line_cut_short_is_dropped(folder: Path, clean: Path, bytes_left: int) -> None:
    path = folder / "journal.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:bytes_left])
    assert runs.resume(folder) == 0
    assert path.read_bytes().startswith(b"".join(lines))
    assert runs.digest(folder) == runs.digest(clean)


def edit(lines: list[bytes]) -> None:
    record = json.loads(lines[3])
    lines[3] = json.dumps(record | {"cursor": record["cursor"] + 1}).encode() + b"\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    cases(
        (edit, 4),
        rest=[
            (lambda lines: lines.pop(3), 4),
            (lambda lines: lines.insert(3, lines[2]), 4),
            (lambda lines: lines.__setitem__(3, b"{}\n"), 4),
            (lambda lines: lines.__setitem__(3, lines[3][:20]), 4),
        ],
    ),
)
def test_an_edited_journal_is_refused(folder: Path, change: Callable[[list[bytes]], object], line: int) -> None:
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    before = everything(folder)
    with pytest.raises(UserError) as caught:
        runs.resume(folder)
    said = str(caught.value)
    assert f"{path}:{line}: " in said or f"{path}:{line + 1}: " in said
    assert "the hash chain is broken: the journal was edited or damaged here" in said
    assert everything(folder) == before


@pytest.mark.slow
def test_a_journal_that_is_gone_is_not_a_new_run(folder: Path) -> None:
    """With checkpoints there, beginning at update 0 would overwrite them."""
    (folder / "journal.jsonl").unlink()
    before = {path: data for path, data in everything(folder).items() if "checkpoints" in path.parts}
    with pytest.raises(UserError, match=r"has checkpoints, but no journal: bring journal\.jsonl back"):
        runs.resume(folder)
    assert {path: data for path, data in everything(folder).items() if "checkpoints" in path.parts} == before


# ---- The end --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", cases("evaluate=error@1-99", rest=["evaluate.batch=error@2", "evaluate=error@3"]))
def test_an_evaluation_that_crashes_costs_nothing_else(
    short: Config, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folder = tmp_path / "run"
    assert runs.start(short, folder, fault) == 0
    assert "the evaluation failed ([Errno 5] Input/output error); training continues" in capsys.readouterr().out
    assert runs.digest(folder) == runs.digest(clean)
    assert runs.losses(folder) == runs.losses(clean)


@pytest.mark.slow
def test_a_run_that_is_complete_says_so_and_trains_nothing(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(clean, tmp_path / "run")
    before = everything(folder)
    assert runs.resume(folder) == 0
    assert f"{folder} is complete" in capsys.readouterr().out.replace("\n", "")
    assert everything(folder) == before

    (folder / "summary.json").unlink()  # killed after its last update, before it could say that it finished
    assert runs.resume(folder) == 0
    assert f"resuming {folder} after update 60" in capsys.readouterr().out.replace("\n", "")
    assert runs.digest(folder) == runs.digest(clean)
    assert runs.losses(folder) == runs.losses(clean)
    assert os.listdir(folder / "checkpoints") == os.listdir(clean / "checkpoints")
