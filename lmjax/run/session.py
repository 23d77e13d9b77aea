"""A session of a run: train to its end or to a signal, then write the summary."""

import dataclasses
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lmjax.config import TrackConfig
from lmjax.config.errors import one_line
from lmjax.display.console import Console
from lmjax.journal.history import last, machine_of
from lmjax.journal.journal import Journal
from lmjax.parallel import mesh, processes
from lmjax.run import (
    build,
    feed,
    html_report,
    pace,
    plan,
    policy_evaluation,
    policy_progress,
    samples_over_time,
    steps,
    validation,
)
from lmjax.run.build import Run
from lmjax.run.callbacks import notifier
from lmjax.run.identity import fingerprints, tolerance, versions
from lmjax.run.own_files import OwnFiles
from lmjax.run.saved import read_summary
from lmjax.run.spikes import report
from lmjax.run.summary import finish, summarise
from lmjax.system import faults, machine
from lmjax.system.files import Lock
from lmjax.system.json_files import write_json
from lmjax.training import loop, metrics
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.dispatch import with_faults
from lmjax.training.inputs import GaveUp, LoopInputs, Position, every, write
from lmjax.training.signals import StopRequest
from lmjax.training.speed import Speed
from lmjax.training.state import State
from lmjax.training.trackers import open_trackers

FINISHED, GAVE_UP = 0, 3


def train_run(
    run: Run, run_dir: Path, position: Position, journal: Journal, console: Console, lock: Lock | None
) -> int:
    """Train from `position` to the end of the run, or until a signal, and write the summary.

    Args:
        run: The run.
        run_dir: Its directory.
        position: The position.
        journal: The journal of the run.
        console: Prints the progress.
        lock: The lock on the directory, in the main process.

    Returns:
        The exit status: FINISHED (also if stopped by a signal) or GAVE_UP.
    """
    begun, before = time.perf_counter(), _seconds_before(run_dir)
    own = OwnFiles(run_dir, lock, console.event).check if lock else lambda: None
    with (
        StopRequest(alone=processes.alone(), resume=resume_command(run_dir)) as stop,
        _loop_inputs(run, run_dir, position, journal, console, stop, own) as inputs,
    ):
        for table in plan.tables(run, position.update):
            console.table(*table)
        tokens, context = run.plan.tokens, run.plan.context
        console.start(run.plan.updates, tokens=tokens, context=context, update=position.update)
        try:
            faults.reach("prepared")
            policy_progress.begin(run, position, inputs)
            position = loop.train(inputs, position, stop=stop)
            pace.remember(run, tokens=inputs.speed.total[0], seconds=inputs.speed.total[1])
        except GaveUp as error:
            seconds = before + time.perf_counter() - begun
            summary = _summarise(run, run_dir, error.position, status="gave up", seconds=seconds, console=console)
            inputs.notify("end", error.position.update, summary)
            console.close()
            console.event(f"given up: {error}; the newest checkpoint is a healthy one; lmjax audit {run_dir} explains")
            return GAVE_UP
        measured = {} if stop.name else loop.evaluate(inputs, position, whole=True)
        policy_progress.conclude(run, measured, inputs)
        stopped = stop.name  # read once: a later signal finds the run finished
        status = "stopped" if stopped else "finished"
        seconds = before + time.perf_counter() - begun
        summary = _summarise(run, run_dir, position, status=status, seconds=seconds, console=console, measured=measured)
        if stopped and (last(journal.records, "signal") or {}).get("wall_step") != position.wall_step:
            write(inputs, position, "signal", name=stopped)  # the signal came after the last update
        if not stopped:
            write(inputs, position, "end", status=status, digest=summary["digest"])
        params = None if stopped else mesh.local_copy(build.averaged(position.state))
        if not stopped and processes.is_main():
            finish(run, run_dir, summary, params=params, console=console)
        inputs.notify("end", position.update, summary)
    if stopped:
        console.close()
        console.last_words(
            f"stopped by {stopped}, saved after update {position.update}; resume with:\n  {resume_command(run_dir)}"
        )
    return FINISHED


def resume_command(run_dir: Path) -> str:
    """Return the command that resumes a run."""
    return f"python train.py --resume {shlex.quote(str(run_dir))}"


