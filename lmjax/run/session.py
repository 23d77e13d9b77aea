"""From a position to the end of a run, or to a signal, with its report."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lmjax.config import TrackConfig
from lmjax.display.console import Console
from lmjax.journal.history import last, machine_of
from lmjax.journal.journal import Journal
from lmjax.models import registry
from lmjax.parallel import mesh, processes
from lmjax.run import build, dispatch, feed, plan, validation
from lmjax.run.build import Run
from lmjax.run.identity import fingerprints, tolerance, versions
from lmjax.run.spikes import report
from lmjax.run.summary import finish, summarise
from lmjax.system import faults
from lmjax.system.files import write_text
from lmjax.training import loop, metrics
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.inputs import GaveUp, LoopInputs, Position, write
from lmjax.training.signals import StopRequest
from lmjax.training.trackers import open_trackers

FINISHED, GAVE_UP = 0, 3


def train_run(run: Run, run_dir: Path, position: Position, journal: Journal, console: Console) -> int:
    """From `position` to the end of the run, or to a signal, and the report."""
    begun, before = time.perf_counter(), _seconds_before(run_dir)
    with (
        StopRequest(alone=processes.alone()) as stop,
        _parts(run, run_dir, position, journal, console, stop) as parts,
    ):
        known: Any = {"peak_flops": parts.peak_flops, "devices": run.mesh.size, "mesh": run.mesh.shape}
        for table in plan.tables(run.config, **known, corpus_tokens=run.task.epoch):
            console.table(*table)
        tokens, context = run.plan.tokens, run.plan.context
        console.start(run.plan.updates, tokens=tokens, context=context, update=position.update)
        try:
            faults.reach("prepared")
            position = loop.train(parts, position, stop=stop)
        except GaveUp as error:
            _summarise(run, run_dir, error.position, status="gave up", seconds=before + time.perf_counter() - begun)
            console.close()
            console.event(f"given up: {error}; the newest checkpoint is a healthy one; lmjax audit {run_dir} explains")
            return GAVE_UP
        measured = {} if stop.name else loop.evaluate(parts, position, whole=True)
        stopped = stop.name  # read once: a signal that comes later finds the run finished
        status = "stopped" if stopped else "finished"
        seconds = before + time.perf_counter() - begun
        summary = _summarise(run, run_dir, position, status=status, seconds=seconds, measured=measured)
        if stopped and (last(journal.records, "signal") or {}).get("wall_step") != position.wall_step:
            write(parts, position, "signal", name=stopped)  # it came after the last update
        if not stopped:
            write(parts, position, "end", status=status, digest=summary["digest"])
        params = None if stopped else mesh.local_copy(build.averaged(position.state))
        if not stopped and processes.is_main():
            finish(run, run_dir, summary, params=params, console=console)
    if stopped:
        console.close()
        console.event(f"stopped by {stopped}, saved after update {position.update}; resume with:")
        console.event(f"  python train.py --resume {run_dir}")
    return FINISHED


def _summarise(
    run: Run,
    run_dir: Path,
    position: Position,
    *,
    status: str,
    seconds: float,
    measured: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Writes summary.json, but for a finished run, whose summary is still to have its baselines; returns it."""
    summary = summarise(run, position.state, status=status, seconds=seconds, measured=measured or {})
    if status != "finished" and processes.is_main():
        write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


@contextmanager
def _parts(
    run: Run, run_dir: Path, position: Position, journal: Journal, console: Console, stop: StopRequest
) -> Iterator[LoopInputs]:
    """What the loop is handed; its files are closed and its saves finished at the end, whatever happens."""
    config, update, main = run.config, position.update, processes.is_main()
    trackers = open_trackers(
        config.track if main else TrackConfig(),
        run_dir,
        name=config.name,
        settings=dataclasses.asdict(config),
        update=update,
        report=console.event,
    )
    path = run_dir / "metrics.jsonl"
    scores = {r["update"]: r["val_loss"] for r in metrics.read(path) if r.get("val_loss")} if path.exists() else {}
    with (
        metrics.Recorder(path if main else os.devnull, update=update, sinks=trackers, report=console.event) as recorder,
        closing(Checkpoints(run_dir / "checkpoints", config=config.checkpoint, scores=scores, main=main)) as saves,
    ):
        yield LoopInputs(
            run_dir=run_dir,
            train=config.train,
            checkpoint=config.checkpoint,
            guard=config.guard,
            updates=run.plan.updates,
            sequences=int(run.plan.sequences.sum()),
            in_turn=jax.default_backend() == "cpu" and dispatch.large(run),
            vote=None if processes.alone() else lambda number: {"votes": mesh.votes(run.mesh, number)},
            tokens=partial(build.tokens_after, run),
            flops_per_token=registry.flops_per_token(config.model),
            peak_flops=build.peak_flops(run),
            together=dispatch.together(run),
            step=dispatch.step(run),
            batches=partial(feed.device_batches, run),
            samples=partial(feed.sample_ranges, run),
            evaluate=validation.evaluator(run, stop=stop),
            autopsy=partial(report.write_report, run, run_dir),
            conclude=partial(report.conclude_report, run_dir),
            machine=machine_of(versions(run)),
            tolerance=tolerance(config),
            fingerprints=fingerprints(run),
            journal=journal,
            checkpoints=saves,
            recorder=recorder,
            console=console,
        )
    processes.barrier("the end")  # process 0 has more to do


def _seconds_before(run_dir: Path) -> float:
    """The time that earlier sessions of this run reported."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
