"""The scenarios of a rehearsal: a fault each, and what a run must do about it.

Each run is a separate process. Two runs are equal if the digests of their last states (parameters, optimizer, guard)
are equal.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmjax.config import Config
from lmjax.config.policies import PolicyConfig
from lmjax.diagnose.small_copy import MIDDLE, SAVES, UPDATES, spike_update
from lmjax.journal import journal
from lmjax.journal.history import TRANSIENT, Record, fold, last
from lmjax.system import faults
from lmjax.training import checkpoint, metrics

_PEERS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


# ---- The runs -------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A failure of a scenario: what happened instead of the expected result.

    Args:
        message: What happened.
        run: Directory of the run.
    """

    def __init__(self, message: str, run: Path):
        super().__init__(message)
        self.log = _log(run)


@dataclass(frozen=True)
class Stage:
    """The stage of a rehearsal."""

    #: The folder: it has `copy.json` (the small copy), the runs, and the output of each run in NAME.log.
    folder: Path
    #: Configuration of the small copy.
    config: Config

    def train(self, name: str, *, fault: str = "", config: str = "copy.json", status: int = 0) -> Path:
        """Run `name` under a fault and return its directory.

        Raises:
            Failed: The run does not end with `status`.
        """
        run = self.folder / name
        self._call(run, "train", str(self.folder / config), "--run-dir", str(run), fault=fault, status=status)
        return run

    def resume(self, run: Path) -> None:
        """Resume a run to its end.

        Raises:
            Failed: The run does not finish, or its digest differs from that of the clean run.
        """
        self._call(run, "train", "--resume", str(run))
        self.same(run)

    def audit(self, run: Path, *words: str) -> None:
        """Audit a run.

        Raises:
            Failed: The audit reports a problem.
        """
        self._call(run, "audit", str(run), *words)

    def same(self, run: Path, reference: Path | None = None) -> None:
        """Compare a run with a reference (default: the clean run).

        Raises:
            Failed: A run did not finish, or the digests differ.
        """
        ends = [last(_records(folder), "end") or {} for folder in (run, reference or self.folder / "clean")]
        _require(all(end.get("status") == "finished" for end in ends), "did not finish", run)
        _require(ends[0]["digest"] == ends[1]["digest"], "another digest", run)

    def _call(self, run: Path, *words: str, fault: str = "", status: int = 0) -> None:
        exit_status = command(words, fault=fault, log=_log(run))
        _require(exit_status == status, f"`{words[0]}` ended with status {exit_status}, not {status}", run)


