"""Rehearsal: train a small copy of a configuration with injected faults.

A rehearsal shows that the real run will survive the faults of `scenarios`. The runs execute one after the other, and
the rehearsing process leaves the devices to them.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmjax.config import Config, UserError, codec
from lmjax.data.store import preparation
from lmjax.diagnose import scenarios
from lmjax.diagnose.scenarios import Failed, Scenario, Stage
from lmjax.diagnose.small_copy import shrink
from lmjax.display.console import Console
from lmjax.display.format import duration
from lmjax.models import registry
from lmjax.system.files import write_text

PASSED, FAILED = 0, 1


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
            if scenarios.command(["plan", str(folder / "real.json")], fault="", log=folder / "plan.log"):
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
    for scenario in scenarios.scenarios_of(stage.config):
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
