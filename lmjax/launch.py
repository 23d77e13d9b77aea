"""Starting and resuming a run in its directory, and reporting its end: what the doors call.

Each function returns an exit status: 0 finished (or stopped by a signal, its state saved), 3 given up.
"""

import dataclasses
import io
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lmjax import __version__, dispatch, faults, machine, measure, parallel, plan, report, transfer, typed
from lmjax import run as runs
from lmjax.autopsy import report as autopsy
from lmjax.config import ClassificationConfig, Config, DataConfig, TrackConfig, UserError
from lmjax.console import Console
from lmjax.data import store as stores
from lmjax.files import locked, write_text
from lmjax.models import families
from lmjax.run import Run
from lmjax.train import checkpoint, guard, loop, metrics, rollback
from lmjax.train.checkpoint import Checkpoints
from lmjax.train.history import MEANS, fold, last, learnt, machine_of
from lmjax.train.journal import Journal
from lmjax.train.parts import GaveUp, Parts, Position, write
from lmjax.train.signals import StopRequest

FINISHED, GAVE_UP = 0, 3


# ---- Start and resume -----------------------------------------------------------------------------------------------


def start(config: Config, run_dir: Path) -> int:
    """Trains `config` from update 0 into the new directory `run_dir`.

    UserError: the directory exists, or the configuration does not fit the data or the machine; nothing is left behind.
    """
    parallel.connect(config.parallel)
    main = parallel.is_main()
    if main and run_dir.exists() and (not run_dir.is_dir() or any(path.name != ".lock" for path in run_dir.iterdir())):
        raise UserError(
            f"{run_dir} exists: go on with it by --resume {run_dir}, or choose another place with --run-dir DIR"
        )
    config = transfer.adopt(absolute(config))
    with _console() as console:
        if main:
            _make(run_dir)
        try:
            with locked(run_dir) if main else nullcontext():
                run = _prepare(config, console)
                return _begin(run, run_dir, console)
        finally:
            if main and not any(run_dir.iterdir()):
                run_dir.rmdir()


def _begin(run: Run, run_dir: Path, console: Console) -> int:
    """A run from its first update; the journal begins once the files that a resume needs are there."""
    if parallel.is_main():
        write_text(run_dir / "config.json", typed.to_json(run.config))
        run.store.tokenizer.save(run_dir / "tokenizer.json")
    journal = _journal(run_dir)
    if not (run_dir / "config.json").is_file():
        raise UserError(
            f"{run_dir} of process 0 is not seen by process {jax.process_index()}: it must be on a disk of all"
        )
    state, origin = transfer.begin(run, report=console.event)
    position = Position(state, update=0, cursor=0, wall_step=0)
    inputs = fingerprints(run) | origin | versions(run)
    journal.write("start", wall_step=0, update=0, cursor=0, seed=run.config.seed, **inputs)
    return _train(run, run_dir, position, journal, console)


def resume(config: Config, run_dir: Path, *, allow: Sequence[str] = ()) -> int:
    """Goes on with the run in `run_dir` from its newest whole checkpoint, bit for bit.

    A rollback that was announced but not finished is finished first. The devices may be others than before: the
    samples are the same then, the losses up to rounding. UserError: `config` differs from the run's in a key that is
    not in `allow`, nor one of `parallel.*` and `runtime.*`, the tokenizer or data changed, or another process is at
    work on the run. CheckpointError: the run has checkpoints, but none can be read.
    """
    parallel.connect(config.parallel)
    with locked(run_dir) if parallel.is_main() else nullcontext(), _console() as console:
        saved = typed.from_json((run_dir / "config.json").read_text(), Config)
        config = absolute(config)
        config = _resolved_like(config, saved)
        changed = _allowed_changes(saved, config, allow)
        if _complete(run_dir) and not learnt(changed):
            console.event(f"{run_dir} is complete; to train on, add train.updates=N --allow-change train.updates")
            return FINISHED
        run = _prepare(config, console, kept=run_dir / "tokenizer.json")
        journal = _journal(run_dir)
        if not journal.records:
            if checkpoint.folders(run_dir / "checkpoints"):
                raise UserError(
                    f"{run_dir} has checkpoints, but no journal: bring journal.jsonl back, or start a new run"
                )
            console.event("the run was stopped before its first update: starting it")
            return _begin(run, run_dir, console)
        _same_inputs(run, journal)
        position = _restored(run, run_dir, journal, console)
        if changed and parallel.is_main():
            write_text(run_dir / "config.json", typed.to_json(run.config))
        counters = {"update": position.update, "cursor": position.cursor, "wall_step": journal.wall_step}
        before = fold(journal.records).machine
        journal.write("resume", **counters, changed=changed, **versions(run))
        console.event(f"going on with {run_dir} after update {position.update}")
        past = fold(journal.records)
        if past.machine != before:
            console.event("on other devices or another JAX than before: losses are the same up to rounding")
        recent = past.recent(guard.remembered(run.config.guard), cursor=position.cursor)
        return _train(run, run_dir, Position(position.state, **counters, recent=recent), journal, console)


