"""Resume a run from its newest checkpoint."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from lmjax.config import Config, UserError, codec, user_files
from lmjax.display.console import Console
from lmjax.guard import detector
from lmjax.journal.history import fold, learnt
from lmjax.journal.journal import Journal
from lmjax.parallel import processes
from lmjax.run import feed, transfer
from lmjax.run.build import Run
from lmjax.run.identity import absolute, allowed_changes, resolved_like, same_inputs, versions
from lmjax.run.launch import begin_run, open_console, open_journal, prepare_run
from lmjax.run.session import FINISHED, train_run
from lmjax.system.files import locked, write_text
from lmjax.training import checkpoint, rollback
from lmjax.training.inputs import Position


def resume(config: Config, run_dir: Path, *, allow: Sequence[str] = ()) -> int:
    """Resume a run from its newest complete checkpoint; the result is bit-identical.

    A rollback that was announced but not finished is finished first. On other devices than before the samples are the
    same, and the losses are equal up to rounding. Returns an exit status as `launch.start` does.

    Raises:
        UserError: `config` differs from the run's in a key that is neither in `allow` nor one of `parallel.*` and
            `runtime.*`; the tokenizer or the data changed; or another process works on the run.
        CheckpointError: the run has checkpoints, but none can be read.
    """
    processes.connect(config.parallel)
    with locked(run_dir) if processes.is_main() else nullcontext(), open_console() as console:
        saved = codec.from_json((run_dir / "config.json").read_text(), Config)
        config = absolute(config)
        config = resolved_like(config, saved)
        changed = allowed_changes(saved, config, allow)
        if _complete(run_dir) and not learnt(changed):
            console.event(f"{run_dir} is complete; to train on, add train.updates=N --allow-change train.updates")
            return FINISHED
        run = prepare_run(config, console, kept=run_dir / "tokenizer.json")
        journal = open_journal(run_dir)
        if not journal.records:
            if checkpoint.folders(run_dir / "checkpoints"):
                raise UserError(
                    f"{run_dir} has checkpoints, but no journal: bring journal.jsonl back, or start a new run"
                )
            console.event("the run was stopped before its first update: starting it")
            return begin_run(run, run_dir, console)
        same_inputs(run, journal)
        position = _restored(run, run_dir, journal, console)
        if changed and processes.is_main():
            user_files.save_copies(run.config.extensions, run_dir)
            write_text(run_dir / "config.json", codec.to_json(run.config))
        counters = {"update": position.update, "cursor": position.cursor, "wall_step": journal.wall_step}
        before = fold(journal.records).machine
        journal.write("resume", **counters, changed=changed, **versions(run))
        console.event(f"resuming {run_dir} after update {position.update}")
        past = fold(journal.records)
        if past.machine != before:
            console.event("on other devices or another JAX than before: losses are the same up to rounding")
        recent = past.recent(detector.remembered(run.config.guard), cursor=position.cursor)
        return train_run(run, run_dir, Position(position.state, **counters, recent=recent), journal, console)


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
        state, origin = transfer.begin(run, report=console.event)
        if origin.get("init_sha256") != journal.records[0].get("init_sha256"):
            raise UserError(f"{origin.get('init_from')} has other parameters than when the run began; start a new run")
        return Position(state, update=0, cursor=0, wall_step=0)
    restored, state, problems = checkpoint.load(root, run.abstract_state, digests=past.digests)
    counters = {"update": restored.meta["update"], "cursor": restored.meta["cursor"], "wall_step": journal.wall_step}
    if problems:
        console.event("fell back to an older checkpoint: " + "; ".join(problems))
        journal.write("fallback", **counters, problems=problems)
        rollback.set_aside(root, after=restored.meta["update"])
    return Position(state, **counters)


def _complete(run_dir: Path) -> bool:
    path = run_dir / "summary.json"
    return path.is_file() and json.loads(path.read_text())["status"] == "finished"
