"""A rehearsal: a small copy of a configuration is run with faults injected, to see that the real run will survive them.

Every run is a process of its own, one after the other, and this one leaves the devices to them. What must be equal is
the digest of the last state: parameters, optimizer, guard.
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
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmjax import faults, optim, typed
from lmjax.config import BatchConfig, Config, DataConfig, MeshConfig, TrackConfig, TrainConfig, UserError
from lmjax.console import Console, duration
from lmjax.data import store as stores
from lmjax.files import write_text
from lmjax.models import families
from lmjax.train import checkpoint, journal
from lmjax.train.history import TRANSIENT, Record, fold, last

PASSED, FAILED = 0, 1
UPDATES, EVERY = 240, 20  # of the small copy, and between its checkpoints: the guard is armed after 64
MICROBATCH = 8
PEAK = 1e-3  # at least, of the learning rate: or so few updates teach too little for bad data to stand out
MIDDLE, SAVES = UPDATES // 2, UPDATES // 2 // EVERY + 1  # an update with a checkpoint; the how manieth, with update 0
ROOM = 24  # updates behind a spike before the guard starts anew or the run ends

_PEERS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


# ---- The small copy -------------------------------------------------------------------------------------------------


def shrink(config: Config) -> Config:
    """A copy of `config` that trains in seconds: smaller in every size, the same in all else.

    What is placed by tokens or updates (growth of the batch, changes of the mixture, cuts of the learning rate) keeps
    its share of the run. UserError: `config` does not say how long its run is, or its batches do not fit.
    """
    plan = optim.batch_plan(config.batch, config.train, families.tokens(config.model))
    model = families.shrink(config.model)
    batch, grown = _batch(config, families.tokens(model), plan.tokens)
    data = config.data
    if isinstance(data, DataConfig):
        changes = data.mixture_changes
        starts = _scaled([0, *(token for token, _ in changes)], grown / plan.tokens, model.context)[1:]
        changes = tuple((start, weights) for start, (_, weights) in zip(starts, changes, strict=True))
        data = replace(data, mixture_changes=changes)
    share = UPDATES / plan.updates
    cuts = tuple((round(at * share), factor, max(1, round(over * share))) for at, factor, over in config.schedule.cuts)
    return replace(
        config,
        data=data,
        model=model,
        schedule=replace(config.schedule, peak=max(config.schedule.peak, PEAK), cuts=cuts),
        batch=batch,
        train=TrainConfig(
            UPDATES, evaluate_every=MIDDLE, evaluate_batches=2, final_batches=50, sample_tokens=8, baselines=False
        ),
        checkpoint=replace(config.checkpoint, every=EVERY),
        parallel=replace(config.parallel, mesh=MeshConfig(), distributed=False),  # sizes this small divide among few
        track=TrackConfig(),
    )


def _batch(config: Config, context: int, tokens: int) -> tuple[BatchConfig, int]:
    """One microbatch, or two where the real batch grows or has several; and how many tokens that is in all, at most."""
    batch, devices = config.batch, config.parallel.devices or 1
    shares = batch.microbatch // devices
    fitting = [n for n in range(1, shares + 1) if shares % n == 0 and n * devices <= MICROBATCH]
    microbatch = max(fitting, default=1) * devices
    unit = microbatch * context
    sizes = [size for _, size in batch.tokens]
    several = len(set(sizes)) > 1 or sizes[0] > batch.microbatch * families.tokens(config.model)
    counts = [1 + (several and 2 * size >= min(sizes) + max(sizes)) for size in sizes]
    grown = UPDATES * unit * max(counts)
    starts = _scaled([start for start, _ in batch.tokens], grown / tokens, 1)
    points = tuple((start, count * unit) for start, count in zip(starts, counts, strict=True))
    return replace(batch, tokens=points, microbatch=microbatch), grown


def _scaled(numbers: Sequence[int], factor: float, step: int) -> list[int]:
    """Increasing numbers times `factor`, still increasing by at least `step`."""
    return list(accumulate((round(n * factor) for n in numbers), lambda before, now: max(now, before + step)))


def spike_update(config: Config) -> int:
    """An update of the small copy, from 1, at which the guard is armed and some are left; 0: there is none."""
    plan = optim.batch_plan(config.batch, config.train, families.tokens(config.model))
    announced = config.data.mixture_changes if isinstance(config.data, DataConfig) else ()
    changes = np.searchsorted(plan.tokens_before, [token for token, _ in announced])
    turns = sorted({0, plan.updates, *plan.jumps.tolist(), *changes.tolist()})
    begin, end = max(pairwise(turns), key=lambda pair: pair[1] - pair[0])
    return end - ROOM if end - ROOM - begin > config.guard.armed else 0


# ---- The runs -------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """What happened instead of what should, in the run whose directory is `run`."""

    def __init__(self, what: str, run: Path):
        super().__init__(what)
        self.log = _log(run)


@dataclass(frozen=True)
class Stage:
    """The folder of a rehearsal: `copy.json` (the small copy), the runs, and the output of each in NAME.log."""

    folder: Path
    config: Config

    def train(self, name: str, *, fault: str = "", config: str = "copy.json", status: int = 0) -> Path:
        """Starts the run `name` under a fault, returns its directory. Failed: it does not end with `status`."""
        run = self.folder / name
        self._call(run, "train", str(self.folder / config), "--run-dir", str(run), fault=fault, status=status)
        return run

    def resume(self, run: Path) -> None:
        """Failed: the run does not go on to its end, or ends with other bits than the clean one."""
        self._call(run, "train", "--resume", str(run))
        self.same(run)

    def audit(self, run: Path, *words: str) -> None:
        """Failed: something is wrong with the run."""
        self._call(run, "audit", str(run), *words)

    def same(self, run: Path, other: Path | None = None) -> None:
        """Failed: the two runs (default: the clean one) did not both finish, with the same digest."""
        ends = [last(_records(folder), "end") or {} for folder in (run, other or self.folder / "clean")]
        _require(all(end.get("status") == "finished" for end in ends), "did not finish", run)
        _require(ends[0]["digest"] == ends[1]["digest"], "another digest", run)

    def _call(self, run: Path, *words: str, fault: str = "", status: int = 0) -> None:
        found = command(words, fault=fault, log=_log(run))
        _require(found == status, f"`{words[0]}` ended with status {found}, not {status}", run)


def command(words: Sequence[str], *, fault: str, log: Path) -> int:
    """Runs `lmjax WORDS` under a fault, its output added to `log`; the exit status, negative for a signal."""
    environment = {name: value for name, value in os.environ.items() if name not in _PEERS} | {faults.VARIABLE: fault}
    line = [sys.executable, "-m", "lmjax.cli", *words]
    with open(log, "ab") as file:
        return subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode


def _records(run: Path) -> list[Record]:
    return journal.read(run / "journal.jsonl")


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _told(run: Path, event: str, otherwise: str) -> Record:
    """The newest record of an event. Failed: there is none."""
    record = last(_records(run), event)
    if record is None:
        raise Failed(otherwise, run)
    return record


def _require(true: bool, otherwise: str, run: Path) -> None:
    if not true:
        raise Failed(otherwise, run)


# ---- The scenarios: each returns what happened, or raises Failed -----------------------------------------------------


def clean(stage: Stage) -> str:
    """A run that nothing disturbs."""
    run = stage.train("clean")
    stage.same(run)
    stage.audit(run)
    return "finished, audit in order"


def stopped(stage: Stage) -> str:
    """A signal asks the run to end, as a scheduler's does."""
    run = stage.train("stopped", fault=f"update=SIGTERM@{MIDDLE}")
    _told(run, "signal", "the signal was not heard")
    stage.resume(run)
    return "saved, resumed, same digest"