def command(words: Sequence[str], *, fault: str, log: Path) -> int:
    """Run `lmjax WORDS` under a fault, append its output to `log`, and return the exit status.

    The exit status is negative if a signal ended the process.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _PEERS} | {faults.VARIABLE: fault}
    line = [sys.executable, "-m", "lmjax", *words]
    with open(log, "ab") as file:
        return subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode


def _records(run: Path) -> list[Record]:
    return journal.read(run / "journal.jsonl")


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _newest_record(run: Path, event: str, message: str) -> Record:
    """Return the newest record of an event.

    Raises:
        Failed: There is no such record; `message` says what this means.
    """
    record = last(_records(run), event)
    if record is None:
        raise Failed(message, run)
    return record


def _require(condition: bool, message: str, run: Path) -> None:
    if not condition:
        raise Failed(message, run)


def _left_out(run: Path) -> str:
    """Require that a batch was left out and every loss is finite."""
    _newest_record(run, "suspect", "the batch was applied")
    _finite(run)
    return "left out, finished, all finite"


def _finite(run: Path) -> None:
    losses = [float.fromhex(applied.loss) for applied in fold(_records(run)).path]
    _require(len(losses) == UPDATES and all(map(math.isfinite, losses)), "a loss is not finite", run)


def _replayed(stage: Stage, run: Path) -> str:
    """Require that a spike was replayed without recurring."""
    _newest_record(run, "rollback", "the spike was not noticed")
    _require(any(record.get("reason") == TRANSIENT for record in _records(run)), "not reported as transient", run)
    stage.same(run)
    return "rolled back, replayed, same digest"


# ---- The scenarios: each returns what happened, or raises Failed -----------------------------------------------------


def clean(stage: Stage) -> str:
    """Train without a fault."""
    run = stage.train("clean")
    stage.same(run)
    stage.audit(run)
    return "finished, audit in order"


def stopped(stage: Stage) -> str:
    """Stop the run by a signal, as a scheduler does."""
    run = stage.train("stopped", fault=f"update=SIGTERM@{MIDDLE}")
    _newest_record(run, "signal", "the signal was ignored")
    stage.resume(run)
    return "saved, resumed, same digest"


def killed(stage: Stage) -> str:
    """Kill the process while a checkpoint is on the disk under a temporary name."""
    run = stage.train("killed", fault=f"save.rename=kill@{SAVES}", status=-9)
    stage.resume(run)
    return "resumed, same digest"


def torn(stage: Stage) -> str:
    """Truncate the largest file of the newest checkpoint to half."""
    run = stage.folder / "torn"
    shutil.copytree(stage.folder / "clean", run)
    (run / "summary.json").unlink()  # a run with a summary counts as complete
    newest = checkpoint.folders(run / "checkpoints")[-1]
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    stage.resume(run)
    record = _newest_record(run, "fallback", "the damage was not noticed")
    return f"fell back to {record['update']}, same digest"


def not_a_number(stage: Stage) -> str:
    """Set the loss of one batch to NaN, as a hardware fault does."""
    return _left_out(stage.train("nan", fault=f"batch=nan@{MIDDLE + 1}"))


def transient(stage: Stage) -> str:
    """Multiply the learning rate of one update by 1,000,000: a spike in any model."""
    return _replayed(stage, stage.train("spike", fault=f"learning_rate=times:1e6@{spike_update(stage.config)}"))


def poisoned(stage: Stage) -> str:
    """Replace some batches by random tokens, every time they are read."""
    begin = spike_update(stage.config) - 1
    count = max(stage.config.guard.in_a_row, stage.config.guard.several)
    past = fold(_records(stage.folder / "clean"))
    run = stage.train("poisoned", fault=f"data=random@{past.cursor(begin)}-{past.cursor(begin + count - 1)}!")
    _newest_record(run, "suspect", "the poison was not noticed")
    _newest_record(run, "skip", "not skipped")
    stage.audit(run, "--config", str(stage.folder / "fresh.json"))
    stage.same(run, stage.train("fresh", config="fresh.json"))
    return "rolled back, skipped, digest of a fresh run without them"


def full(stage: Stage) -> str:
    """Leave no space on the disk for one checkpoint."""
    stop = stage.config.checkpoint.retries == 0 and stage.config.checkpoint.on_failure == "stop"
    run = stage.train("full", fault=f"save.manifest=full@{SAVES}", status=int(stop))
    _newest_record(run, "fallback", "the failed save was not noticed")
    (stage.resume if stop else stage.same)(run)
    return f"{'stopped, resumed' if stop else 'trained on'}, same digest"


# ---- Scenarios of a policy ------------------------------------------------------------------------------------------


def not_a_reward(stage: Stage) -> str:
    """Set a reward of one episode to NaN."""
    return _left_out(stage.train("nan", fault=f"rewards=nan@{MIDDLE + 1}"))


def leap(stage: Stage) -> str:
    """Multiply the rewards of some episodes by 1,000,000, each at its first trial."""
    begin, count = spike_update(stage.config), max(stage.config.guard.in_a_row, stage.config.guard.several)
    return _replayed(stage, stage.train("leap", fault=f"rewards=times:1e6@{begin}-{begin + count - 1}"))


def equal(stage: Stage) -> str:
    """Give the same reward to every answer of some episodes."""
    run = stage.train("equal", fault=f"rewards=times:0@{MIDDLE + 1}-{MIDDLE + 4}")
    _finite(run)
    path = run / "metrics.jsonl"
    measured = metrics.read(path) if path.is_file() else []
    dead = [record["update"] for record in measured if record.get("reward") == 0]
    suspects = [record["update"] + 1 for record in _records(run) if record["event"] == "suspect"]
    _require(bool({*dead, *suspects} & {*range(MIDDLE + 1, MIDDLE + 5)}), "the faults were not noticed", run)
    return "recorded, finished, all finite"


def other_sampler(stage: Stage) -> str:
    """Sample the answers of one episode at another temperature than the learner has."""
    run = stage.train("sampler", fault=f"logprobs=times:0.9@{MIDDLE + 1}", status=1)
    stage.resume(run)
    return "stopped, resumed, same digest"


class Scenario(NamedTuple):
    """A fault and the run that must survive it."""

    #: Name of the fault, for the table.
    fault: str
    #: What should happen, for the table.
    expected: str
    #: Plays the scenario and returns what happened, or raises Failed.
    act: Callable[[Stage], str]
    #: Policies of the guard under which the scenario applies.
    policies: tuple[str, ...] = ("rollback", "skip", "off")

    def excluded(self, config: Config) -> str:
        """Say why the scenario does not apply to a small copy; empty if it does."""
        guard = config.guard
        if guard.policy not in self.policies:
            return f"not with guard.policy={guard.policy}"
        if self.policies == ("rollback",) and not spike_update(config):
            return f"not with guard.armed={guard.armed}: never armed in {UPDATES} updates"
        return "not with guard.attribute=false" if self.act in (transient, leap) and not guard.attribute else ""


SCENARIOS = (
    Scenario("none", "finishes, in order", clean),
    Scenario("stopped by SIGTERM", "same bits after a resume", stopped),
    Scenario("kill -9 during a save", "same bits after a resume", killed),
    Scenario("newest checkpoint torn", "an older one, same bits", torn),
    Scenario("one NaN batch", "left out, stays finite", not_a_number, ("rollback", "skip")),
    Scenario("a transient spike", "replayed, same bits", transient, ("rollback",)),
    Scenario("poisoned data", "skipped, as if never there", poisoned, ("rollback",)),
    Scenario("disk full during a save", "nothing lost, same bits", full),
)

# A policy reads prompts, which have no loss: what can be wrong are its answers and their rewards.
POLICY_SCENARIOS = (
    *SCENARIOS[:4],
    Scenario("a reward that is NaN", "left out, stays finite", not_a_reward, ("rollback", "skip")),
    Scenario("a leap of the reward", "replayed, same bits", leap, ("rollback",)),
    Scenario("equal rewards", "recorded, stays finite", equal),
    Scenario("another sampler", "stops, same bits after a resume", other_sampler),
    SCENARIOS[7],
)


def scenarios_of(config: Config) -> tuple[Scenario, ...]:
    """Return the scenarios of a small copy."""
    return POLICY_SCENARIOS if isinstance(config.objective, PolicyConfig) else SCENARIOS
