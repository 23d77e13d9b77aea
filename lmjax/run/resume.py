"""Resume a run from its newest checkpoint."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from lmjax.config import Config, UserError, codec, presets, user_files
from lmjax.data.store.preparation import cache_folder, find_store
from lmjax.display.console import Console
from lmjax.guard import detector
from lmjax.journal.history import History, fold, learnt
from lmjax.journal.journal import Journal
from lmjax.parallel import processes
from lmjax.run import config_hash, extension, feed, reference_file, transfer
from lmjax.run.build import Run
from lmjax.run.identity import (
    absolute,
    allowed_changes,
    changes_data,
    located_tasks,
    recorded_data,
    resolved_like,
    same_inputs,
    versions,
)
from lmjax.run.launch import begin_run, check_name, open_console, open_journal, prepare_run
from lmjax.run.saved import read_summary
from lmjax.run.session import FINISHED, train_run
from lmjax.system.files import locked, write_bytes, write_text
from lmjax.training import checkpoint, rollback
from lmjax.training.inputs import Position


def resume(config: Config, run_dir: Path, *, allow: Sequence[str] = ()) -> int:
    """Resume a run from its newest complete checkpoint; the result is bit-identical.

    A rollback that was announced but not finished is finished first. On other devices than before the samples are the
    same, and the losses are equal up to rounding. Returns an exit status as `launch.start` does.

    Raises:
        UserError: `config` differs from the run's in a key that is neither in `allow` nor one of `parallel.*` and
            `runtime.*`; config.json, the tokenizer or the data changed; or another process works on the run.
        CheckpointError: the run has checkpoints, but none can be read.
    """
    processes.connect(config.parallel)
    check_name(run_dir)
    with locked(run_dir) if processes.is_main() else nullcontext() as lock, open_console() as console:
        config_hash.check(run_dir)
        saved = located_tasks(presets.saved(run_dir / "config.json"))
        config = absolute(config)
        config = resolved_like(config, saved)
        if not config.data.cache and saved.data.cache:
            config = _with_cache(config, saved.data.cache, run_dir, console)
        changed = allowed_changes(saved, config, allow)
        if _complete(run_dir) and not learnt(changed):
            console.event(f"{run_dir} is complete; to train on, add train.updates=N --allow-change train.updates")
            return FINISHED
        known = "" if changes_data(changed) else recorded_data(run_dir)
        run = prepare_run(config, console, kept=run_dir / "tokenizer.json", known=known)
        journal = open_journal(run_dir, console)
        if not journal.records:
            if checkpoint.folders(run_dir / "checkpoints"):
                raise UserError(
                    f"{run_dir} has checkpoints, but no journal: bring journal.jsonl back, or start a new run"
                )
            console.event("the run was stopped before its first update: starting it")
            return begin_run(run, run_dir, console, lock)
        same_inputs(run, journal)
        extension.check_length(run, saved, fold(journal.records))
        run = reference_file.recorded(run, run_dir, journal.records[0], console)
        if processes.is_main():
            _restore_tokenizer(run, run_dir / "tokenizer.json", console)
        position = _restored(run, run_dir, journal, console)
        given, run = run.config, extension.extend(run, saved, position.update)
        changed += codec.differences(given, run.config)
        if changed and processes.is_main():
            user_files.save_copies(run.config.extensions, run_dir, write=write_bytes)
            config_hash.write(run.config, run_dir)
        elif processes.is_main():
            config_hash.add_hash(run_dir)
        position = _announce(run, run_dir, saved, changed, position, journal, console)
        return train_run(run, run_dir, position, journal, console, lock)


def _announce(
    run: Run, run_dir: Path, saved: Config, changed: list[str], position: Position, journal: Journal, console: Console
) -> Position:
    """Journal the resume, say what changes, and return the position with its last batches."""
    before = fold(journal.records).machine
    counters = {"update": position.update, "cursor": position.cursor, "wall_step": journal.wall_step}
    journal.write("resume", **counters, changed=changed, **versions(run))
    console.event(f"resuming {run_dir} after update {position.update}")
    past = fold(journal.records)
    if past.machine != before:
        console.event("on other devices or another JAX than before: losses are the same up to rounding")
    if line := extension.describe(run, saved, position.update, past.cuts):
        console.event(line)
    recent = past.recent(detector.remembered(run.config.guard), cursor=position.cursor)
    return Position(position.state, **counters, recent=recent)


def _with_cache(config: Config, cache: str, run_dir: Path, console: Console) -> Config:
    """Use the cache of the saved configuration if it has the tokens of the run: only to read."""
    if find_store(cache_folder(cache), recorded_data(run_dir)) is None:
        console.event(f"ignored in {run_dir / 'config.json'}: data.cache={cache}; to write there, give it as a change")
        return config
    return replace(config, data=replace(config.data, cache=cache))


def _restored(run: Run, run_dir: Path, journal: Journal, console: Console) -> Position:
    """Finish an announced rollback, then restore the newest complete checkpoint.

    If there is no checkpoint, the run starts at update 0.
    """
    past, root = fold(journal.records), run_dir / "checkpoints"
    if past.pending is not None:
        console.event(f"finishing the rollback to update {past.pending['target']}")
        rollback.finish(journal, root, past.pending, samples=partial(feed.sample_ranges, run, past=past))
    if not past.saved and not checkpoint.folders(root):
        console.event("no checkpoint was saved yet: starting again at update 0")
        state = transfer.begin_again(run, journal.records[0], report=console.event)
        return Position(state, update=0, cursor=0, wall_step=0)
    _know_a_checkpoint(past, root)
    restored, state, problems = checkpoint.load(root, run.abstract_state, announced=past.announced)
    counters = {"update": restored.meta["update"], "cursor": restored.meta["cursor"], "wall_step": journal.wall_step}
    if problems:
        console.event("fell back to an older checkpoint: " + "; ".join(problems))
        journal.write("fallback", **counters, problems=problems)
        rollback.set_aside(root, after=restored.meta["update"])
    return Position(state, **counters)


def _know_a_checkpoint(past: History, root: Path) -> None:
    """Check that the journal has at least one of the checkpoints on the path of the run.

    Raises:
        UserError: It has none: the journal or the checkpoints are of another run.
    """
    updates = [int(folder.name) for folder in checkpoint.folders(root)]
    if updates and not past.announced.keys() & set(updates):
        raise UserError(
            f"{root} has checkpoints of updates {', '.join(map(str, updates[-8:]))}, and journal.jsonl has none of "
            "them on the path of the run: bring the journal or the checkpoints of this run back"
        )


def _restore_tokenizer(run: Run, path: Path, console: Console) -> None:
    """Write the run's copy of the tokenizer again if it is missing or damaged."""
    try:
        if path.read_bytes() == run.store.tokenizer.json.encode():
            return
        problem = "is not the tokenizer of the run"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    write_text(path, run.store.tokenizer.json)
    console.event(f"{path} {problem}: written again from the prepared data")


def _complete(run_dir: Path) -> bool:
    return read_summary(run_dir).get("status") == "finished"
