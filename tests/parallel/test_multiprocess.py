"""Two processes on one machine: they train as one does, stop together, and end when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmjax.config import Config
from lmjax.config.codec import apply_overrides, to_json
from lmjax.journal import journal
from lmjax.journal.history import fold
from lmjax.training import metrics
from tests import ROOT, small

FSDP = "parallel.mesh=(data=1, fsdp=2)"  # state and rows are divided
ONE = "parallel.mesh=(data=1, fsdp=1, tensor=1)"
Processes = list[subprocess.Popen[str]]


@contextmanager
def processes(count: int, *words: str, faults: Sequence[str] = (), **environment: str) -> Iterator[Processes]:
    """So many processes of `train.py`, `{}` in a word its number, each with its `faults`; killed if left at the end."""
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
        settings |= {"LMJAX_FAULTS": faults[number]} if faults else {}
        command = [sys.executable, str(ROOT / "train.py"), *(word.format(number) for word in words)]
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


def way(folder: Path) -> list[int]:
    """The position in the sample order behind each update."""
    return [applied.cursor for applied in fold(journal.read(folder / "journal.jsonl")).path]


def updates(folder: Path) -> int:
    return max(losses(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


@pytest.fixture
def configured(tiny: Config, tmp_path: Path) -> str:
    """The path of a configuration to be run by one process or by two: two rows of a microbatch for each device."""
    config = apply_overrides(tiny, ["train.baselines=false", "model.dropout=0", "parallel.heartbeat_seconds=10"])
    (tmp_path / "config.json").write_text(to_json(config))
    return str(tmp_path / "config.json")


@pytest.mark.slow
def test_two_processes_agree_with_one(configured: str, tmp_path: Path) -> None:
    """The quick form of what follows: four updates of a model that compiles fast, then the end."""
    model = ["model.family=nnlm", "model.width=16", "model.hidden=16", "model.context=16"]
    words = [*model, "train.updates=4", "train.evaluate_every=0", "train.sample_tokens=0", "checkpoint.every=0"]
    for folder, count, mesh in (("one", 1, ONE), ("two", 2, FSDP)):
        with processes(count, configured, *words, mesh, "--run-dir", str(tmp_path / folder)) as started:
            finished(started)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert way(tmp_path / "two") == way(tmp_path / "one")
    assert journal.read(tmp_path / "two" / "journal.jsonl")[0]["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (FSDP, ""),
        pytest.param("parallel.mesh=(data=2)", "optimizer.ema=0.9", marks=pytest.mark.exhaustive),
        pytest.param(
            "parallel.mesh=(data=1, tensor=2)", "model.vocab_size=258 data.packed=true", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_two_processes_train_as_one_and_go_on_as_one(configured: str, tmp_path: Path, mesh: str, words: str) -> None:
    """Sums over rows associate otherwise in two processes: float32 rounding through twelve updates of Adam."""
    changes = words.split()
    with processes(1, configured, *changes, "--run-dir", str(tmp_path / "one")) as started:
        finished(started)
    with processes(2, configured, *changes, mesh, "--run-dir", str(tmp_path / "two")) as started:
        outputs = finished(started)
    assert "finished: 12 updates" in outputs[0]
    assert not [line for line in outputs[1].splitlines() if not line.startswith("[Gloo]")]  # only the main one speaks
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert way(tmp_path / "two") == way(tmp_path / "one")
    record = journal.read(tmp_path / "two" / "journal.jsonl")[0]
    assert (record["devices"], record["processes"]) == (2, 2)
    assert f"parallel.mesh=({record['mesh']})" in mesh.replace("data=1, ", "")
    # What two have saved one can take up, and the other way round.
    longer = ["train.updates=16", "--allow-change", "train.updates"]
    for name, count, devices in (("two", 1, ONE), ("one", 2, mesh)):
        with processes(count, "--resume", str(tmp_path / name), devices, *longer) as started:
            finished(started)
    assert updates(tmp_path / "one") == 16
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert way(tmp_path / "two") == way(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "who"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.exhaustive)]
)
def test_a_signal_to_one_process_saves_and_ends_both(
    configured: str, tmp_path: Path, number: signal.Signals, who: int
) -> None:
    folder = tmp_path / "run"
    words = [configured, FSDP, "train.updates=100000", "train.evaluate_every=0", "checkpoint.every=0"]
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
    words = [FSDP, "train.updates=40", "checkpoint.every=10"]
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
    words = [configured, FSDP, "train.updates=100000", "train.evaluate_every=0", "checkpoint.every=5"]
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
@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_process_fails_the_other_ends(configured: str, tmp_path: Path, failing: int) -> None:
    """It would wait for the other at its end, and the other for it, but no longer than `parallel.heartbeat_seconds`."""
    faults = ["", ""]
    faults[failing] = "journal.write=error@5"
    words = [configured, FSDP, "train.updates=100000", "checkpoint.every=2", "--run-dir", str(tmp_path / "run")]
    with processes(2, *words, faults=faults) as started:
        begun = time.monotonic()
        for process in started:
            process.communicate(timeout=120)
            assert process.returncode not in (0, 2)
        assert time.monotonic() - begun < 90


@pytest.mark.exhaustive
def test_processes_that_would_train_different_runs_are_refused(configured: str, tmp_path: Path) -> None:
    with processes(2, configured, "seed={}", "--run-dir", str(tmp_path / "run")) as started:
        errors = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [2, 2]
    assert all("process 1 has another configuration than process 0" in error for error in errors)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["lstm", "translation", "masked"])
def test_every_kind_of_task_in_two_processes(name: str, corpus: Path, tmp_path: Path) -> None:
    """States carried from batch to batch, rows that are made together, places that are drawn for each row."""
    changes = ["train.updates=12", "model.dropout=0", "guard.policy=off"]
    (tmp_path / "config.json").write_text(to_json(apply_overrides(small.config(name, corpus), changes)))
    for folder, count, mesh in (("one", 1, ONE), ("two", 2, FSDP)):
        words = [str(tmp_path / "config.json"), mesh, "--run-dir", str(tmp_path / folder)]
        with processes(count, *words) as started:
            finished(started)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert way(tmp_path / "two") == way(tmp_path / "one")


@pytest.mark.exhaustive
def test_a_spike_takes_both_processes_back(configured: str, tmp_path: Path) -> None:
    """Bad data are replayed, then left out, with one journal and one quarantine."""
    words = [configured, FSDP, "batch.tokens=((0,64),)", "train.updates=110", "checkpoint.every=20"]
    folder = tmp_path / "run"
    with processes(2, *words, "--run-dir", str(folder), LMJAX_FAULTS="data=random@360-372!") as started:
        finished(started)
    events = [record["event"] for record in journal.read(folder / "journal.jsonl")]
    assert events.count("rollback") == 2
    assert events.count("skip") == 1
    assert updates(folder) == 110
    assert list((folder / "spikes").glob("*.md"))