def killed(stage: Stage) -> str:
    """The process is gone while a checkpoint is on the disk under a temporary name."""
    run = stage.train("killed", fault=f"save.rename=kill@{SAVES}", status=-9)
    stage.resume(run)
    return "resumed, same digest"


def torn(stage: Stage) -> str:
    """The newest checkpoint has lost half of its largest file."""
    run = stage.folder / "torn"
    shutil.copytree(stage.folder / "clean", run)
    (run / "summary.json").unlink()  # or it would be complete
    newest = checkpoint.folders(run / "checkpoints")[-1]
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    stage.resume(run)
    return f"fell back to {_told(run, 'fallback', 'the damage was not noticed')['update']}, same digest"


def not_a_number(stage: Stage) -> str:
    """The loss of one batch is not a number, as from a fault of the hardware."""
    run = stage.train("nan", fault=f"batch=nan@{MIDDLE + 1}")
    _told(run, "suspect", "the batch was applied")
    losses = [float.fromhex(applied.loss) for applied in fold(_records(run)).path]
    _require(len(losses) == UPDATES and all(map(math.isfinite, losses)), "a loss is not finite", run)
    return "left out, finished, all finite"


def transient(stage: Stage) -> str:
    """One update goes far astray: the learning rate x 1,000,000, so that it is a spike whatever the model is."""
    run = stage.train("spike", fault=f"learning_rate=times:1e6@{spike_update(stage.config)}")
    _told(run, "rollback", "the spike was not noticed")
    _require(any(record.get("reason") == TRANSIENT for record in _records(run)), "not found transient", run)
    stage.same(run)
    return "rolled back, replayed, same digest"