def _restored(run: Run, run_dir: Path, journal: Journal, console: Console) -> Position:
    """The run at its newest whole checkpoint, after a rollback under way is finished; at the start if there is none."""
    past, root = fold(journal.records), run_dir / "checkpoints"
    if past.pending is not None:
        console.event(f"finishing the rollback to update {past.pending['target']}")
        rollback.finish(journal, root, past.pending, samples=partial(runs.sample_ranges, run, past=past))
    if not past.saved and not checkpoint.folders(root):
        console.event("no checkpoint was saved yet: starting again at update 0")
        state, origin = transfer.begin(run, report=console.event)
        if origin.get("init_sha256") != journal.records[0].get("init_sha256"):
            raise UserError(f"{origin.get('init_from')} has other parameters than when the run began; start a new run")
        return Position(state, update=0, cursor=0, wall_step=0)
    found, state, problems = checkpoint.load(root, runs.abstract(run), digests=past.digests)
    counters = {"update": found.meta["update"], "cursor": found.meta["cursor"], "wall_step": journal.wall_step}
    if problems:
        console.event("fell back to an older checkpoint: " + "; ".join(problems))
        journal.write("fallback", **counters, problems=problems)
        rollback.set_aside(root, after=found.meta["update"])
    return Position(state, **counters)


def _journal(run_dir: Path) -> Journal:
    """The journal of a run, repaired by its main process before the others read it, and not written before all have."""
    path = run_dir / "journal.jsonl"
    return parallel.main_first("journal", lambda: Journal(path, own=parallel.is_main()))


def _console() -> Console:
    """What a person sees: of the main process only."""
    return Console() if parallel.is_main() else Console(io.StringIO())


def _resolved_like(config: Config, saved: Config) -> Config:
    """The configuration with what a run takes from its data filled in as it was."""
    config = runs.resolve(config, saved.model.vocab_size) if config.model.vocab_size == 0 else config
    if isinstance(config.objective, ClassificationConfig) and isinstance(saved.objective, ClassificationConfig):
        labels = config.objective.labels or saved.objective.labels
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, labels=labels))
    return config


def absolute(config: Config) -> Config:
    """The same configuration with absolute paths, so that a run can be resumed from any folder."""
    data, cache = config.data, config.runtime.compilation_cache
    choice = dataclasses.replace(data.tokenizer, path=_absolute(data.tokenizer.path))
    if isinstance(data, DataConfig):
        mixture = tuple(
            dataclasses.replace(source, files=tuple(map(_absolute, source.files))) for source in data.mixture
        )
        data = dataclasses.replace(data, mixture=mixture)
    else:
        data = dataclasses.replace(data, validation_files=tuple(map(_absolute, data.validation_files)))
    data = dataclasses.replace(data, files=tuple(map(_absolute, data.files)), tokenizer=choice)
    runtime = dataclasses.replace(config.runtime, compilation_cache=cache if cache == "off" else _absolute(cache))
    return dataclasses.replace(config, data=data, init_from=_absolute(config.init_from), runtime=runtime)


def _absolute(name: str) -> str:
    """A path from anywhere; of none, none."""
    return os.path.abspath(os.path.expanduser(name)) if name else ""


def _prepare(config: Config, console: Console, *, kept: Path | None = None) -> Run:
    """The parts of a run; what is wrong with the configuration is found before the data are read.

    kept: the run's own copy of its tokenizer, which is read where the file that the configuration names is gone.
    """
    runs.check(config)
    data, choice = config.data, config.data.tokenizer
    if kept is not None and kept.is_file() and choice.kind == "file" and not Path(choice.path).exists():
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(choice, path=str(kept)))
    store = stores.prepare(data, report=console.report)
    run = runs.build(config, store)
    software = f"{__version__}, jax {jax.__version__}"
    parallel.agree(lmjax=software, configuration=typed.to_json(run.config), **fingerprints(run))
    for line in runs.describe_data(run):
        console.event(line)
    if run.mesh.size > 1:
        processes = "" if parallel.alone() else f", in {jax.process_count()} processes"
        console.event(f"{run.mesh.size} devices: {parallel.describe(run.mesh)}{processes}")
    if overlooked := parallel.overlooked():
        console.event(overlooked)
    return run


def _allowed_changes(saved: Config, config: Config, allow: Sequence[str]) -> list[str]:
    """The differences, each of them allowed, as those of devices and of the runtime are. UserError: one is not."""
    for key in allow:
        if key not in typed.keys(saved):
            raise UserError(f"--allow-change {key}: unknown key{typed.nearest(key, typed.keys(saved))}")
    changed = typed.differences(saved, config)
    refused = [line for line in changed if line.partition(":")[0] not in allow and not line.startswith(MEANS)]
    if refused:
        keys = " ".join(f"--allow-change {line.partition(':')[0]}" for line in refused)
        raise UserError(f"the run was made with another configuration ({'; '.join(refused)}); to change it: {keys}")
    return changed


