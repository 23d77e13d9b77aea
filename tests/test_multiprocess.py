"""Two processes on one machine: they train as one does, stop together, and end when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmjax.config import Config
from lmjax.train import journal, metrics
from lmjax.typed import apply_overrides, to_json

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).parents[1]
Processes = list[subprocess.Popen[str]]


@contextmanager
def processes(count: int, *words: str, **environment: str) -> Iterator[Processes]:
    """So many processes of `train.py`; what is left of them is killed at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started: Processes = []
    for number in range(count):
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment | (joined if count > 1 else {})
        command = [sys.executable, str(ROOT / "train.py"), *words]
        started.append(
            subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def finished(started: Processes, *, seconds: float = 180) -> list[str]:
    """What each printed, once all have ended well."""
    outputs = [process.communicate(timeout=seconds) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return [output for output, _ in outputs]


def wait_until(reached: Callable[[], bool], started: Processes, *, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert all(process.poll() is None for process in started), [process.communicate() for process in started]
        assert time.monotonic() < limit
        time.sleep(0.05)


def losses(folder: Path) -> dict[int, float]:
    return {record["update"]: record["loss"] for record in metrics.read(folder / "metrics.jsonl") if "loss" in record}


def updates(folder: Path) -> int:
    return max(losses(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


@pytest.fixture
def configured(tiny: Config, tmp_path: Path) -> str:
    """The path of a configuration to be run by one process or by two: two rows of a microbatch for each device."""
    config = apply_overrides(tiny, ["train.baselines=false", "model.dropout=0", "parallel.heartbeat_seconds=10"])
    (tmp_path / "config.json").write_text(to_json(config))
    return str(tmp_path / "config.json")


def test_two_processes_train_as_one_and_go_on_as_one(configured: str, tmp_path: Path) -> None:
    """Sums over rows associate otherwise in two processes: float32 rounding through twelve updates of Adam."""
    with processes(1, configured, "--run-dir", str(tmp_path / "one")) as started:
        finished(started)
    with processes(2, configured, "--run-dir", str(tmp_path / "two")) as started:
        outputs = finished(started)
    assert "finished: 12 updates" in outputs[0]
    assert not [line for line in outputs[1].splitlines() if not line.startswith("[Gloo]")]  # only the main one speaks
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    record = journal.read(tmp_path / "two" / "journal.jsonl")[0]
    assert (record["devices"], record["processes"]) == (2, 2)
    # What two have saved one can take up, and the other way round.
    longer = ["train.updates=16", "--allow-change", "train.updates"]
    for name, count in (("two", 1), ("one", 2)):
        with processes(count, "--resume", str(tmp_path / name), *longer) as started:
            finished(started)
    assert updates(tmp_path / "one") == 16
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize(
    ("number", "who"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.exhaustive)]
)
def test_a_signal_to_one_process_saves_and_ends_both(
    configured: str, tmp_path: Path, number: signal.Signals, who: int
) -> None:
    folder = tmp_path / "run"
    words = [configured, "train.updates=100000", "train.evaluate_every=0", "checkpoint.every=0"]
    with processes(2, *words, "--run-dir", str(folder)) as started:
        wait_until(lambda: updates(folder) > 5, started)
        started[who].send_signal(number)
        outputs = finished(started, seconds=60)
    assert f"stopped by {number.name}" in outputs[0]
    assert outputs[0].splitlines()[-1].strip() == f"python train.py --resume {folder}"
    records = journal.read(folder / "journal.jsonl")
    stopped = [record for record in records if record["event"] == "signal"]
    assert [record["name"] for record in stopped] == [number.name]
    assert (folder / "checkpoints" / str(stopped[0]["update"]) / "manifest.json").is_file()
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"


@pytest.mark.exhaustive
def test_a_stopped_run_of_two_goes_on_bit_for_bit(configured: str, tmp_path: Path) -> None:
    words = ["train.updates=40", "checkpoint.every=10"]
    with processes(2, configured, *words, "--run-dir", str(tmp_path / "whole")) as started:
        finished(started)
    folder = tmp_path / "cut"
    with processes(2, configured, *words, "--run-dir", str(folder), LMJAX_FAULTS="update=SIGTERM@17") as started:
        finished(started)
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    with processes(2, "--resume", str(folder)) as started:
        finished(started)
    assert losses(folder) == losses(tmp_path / "whole")
    ends = [json.loads((path / "summary.json").read_text())["digest"] for path in (folder, tmp_path / "whole")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        (signal.SIGKILL, 0),
        (signal.SIGSTOP, 1),
    ],
)
@pytest.mark.exhaustive
def test_when_one_process_is_lost_the_other_ends_and_the_run_can_go_on(
    configured: str, tmp_path: Path, number: signal.Signals, lost: int
) -> None:
    """A killed one is noticed at once; one that only stands still after `parallel.heartbeat_seconds` (10)."""
    folder = tmp_path / "run"
    words = [configured, "train.updates=100000", "train.evaluate_every=0", "checkpoint.every=5"]
    with processes(2, *words, "--run-dir", str(folder)) as started:
        wait_until(lambda: updates(folder) > 12, started)
        begun = time.monotonic()
        started[lost].send_signal(number)
        _, errors = started[1 - lost].communicate(timeout=60)
        assert time.monotonic() - begun < 45
        assert started[1 - lost].returncode not in (0, 2)
        assert "failed" in errors or "error" in errors
    reached = updates(folder) + 5
    changes = [f"train.updates={reached}", "--allow-change", "train.updates"]
    with processes(2, "--resume", str(folder), *changes) as started:
        finished(started)
    assert updates(folder) == reached


@pytest.mark.exhaustive
def test_a_spike_takes_both_processes_back(configured: str, tmp_path: Path) -> None:
    """Bad data are replayed, then left out, with one journal and one quarantine."""
    words = [configured, "batch.tokens=((0,64),)", "train.updates=110", "checkpoint.every=20"]
    folder = tmp_path / "run"
    with processes(2, *words, "--run-dir", str(folder), LMJAX_FAULTS="data=random@360-372!") as started:
        finished(started)
    events = [record["event"] for record in journal.read(folder / "journal.jsonl")]
    assert events.count("rollback") == 2
    assert events.count("skip") == 1
    assert updates(folder) == 110
    assert list((folder / "spikes").glob("*.md"))
