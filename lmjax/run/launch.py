"""Start a run in its directory; show the plan of a run.

`start` and `begin_run` return the exit status of `train_run`.
"""

import dataclasses
import io
from contextlib import nullcontext, suppress
from pathlib import Path

import jax

from lmjax import __version__
from lmjax.config import Config, UserError, codec, user_files
from lmjax.data.store.preparation import prepare
from lmjax.display.console import Console
from lmjax.journal.journal import Journal
from lmjax.parallel import processes
from lmjax.parallel.mesh import describe_mesh
from lmjax.run import build, config_hash, data_warnings, episodes, pace, plan, reference_file, transfer
from lmjax.run.build import Run
from lmjax.run.identity import absolute, fingerprints, versions
from lmjax.run.session import FINISHED, train_run
from lmjax.system import machine, paths
from lmjax.system.files import Lock, locked, write_bytes, write_text
from lmjax.training import arrays
from lmjax.training.inputs import Position


def start(config: Config, run_dir: Path) -> int:
    """Train `config` from update 0 into the new directory `run_dir`.

    Returns:
        An exit status: 0 finished (or stopped by a signal, with the state saved), 3 the guard gave up.

    Raises:
        UserError: The directory exists, or the configuration does not fit the data or the machine. Then no directory
            is created.
    """
    processes.connect(config.parallel)
    main = processes.is_main()
    check_name(run_dir)
    if main and run_dir.exists() and (not run_dir.is_dir() or any(path.name != ".lock" for path in run_dir.iterdir())):
        raise UserError(
            f"{run_dir} exists: resume it with --resume {run_dir}, or choose another place with --run-dir DIR"
        )
    config = transfer.adopt(absolute(config))
    with open_console() as console:
        if main:
            _make(run_dir)
        try:
            with locked(run_dir) if main else nullcontext() as lock:
                run = prepare_run(config, console)
                return begin_run(run, run_dir, console, lock)
        finally:
            if main:
                with suppress(OSError):  # it is not empty, or was removed
                    run_dir.rmdir()


def begin_run(run: Run, run_dir: Path, console: Console, lock: Lock | None) -> int:
    """Train a run from its first update.

    The journal starts after the files that a resume needs are written. `lock`: the lock on the directory, in the main
    process.
    """
    if processes.is_main():
        user_files.save_copies(run.config.extensions, run_dir, write=write_bytes)
        config_hash.write(run.config, run_dir)
        write_text(run_dir / "tokenizer.json", run.store.tokenizer.json)
    journal = open_journal(run_dir, console)
    if not (run_dir / "config.json").is_file():
        raise UserError(
            f"process {jax.process_index()} does not see {run_dir} of process 0; choose a --run-dir that all share"
        )
    state, origin = transfer.begin(run, report=console.event)
    run, taken = reference_file.begin(run, run_dir, state, console)
    position = Position(state, update=0, cursor=0, wall_step=0)
    inputs = fingerprints(run) | origin | taken | versions(run)
    journal.write("start", wall_step=0, update=0, cursor=0, seed=run.config.seed, **inputs)
    return train_run(run, run_dir, position, journal, console, lock)


def open_journal(run_dir: Path, console: Console) -> Journal:
    """Open the journal of a run; the main process repairs it before the others read it."""
    path = run_dir / "journal.jsonl"
    return processes.main_first("journal", lambda: Journal(path, own=processes.is_main(), report=console.event))


def open_console() -> Console:
    """Open the console; only that of the main process prints."""
    return Console() if processes.is_main() else Console(io.StringIO())


def prepare_run(config: Config, console: Console, *, kept: Path | None = None, known: str = "") -> Run:
    """Check the configuration, prepare its data and build the run.

    Args:
        config: the configuration.
        console: prints the progress.
        kept: the run's own copy of its tokenizer, used if the file that the configuration names is missing.
        known: fingerprint of the run's data, whose prepared tokens are used if the text is missing.

    Raises:
        UserError: The configuration does not fit the data, the machine or the other processes.
    """
    build.check(config)
    plan.check_memory(config)
    data, choice = config.data, config.data.tokenizer
    if kept is not None and kept.is_file() and choice.kind == "file" and not Path(choice.path).exists():
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(choice, path=str(kept)))
    store = prepare(data, report=console.report, known=known)
    run = build.build(config, store)
    episodes.check_reward(run)
    software = f"{__version__}, jax {jax.__version__}"
    processes.agree(lmjax=software, configuration=codec.to_json(run.config), **fingerprints(run))
    for line in [*build.describe_data(run), *data_warnings.warnings(run)]:
        console.event(line)
    if run.mesh.size > 1:
        several = "" if processes.alone() else f", in {jax.process_count()} processes"
        console.event(f"{run.mesh.size} devices: {describe_mesh(run.mesh)}{several}")
    if overlooked := processes.overlooked():
        console.event(overlooked)
    return run


def check_name(run_dir: Path) -> None:
    """Check that checkpoints can be written and read in a directory of this name.

    Raises:
        UserError: The name is a remote address, too long, or one that a library cannot be given.
    """
    if paths.is_remote(run_dir):
        raise UserError(
            f"--run-dir {paths.address(run_dir)} is a remote address; runs are local directories: copy the run "
            "afterwards"
        )
    arrays.check_path(run_dir)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ".probe").touch()
        (run_dir / ".probe").unlink()
    except OSError as error:
        raise UserError(f"cannot write to {run_dir}: {error.strerror}; choose another place with --run-dir") from None


def show_plan(config: Config, *, measure: bool = False) -> int:
    """Print what a run of `config` would do and need; return an exit status.

    An unknown size of the vocabulary is estimated, unless `train.epochs` makes it necessary to prepare the data. The
    sizes are those of `init_from`, if it exists. `measure`: time updates of a model that fits this machine.
    """
    if config.init_from and Path(config.init_from).exists():
        config = transfer.adopt(absolute(config))
    build.check(config)
    with Console() as console:
        console.event(machine.describe())
        if config.train.epochs:  # only the data say how long the run is
            run = build.build(config, prepare(config.data, report=console.report))
        else:
            run = build.without_data(config)
        if problem := plan.warning(run):
            console.event(problem)
        elif measure:
            with console.phase("measuring this machine"):
                pace.measure(run)
        for table in plan.tables(run):
            console.table(*table)
    return FINISHED
