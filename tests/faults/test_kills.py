"""I3: a run that is killed at any point, any number of times, and resumed ends with the bits of one that was not."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from lmjax.config import Config, UserError
from lmjax.config.codec import apply_overrides
from lmjax.training import checkpoint
from tests.faults import runs
from tests.faults.runs import cases

# The parameters become NaN for once: a rollback, a replay of the same data, and no trace of it at the end.
SPIKE = "params=nan@48"


@pytest.fixture(scope="module")
def whole(short: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run ends with if nobody kills it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert runs.start(short, folder) == 0
    return runs.digest(folder)


def killed(config: Config, folder: Path, fault: str) -> None:
    """Begins the run or goes on with it, until `fault` kills it."""
    process = runs.forked(config, folder, fault)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"'{fault}' never happened"


def finish(config: Config, folder: Path, fault: str = "") -> str:
    """The digest of the run, once it is resumed, or begun anew where nothing stood yet; faults change no bit."""
    assert runs.resume(folder, fault) == 0 if (folder / "config.json").exists() else runs.start(config, folder) == 0
    assert not list(folder.rglob("*.partial"))
    for path in checkpoint.folders(folder / "checkpoints"):
        assert checkpoint.verify(path) is None
    return runs.digest(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    cases(
        "compile",
        "update@33",
        "journal.torn@5",
        "save.arrays@3",
        "save.read_back@1",
        "own@4",
        "save.manifest@3",
        "save.rename@3",
        "save.retain@1",
        rest=[
            "verify@1", "own@1", "own@9",
            "prepared", "update@1", "update@60", "evaluate@1", "evaluate.batch@3", "evaluate@3",
            "journal.write@1", "journal.torn@1", "journal.written@1", "journal.write@5", "journal.written@5",
            "journal.torn@2", "journal.torn@3", "journal.written@2", "journal.written@3",
            "save@1", "save.arrays@1", "save.manifest@1", "save.rename@1", "save.committed@1",
            "save@3", "save.committed@3", "save.retain@2",
            "save@7", "save.arrays@7", "save.manifest@7", "save.rename@7", "save.committed@7",
        ],
    ),
)  # fmt: skip
def test_killed_at_a_point(short: Config, whole: str, tmp_path: Path, point: str) -> None:
    killed(short, tmp_path / "run", point.replace("@", "=kill@") if "@" in point else f"{point}=kill")
    assert finish(short, tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    cases(
        "rollback.announced@1",
        "rollback.quarantine@2",
        "rollback.done@1",
        rest=["rollback@1", "rollback.quarantine@1", "rollback.restore@1", "update@47", "save.rename@7"],
    ),
)
def test_killed_in_a_rollback(short: Config, whole: str, tmp_path: Path, point: str) -> None:
    folder = tmp_path / "run"
    # A save every 5 updates: two checkpoints are set aside.
    config = apply_overrides(short, ["checkpoint.every=5"])
    again = f"{SPIKE} {point.replace('@', '=kill@')}"
    killed(config, folder, again if point != "update@47" else f"{SPIKE} rollback.done=SIGTERM update=kill@47!")
    assert finish(config, folder) == whole
    announced = runs.records(folder, "rollback")
    assert len(announced) == (point not in ("rollback@1", "update@47", "save.rename@7"))
    assert all((record["kind"], record["target"]) == ("replay", 35) for record in announced)
    for record in announced:
        finished = [r for r in runs.records(folder, "boundary") if r["reason"] == "rolled back"]
        assert len(finished) == 1
        assert finished[0]["update"] == record["target"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    cases(
        ["update@33", "journal.torn@1", "compile@1"],
        ["save.rename@3", "save.committed@1"],
        ["update@33", "verify@2", "save.read_back@1", "own@1"],
        rest=[
            ["save.manifest@2", "prepared@1", "prepared@1"],
            ["save.rename@4", "journal.write@1", "journal.written@1"],
            ["save.committed@4", "journal.torn@2", "save.retain@1"],
            ["update@25", "save@1", "save.arrays@1", "save.manifest@1", "save.rename@1", "save.committed@1"],
            ["save.retain@1", "prepared@1"],
            ["update@60", "save.rename@1", "evaluate@1"],
        ],
    ),
)
def test_killed_again_while_it_resumes(short: Config, whole: str, tmp_path: Path, points: list[str]) -> None:
    for point in points:
        killed(short, tmp_path / "run", point.replace("@", "=kill@"))
    assert finish(short, tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    cases(
        ["rollback.announced@1", "rollback.quarantine@1", "rollback.quarantine@1"],
        rest=[
            ["rollback.quarantine@2", "journal.torn@1", "journal.written@1"],
            ["rollback.restore@1", "compile@1"],
            ["rollback.done@1", "update@40", "save.rename@1"],
        ],
    ),
)
def test_killed_again_while_it_finishes_a_rollback(
    short: Config, whole: str, tmp_path: Path, points: list[str]
) -> None:
    config = apply_overrides(short, ["checkpoint.every=5"])
    killed(config, tmp_path / "run", f"{SPIKE} {points[0].replace('@', '=kill@')}")
    for point in points[1:]:
        killed(config, tmp_path / "run", point.replace("@", "=kill@"))
    assert finish(config, tmp_path / "run") == whole
    assert len(runs.records(tmp_path / "run", "rollback")) == 1


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


LOST = {"journal.jsonl": halve, "metrics.jsonl": Path.unlink, "tokenizer.json": halve, "config.json": Path.unlink}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_killed_while_a_lost_file_is_written_again(short: Config, whole: str, tmp_path: Path, name: str) -> None:
    """The file is deleted or cut while the process works, which is killed before the new one has its name."""
    folder = tmp_path / "run"
    process = runs.forked(short, folder, "update=sleep:0.05@20-60 own.again=kill")
    limit = time.monotonic() + 120
    while not (folder / "checkpoints" / "20").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    LOST[name](folder / name)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / f"{name}.partial").exists()
    if name == "config.json":
        with pytest.raises(UserError, match="exists: resume it"):
            runs.start(short, folder)
        (folder / f"{name}.partial").rename(folder / name)  # as somebody may who looks into the folder
    assert finish(short, folder) == whole


@pytest.mark.exhaustive
def test_killed_while_what_is_skipped_is_written_down(guarded: Config, tmp_path: Path) -> None:
    """Poisoned data, found, replayed, and skipped: the second rollback is cut short twice."""
    poison = "data=random@800-815!"
    assert runs.start(guarded, tmp_path / "calm", poison) == 0
    folder = tmp_path / "run"
    killed(guarded, folder, f"{poison} rollback.announced=kill@2")
    killed(guarded, folder, f"{poison} rollback.quarantine=kill@2")
    assert finish(guarded, folder, poison) == runs.digest(tmp_path / "calm")
    assert json.dumps(runs.history(folder).exclude) == json.dumps(runs.history(tmp_path / "calm").exclude)


@pytest.mark.slow
@pytest.mark.parametrize("seed", cases(*range(2), rest=range(2, 50)))
def test_killed_at_random_moments(short: Config, whole: str, tmp_path: Path, seed: int) -> None:
    """Up to three kills, each within a second of the first record of its session; a save every other update."""
    rng = random.Random(seed)
    folder = tmp_path / "run"
    config = apply_overrides(short, ["checkpoint.every=2"])
    fault = rng.choice(["", SPIKE])
    for _ in range(rng.randint(1, 3)):
        path = folder / "journal.jsonl"
        before = path.stat().st_size if path.exists() else 0
        process = runs.forked(config, folder, fault)
        limit = time.monotonic() + 60
        while process.is_alive() and not (path.exists() and path.stat().st_size > before):
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(rng.random() ** 2)
        process.kill()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert finish(config, folder, fault) == whole