def _same_inputs(run: Run, journal: Journal) -> None:
    """UserError: the tokenizer or the data are not those the run began with."""
    began = journal.records[0] if journal.records else {}
    for name, now in fingerprints(run).items():
        if began.get(name) != now:
            raise UserError(
                f"the {name.removesuffix('_sha256')} changed since the run began (sha256 {began.get(name)} -> {now}); "
                f"bring the old files back, or start a new run"
            )


def fingerprints(run: Run) -> dict[str, Any]:
    """What must be equal for a run to go on: the hashes of its tokenizer and its data."""
    return {"tokenizer_sha256": run.store.tokenizer.sha256, "data_sha256": run.store.fingerprint}


def versions(run: Run) -> dict[str, Any]:
    """What a session runs on: the software and the devices."""
    found = {"devices": run.mesh.size, "processes": jax.process_count(), "platform": jax.default_backend()}
    found |= {"mesh": parallel.describe(run.mesh), "form": run.config.parallel.form, "xla_flags": machine.xla_flags()}
    found |= {"updates_at_once": dispatch.together(run)}
    return {"lmjax": __version__, "python": platform.python_version(), "jax": jax.__version__, **found}


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ".probe").touch()
        (run_dir / ".probe").unlink()
    except OSError as error:
        raise UserError(f"cannot write to {run_dir}: {error.strerror}; choose another place with --run-dir") from None


def _complete(run_dir: Path) -> bool:
    path = run_dir / "summary.json"
    return path.is_file() and json.loads(path.read_text())["status"] == "finished"


# ---- Training and its end -------------------------------------------------------------------------------------------


def _train(run: Run, run_dir: Path, position: Position, journal: Journal, console: Console) -> int:
    """From `position` to the end of the run, or to a signal, and the report."""
    begun, before = time.perf_counter(), _seconds_before(run_dir)
    with StopRequest(alone=parallel.alone()) as stop, _parts(run, run_dir, position, journal, console, stop) as parts:
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
        params = None if stopped else parallel.local(runs.averaged(position.state))
        if not stopped and parallel.is_main():
            report.finish(run, run_dir, summary, params=params, console=console)
    if stopped:
        console.close()
        console.event(f"stopped by {stopped}, saved after update {position.update}; go on with:")
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
    summary = report.summarise(run, position.state, status=status, seconds=seconds, measured=measured or {})
    if status != "finished" and parallel.is_main():
        write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


@contextmanager
def _parts(
    run: Run, run_dir: Path, position: Position, journal: Journal, console: Console, stop: StopRequest
) -> Iterator[Parts]:
    """What the loop is handed; its files are closed and its saves finished at the end, whatever happens."""
    config, update, main = run.config, position.update, parallel.is_main()
    trackers = metrics.trackers(
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
        yield Parts(
            run_dir=run_dir,
            train=config.train,
            checkpoint=config.checkpoint,
            guard=config.guard,
            updates=run.plan.updates,
            sequences=int(run.plan.sequences.sum()),
            in_turn=jax.default_backend() == "cpu" and dispatch.large(run),
            vote=None if parallel.alone() else lambda number: {"votes": parallel.votes(run.mesh, number)},
            tokens=partial(runs.tokens_after, run),
            flops_per_token=families.flops_per_token(config.model),
            peak_flops=runs.peak_flops(run),
            together=dispatch.together(run),
            step=dispatch.step(run),
            batches=partial(runs.batches, run),
            samples=partial(runs.sample_ranges, run),
            evaluate=measure.evaluator(run, stop=stop),
            autopsy=partial(autopsy.write, run, run_dir),
            conclude=partial(autopsy.conclude, run_dir),
            machine=machine_of(versions(run)),
            tolerance=tolerance(config),
            fingerprints=fingerprints(run),
            journal=journal,
            checkpoints=saves,
            recorder=recorder,
            console=console,
        )
    parallel.barrier("the end")  # process 0 has more to do


def tolerance(config: Config) -> float:
    """By how much, relative, the losses of other devices may differ; infinite where they draw other random numbers."""
    if config.parallel.form == "pmap" and config.model.dropout:
        return math.inf
    return 1e-5 if config.model.dtype == "float32" else 1e-2


def _seconds_before(run_dir: Path) -> float:
    """The time that earlier sessions of this run reported."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text())["seconds"] if path.is_file() else 0.0


# ---- Other commands -------------------------------------------------------------------------------------------------


def show_plan(config: Config) -> int:
    """Prints what a run of `config` would do and need; a vocabulary not yet known is guessed from the tokenizer."""
    runs.check(config)
    config = runs.resolve(config, plan.expected_vocabulary(config))
    mesh = parallel.make_mesh(config.parallel, microbatch=config.batch.microbatch)
    peak = machine.peak_flops(config.model.dtype, devices=list(mesh.devices.flat))
    with Console() as console:
        console.event(machine.describe())
        for table in plan.tables(config, peak_flops=peak, devices=mesh.size, mesh=mesh.shape):
            console.table(*table)
    return FINISHED
