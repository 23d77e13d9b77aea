"""Rehearsal: train a small copy of a configuration with injected faults.

A rehearsal shows that the real run will survive these faults. Each run is a separate process; the runs execute one
after the other, and the rehearsing process leaves the devices to them. Two runs are equal if the digests of their last
states (parameters, optimizer, guard) are equal.
"""

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmjax.config import Config, UserError, codec
from lmjax.data.store import preparation
from lmjax.diagnose.small_copy import MIDDLE, SAVES, UPDATES, shrink, spike_update
from lmjax.display.console import Console
from lmjax.display.format import duration
from lmjax.journal import journal
from lmjax.journal.history import TRANSIENT, Record, fold, last
from lmjax.models import registry
from lmjax.system import faults
from lmjax.system.files import write_text
from lmjax.training import checkpoint

PASSED, FAILED = 0, 1

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
    run = stage.train("nan", fault=f"batch=nan@{MIDDLE + 1}")
    _newest_record(run, "suspect", "the batch was applied")
    losses = [float.fromhex(applied.loss) for applied in fold(_records(run)).path]
    _require(len(losses) == UPDATES and all(map(math.isfinite, losses)), "a loss is not finite", run)
    return "left out, finished, all finite"


def transient(stage: Stage) -> str:
    """Multiply the learning rate of one update by 1,000,000: a spike in any model."""
    run = stage.train("spike", fault=f"learning_rate=times:1e6@{spike_update(stage.config)}")
    _newest_record(run, "rollback", "the spike was not noticed")
    _require(any(record.get("reason") == TRANSIENT for record in _records(run)), "not reported as transient", run)
    stage.same(run)
    return "rolled back, replayed, same digest"


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
        return "not with guard.attribute=false" if self.act is transient and not guard.attribute else ""


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


# ---- The command ----------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The result of a scenario."""

    #: The scenario itself.
    scenario: Scenario
    #: What happened.
    happened: str
    #: Duration of the scenario.
    seconds: float = 0.0
    #: Whether the scenario passed; None if it does not apply or could not be tried.
    passed: bool | None = None
    #: Output of the run that failed.
    log: Path | None = None


def show(config: Config, *, keep: Path | None) -> int:
    """Rehearse `config` and print a table of the results.

    The data are prepared as the real run needs them.

    Args:
        config: The configuration of the real run.
        keep: An empty or new folder for the runs. None: a temporary folder, which remains only if something failed.

    Returns:
        The exit status: 0 if all scenarios passed, 1 if not.

    Raises:
        UserError: `keep` is in use, or the configuration is invalid.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UserError(f"--keep {keep}: it exists and is not an empty folder; choose another place")
    registry.check(config.model)
    small = shrink(config)
    with Console() as console:
        _introduce(config, small, console)
        preparation.prepare(config.data, report=console.report)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        folder = (keep or Path(tempfile.mkdtemp(prefix="lmjax-rehearsal-"))).absolute()
        status = PASSED
        try:
            write_text(folder / "real.json", codec.to_json(config))
            if command(["plan", str(folder / "real.json")], fault="", log=folder / "plan.log"):
                _refuse(folder / "plan.log")
            status = conclude(play(Stage(folder, small), console), console)
        finally:
            if keep is None and status == PASSED:
                shutil.rmtree(folder)
        if folder.exists():
            console.event(f"the runs are in {folder}")
    return status


def play(stage: Stage, console: Console) -> list[Outcome]:
    """Play every scenario and return the outcomes.

    If the clean run fails, the other scenarios are not tried.

    Raises:
        UserError: The small copy cannot be trained.
    """
    write_text(stage.folder / "copy.json", codec.to_json(stage.config))
    outcomes: list[Outcome] = []
    for scenario in SCENARIOS:
        broken = outcomes and outcomes[0].passed is False
        if why := "not tried: even the clean run failed" if broken else scenario.excluded(stage.config):
            outcomes.append(Outcome(scenario, why))
            continue
        begun = time.perf_counter()
        with console.phase(f"fault: {scenario.fault}"):
            try:
                happened, passed, log = scenario.act(stage), True, None
            except (Failed, UserError, OSError) as error:  # for example a damaged journal
                happened, passed, log = str(error), False, getattr(error, "log", None)
        if not (stage.folder / "clean").exists():
            _refuse(stage.folder / "clean.log")
        outcomes.append(Outcome(scenario, happened, time.perf_counter() - begun, passed, log))
        console.event(f"{'pass' if passed else 'FAIL'}  {scenario.fault}: {happened}")
    return outcomes


def conclude(outcomes: Sequence[Outcome], console: Console) -> int:
    """Print the table and the log of each failure, and return the exit status."""
    verdicts = {True: "pass", False: "FAIL", None: "-"}
    rows = [("fault", "what should happen", "what happened", "time", "")]
    for (fault, expected, *_), happened, seconds, passed, _ in outcomes:
        rows.append((fault, expected, happened, duration(seconds) if seconds else "", verdicts[passed]))
    console.table("Rehearsal", rows)
    failed = [outcome for outcome in outcomes if outcome.passed is False]
    for outcome in failed:
        if outcome.log:
            console.text(f"{outcome.scenario.fault}: {outcome.happened}; the end of {outcome.log}:", _tail(outcome.log))
    tried = sum(outcome.passed is not None for outcome in outcomes)
    conclusion = "see the failures above" if failed else "this setup survives these faults"
    console.event(f"{tried - len(failed)} of {tried} passed: {conclusion}")
    return FAILED if failed else PASSED


def _introduce(config: Config, small: Config, console: Console) -> None:
    """Print the differences between the small copy and the real run."""
    rows = [re.split(": | -> ", line, maxsplit=2) for line in codec.differences(config, small)]
    console.table("The small copy; all other keys are as in the real run", [("key", "real", "rehearsal"), *rows])
    console.event("the data are prepared completely, once, and the real run uses them too")


def _tail(log: Path, *, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").rstrip().splitlines()[-lines:]) if log.is_file() else ""


def _refuse(log: Path) -> None:
    """Raise the error message of a run that did not start.

    Raises:
        UserError: The last line of the log is an error message.
    """
    line = _tail(log, lines=1)
    if line.startswith("error: "):
        raise UserError(line.removeprefix("error: "))
