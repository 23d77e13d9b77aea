"""What the fault tests share: runs in this process and in others, and what can be read of them afterwards."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import Config
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.journal import journal
from lmjax.journal.history import History, fold
from lmjax.journal.journal import Record
from lmjax.run import launch
from lmjax.run import resume as resume_module
from lmjax.system import faults
from lmjax.training import checkpoint
from tests import ROOT

_FORKS = multiprocessing.get_context("forkserver")


def cases(*ordinary: Any, rest: Iterable[Any] = ()) -> list[Any]:
    """Cases of a parametrised test; the `rest` is left to `pytest -m exhaustive`."""
    packed = [case if isinstance(case, tuple) else (case,) for case in rest]
    return [*ordinary, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in packed)]


# ---- Running --------------------------------------------------------------------------------------------------------


def start(config: Config, folder: Path, fault: str = "", *changes: str) -> int:
    """The exit status of a new run in this process, with a fault and changes of the configuration."""
    with faults.armed(fault):
        return launch.start(apply_overrides(config, changes), folder)


def resume(folder: Path, fault: str = "", *changes: str) -> int:
    """The exit status of a resume in this process; the changes are allowed."""
    config = from_json((folder / "config.json").read_text(), Config)
    with faults.armed(fault):
        return resume_module.resume(
            apply_overrides(config, changes), folder, allow=[change.partition("=")[0] for change in changes]
        )


def forked(config: Config, folder: Path, fault: str = "") -> Any:
    """A process, started, that begins the run or goes on with it: one that a test may kill.

    It is forked off a server that has imported everything and started nothing, which saves seconds.
    """
    _FORKS.set_forkserver_preload(["lmjax.run.launch"])
    process = _FORKS.Process(target=_begin_or_go_on, args=(to_json(config), folder, fault))
    process.start()
    return process


def _begin_or_go_on(config: str, folder: Path, fault: str) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    if (folder / "config.json").exists():
        sys.exit(resume(folder, fault))
    sys.exit(start(from_json(config, Config), folder, fault))


def train_py(*words: str | Path, fault: str = "", environment: Iterable[tuple[str, str]] = ()) -> Any:
    """`python train.py WORDS`: its output, errors and exit status."""
    return command("train.py", *words, fault=fault, environment=environment)


def command(*words: str | Path, fault: str = "", environment: Iterable[tuple[str, str]] = ()) -> Any:
    """`python WORDS` in the checkout: its output, errors and exit status."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {faults.VARIABLE: fault} | dict(environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---- Reading --------------------------------------------------------------------------------------------------------


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def records(folder: Path, event: str = "") -> list[Record]:
    """Of the journal; of one event, if named."""
    return [record for record in journal.read(folder / "journal.jsonl") if event in ("", record["event"])]


def history(folder: Path) -> History:
    return fold(records(folder))


def digest(folder: Path) -> str:
    """Of the state (parameters, optimizer, guard's window, update) at the end of a finished run."""
    end, told = records(folder)[-1], summary(folder)
    assert (end["event"], end["status"], told["status"]) == ("end", "finished", "finished")
    newest = checkpoint.folders(folder / "checkpoints")[-1]
    assert checkpoint.verify(newest) is None
    assert end["digest"] == told["digest"] == checkpoint.read(newest).meta["digest"]
    return told["digest"]


def updates(folder: Path) -> list[int]:
    """Of the checkpoints, oldest first."""
    return [int(path.name) for path in checkpoint.folders(folder / "checkpoints")]


def losses(folder: Path) -> list[tuple[int, str]]:
    """Cursor and loss of every update on the path."""
    return [(applied.cursor, applied.loss) for applied in history(folder).path]


def without(folder: Path, config: Config, fresh: Path) -> Path:
    """A fresh run, without faults, whose plan leaves out from the start what the run in `folder` skipped."""
    past = history(folder)
    plan = [f"data.exclude={json.dumps(past.left_out())}", f"schedule.cuts={json.dumps(past.cuts)}"]
    assert start(config, fresh, "", *plan) == 0
    return fresh
