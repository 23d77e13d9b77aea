"""A run that a signal stops saves its state and says how to go on; a second signal stops it at once."""

import signal
from pathlib import Path

import pytest

from lmjax.config import Config
from lmjax.run import session
from lmjax.training import checkpoint
from tests.faults import runs
from tests.faults.runs import cases

SPIKE = "params=nan@48"  # a rollback to update 30, a replay, and no trace of it at the end


@pytest.fixture(scope="module")
def whole(short: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run ends with if nobody stops it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert runs.start(short, folder) == 0
    return runs.digest(folder)


@pytest.mark.parametrize(
    ("point", "number", "spike"),
    cases(
        pytest.param("prepared@1", "SIGTERM", "", marks=pytest.mark.slow),
        pytest.param("compile@1", "SIGINT", "", marks=pytest.mark.slow),
        pytest.param("update@25", "SIGTERM", "", marks=pytest.mark.slow),
        pytest.param("evaluate.batch@2", "SIGINT", "", marks=pytest.mark.slow),
        pytest.param("save.arrays@3", "SIGINT", "", marks=pytest.mark.slow),
        pytest.param("save.rename@3", "SIGTERM", "", marks=pytest.mark.slow),
        pytest.param("rollback@1", "SIGTERM", SPIKE, marks=pytest.mark.slow),
        pytest.param("rollback.done@1", "SIGINT", SPIKE, marks=pytest.mark.slow),
        rest=[
            *((point, "SIGINT", "") for point in ("prepared@1", "update@1", "update@10", "update@59")),
            *((point, "SIGTERM", "") for point in ("compile@1", "evaluate.batch@1", "evaluate@2", "update@48")),
            *((f"journal.{step}@{n}", "SIGTERM", "") for step in ("write", "torn", "written") for n in (2, 5)),
            *((f"save@{n}", "SIGTERM", "") for n in (1, 3)),
            *((f"save.manifest@{n}", "SIGTERM", "") for n in (1, 3)),
            *((f"save.committed@{n}", "SIGINT", "") for n in (1, 3)),
            *((f"rollback.{step}@1", "SIGTERM", SPIKE) for step in ("announced", "quarantine", "restore")),
        ],
    ),
)  # fmt: skip
def test_the_first_signal_saves_and_says_how_to_go_on(
    short: Config,
    whole: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    point: str,
    number: str,
    spike: str,
) -> None:
    folder = tmp_path / "run"
    assert runs.start(short, folder, f"{spike} {point.replace('@', f'={number}@')}") == session.FINISHED
    *_, told, how = capsys.readouterr().out.splitlines()
    (said,), stopped = runs.records(folder, "signal"), runs.summary(folder)
    assert (folder / "report.html").exists() == bool((folder / "metrics.jsonl").read_text())
    newest = checkpoint.folders(folder / "checkpoints")[-1]
    assert told.endswith(f"stopped by {number}, saved after update {newest.name}; resume with:")
    assert how.strip() == f"python train.py --resume {folder}"
    assert (said["name"], str(said["update"])) == (number, newest.name)
    assert (stopped["status"], str(stopped["updates"])) == ("stopped", newest.name)
    assert checkpoint.verify(newest) is None

    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", cases("SIGTERM", rest=["SIGINT"]))
@pytest.mark.parametrize(
    "point", cases("evaluate@3", rest=["update@60", "save@7", "save.rename@7", "save.retain@1", "evaluate.batch@8"])
)
def test_a_signal_after_the_last_update_loses_nothing(
    short: Config, whole: str, tmp_path: Path, point: str, number: str
) -> None:
    """60 updates: evaluations after 20 and 40 (of two batches, which reach for a third) and of all at the end; the
    seventh save is the last one."""
    folder = tmp_path / "run"
    assert runs.start(short, folder, point.replace("@", f"={number}@")) == 0
    assert runs.summary(folder)["digest"] == whole
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole
    assert runs.summary(folder)["val_loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "status"),
    cases(
        ("update=SIGTERM@25 save.manifest=SIGINT@4", 128 + signal.SIGINT),
        (f"{SPIKE} rollback.quarantine=SIGTERM@1-2", 128 + signal.SIGTERM),
        rest=[
            ("prepared=SIGTERM compile=SIGTERM", 0),  # stopped before it compiles anything
            ("update=SIGINT@25 journal.torn=SIGTERM@5-20!", 128 + signal.SIGTERM),
            ("update=SIGTERM@25 save.rename=SIGTERM@4", 128 + signal.SIGTERM),
            ("update=SIGTERM@25 save.arrays=SIGTERM@4", 128 + signal.SIGTERM),
            ("evaluate=SIGTERM@2 evaluate.batch=SIGINT@4", 128 + signal.SIGINT),
            (f"{SPIKE} rollback.announced=SIGINT rollback.restore=SIGINT", 128 + signal.SIGINT),
        ],
    ),
)
def test_the_second_signal_stops_at_once_and_tears_nothing(
    short: Config, whole: str, tmp_path: Path, faults: str, status: int
) -> None:
    folder, config = tmp_path / "run", tmp_path / "config.json"
    config.write_text(runs.to_json(short))
    every = "checkpoint.every=5" if "quarantine" in faults else "checkpoint.every=10"
    done = runs.train_py(config, every, "--run-dir", folder, fault=faults)
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.endswith(
            f"stopped immediately by a second signal; resume with:\n  python train.py --resume {folder}\n"
        )
        assert not (folder / "summary.json").exists()
    else:
        assert done.stdout.splitlines()[-1].strip() == f"python train.py --resume {folder}"
    for path in checkpoint.folders(folder / "checkpoints"):
        assert checkpoint.verify(path) is None
    assert runs.resume(folder) == 0
    assert runs.digest(folder) == whole