def poisoned(stage: Stage) -> str:
    """Some batches hold random tokens, whenever they are read."""
    begin = spike_update(stage.config) - 1
    count = max(stage.config.guard.in_a_row, stage.config.guard.several)
    past = fold(_records(stage.folder / "clean"))
    run = stage.train("poisoned", fault=f"data=random@{past.cursor(begin)}-{past.cursor(begin + count - 1)}!")
    _told(run, "suspect", "the poison was not noticed")
    _told(run, "skip", "not skipped")
    stage.audit(run, "--config", str(stage.folder / "fresh.json"))
    stage.same(run, stage.train("fresh", config="fresh.json"))
    return "rolled back, skipped, digest of a fresh run without them"


def full(stage: Stage) -> str:
    """There is no space on the disk for one checkpoint."""
    stop = stage.config.checkpoint.retries == 0 and stage.config.checkpoint.on_failure == "stop"
    run = stage.train("full", fault=f"save.manifest=full@{SAVES}", status=int(stop))
    _told(run, "fallback", "the failed save was not noticed")
    (stage.resume if stop else stage.same)(run)
    return f"{'stopped, resumed' if stop else 'trained on'}, same digest"


class Scenario(NamedTuple):
    """What is tried (`act`), and under which policies of the guard that makes sense."""

    fault: str
    expected: str
    act: Callable[[Stage], str]
    policies: tuple[str, ...] = ("rollback", "skip", "off")

    def excluded(self, config: Config) -> str:
        """Why it does not apply to a small copy; empty if it does."""
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


# ---- All of it ------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """passed: None where the scenario does not apply, or could not be tried. log: where to look if it failed."""

    scenario: Scenario
    happened: str
    seconds: float = 0.0
    passed: bool | None = None
    log: Path | None = None


def show(config: Config, *, keep: Path | None) -> int:
    """Rehearses `config` and prints a table of what happened; the exit status: 0 if all passed, 1 if not.

    keep: an empty or new folder for the runs; None: a temporary one, which stays only if something failed. The data
    are prepared as the real run needs them. UserError: `keep` is in use, or no run can be made of the configuration.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UserError(f"--keep {keep}: it is there already and not an empty folder; choose another place")
    families.check(config.model)
    small = shrink(config)
    with Console() as console:
        _introduce(config, small, console)
        stores.prepare(config.data, report=console.report)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        folder = (keep or Path(tempfile.mkdtemp(prefix="lmjax-rehearsal-"))).absolute()
        status = PASSED
        try:
            write_text(folder / "real.json", typed.to_json(config))
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
    """What became of each scenario; none but the first if that fails. UserError: the small copy cannot be trained."""
    write_text(stage.folder / "copy.json", typed.to_json(stage.config))
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
            except (Failed, UserError, OSError) as error:  # such as a journal that is damaged
                happened, passed, log = str(error), False, getattr(error, "log", None)
        if not (stage.folder / "clean").exists():
            _refuse(stage.folder / "clean.log")
        outcomes.append(Outcome(scenario, happened, time.perf_counter() - begun, passed, log))
        console.event(f"{'pass' if passed else 'FAIL'}  {scenario.fault}: {happened}")
    return outcomes


def conclude(outcomes: Sequence[Outcome], console: Console) -> int:
    """Prints the table, and where to look at what failed; returns the exit status."""
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
    what = "see above what failed" if failed else "this setup survives what was tried"
    console.event(f"{tried - len(failed)} of {tried} passed: {what}")
    return FAILED if failed else PASSED


def _introduce(config: Config, small: Config, console: Console) -> None:
    """What is different in the small copy."""
    rows = [re.split(": | -> ", line, maxsplit=2) for line in typed.differences(config, small)]
    console.table("The small copy; all else is as in the real run", [("key", "real", "rehearsal"), *rows])
    console.event("the data are prepared whole, once, and the real run uses them too")


def _tail(log: Path, *, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").rstrip().splitlines()[-lines:]) if log.is_file() else ""


def _refuse(log: Path) -> None:
    """UserError: the one line with which a run that never began says what is wrong with the configuration."""
    line = _tail(log, lines=1)
    if line.startswith("error: "):
        raise UserError(line.removeprefix("error: "))