def _summarise(
    run: Run,
    run_dir: Path,
    position: Position,
    *,
    status: str,
    seconds: float,
    console: Console,
    measured: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return the summary; write summary.json and the report unless the run is finished.

    `finish` writes those of a finished run, with its baselines.
    """
    summary = summarise(run, position.state, status=status, seconds=seconds, measured=measured or {})
    if status != "finished" and processes.is_main():
        write_json(run_dir / "summary.json", summary)
        _report_early_end(run_dir, console)
    return summary


def _report_early_end(run_dir: Path, console: Console) -> None:
    """Write the HTML report of a run that is stopped or gives up, if it has records."""
    try:
        if not (run_dir / "metrics.jsonl").stat().st_size:
            return
        html_report.write([run_dir])
    except Exception as error:  # everything else is saved
        console.event(f"writing the report failed ({type(error).__name__}: {one_line(error)})")


@contextmanager
def _loop_inputs(
    run: Run,
    run_dir: Path,
    position: Position,
    journal: Journal,
    console: Console,
    stop: StopRequest,
    guard: Callable[[], None],
) -> Iterator[LoopInputs]:
    """Open the inputs of the loop; at the end, close files and complete saves.

    `guard` raises an error if the files of the run are no longer those of this process.
    """
    config, update, main = run.config, position.update, processes.is_main()
    step, dispatch = with_faults(steps.step_function(run, run_dir / "checkpoints", position.state), run.dispatch)
    trackers = open_trackers(
        config.track if main else TrackConfig(),
        run_dir,
        name=config.name,
        settings=dataclasses.asdict(config),
        update=update,
        report=console.event,
    )
    path = run_dir / "metrics.jsonl"
    records = metrics.read(path) if path.exists() else []
    scores, due = metrics.scores(records), _evaluation_due(run, update, records)
    measure_again = partial(machine.peak_flops, config.model.dtype, devices=list(run.mesh.devices.flat), again=True)
    folder = run_dir / "checkpoints"
    with (
        metrics.Recorder(path if main else os.devnull, update=update, sinks=trackers, report=console.event) as recorder,
        closing(Checkpoints(folder, config=config.checkpoint, scores=scores, main=main, guard=guard)) as saves,
    ):
        yield LoopInputs(
            run_dir=run_dir,
            train=config.train,
            checkpoint=config.checkpoint,
            guard=config.guard,
            updates=run.plan.updates,
            sequences=int(run.plan.sequences.sum()),
            vote=None if processes.alone() else lambda number: {"votes": mesh.votes(run.mesh, number)},
            tokens=run.tokens_after,
            speed=Speed(flops_per_token=run.flops_per_token, peak=run.peak_flops, measure=measure_again),
            evaluation_due=due,
            dispatch=dispatch,
            step=step,
            batches=partial(feed.device_batches, run),
            samples=partial(feed.sample_ranges, run),
            evaluate=_evaluator(run, run_dir, stop, console),
            autopsy=partial(report.write_report, run, run_dir),
            conclude=partial(report.conclude_report, run_dir),
            machine=machine_of(versions(run)),
            tolerance=tolerance(config),
            fingerprints=fingerprints(run),
            notify=notifier(config.train.callbacks if main else (), run_dir, report=console.event),
            journal=journal,
            checkpoints=saves,
            recorder=recorder,
            console=console,
        )
    processes.barrier("the end")  # process 0 ends later than the others


def _evaluation_due(run: Run, update: int, records: Sequence[metrics.Record]) -> bool:
    """Whether an evaluation was due here and has no record; every process must call this."""

    def missing() -> str | None:
        due = 0 < update < run.plan.updates and every(run.config.train.evaluate_every, update)
        done = any(record["update"] == update and "val_loss" in record for record in records)
        return "due" if due and not done else None

    return processes.broadcast_from_main(missing) is not None


def _evaluator(
    run: Run, run_dir: Path, stop: StopRequest, console: Console
) -> Callable[[State, bool], dict[str, float]]:
    if run.objective.episodic:
        return policy_evaluation.evaluator(run, run_dir, say=console.event)
    evaluate = validation.evaluator(run, stop=stop, report=console.event)
    return samples_over_time.with_samples(run, run_dir, evaluate, report=console.event)


def _seconds_before(run_dir: Path) -> float:
    """Return the seconds that the previous sessions of the run took."""
    seconds = read_summary(run_dir).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < math.inf else 0.0
