"""Audit of a run: its history and its deviations from configuration and journal.

Everything that the run did is derived again from the configuration and the journal. Nothing in the run directory
changes, so an audit works on a run that is finished, stopped, given up or damaged.
"""

import ast
import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lmjax.config import Config, UserError, codec, presets
from lmjax.config.errors import one_line
from lmjax.data import tokenizer
from lmjax.data.store.preparation import prepare_to_read
from lmjax.diagnose.retrace import Findings, Plan, Walk
from lmjax.diagnose.story import describe_share, tell_story
from lmjax.display.console import Console
from lmjax.display.format import quantity
from lmjax.journal import journal
from lmjax.journal.history import MEANS, OTHER_REWARDS, Applied, History, Record, learnt, machine_of
from lmjax.parallel import mesh
from lmjax.pytrees import digest
from lmjax.run import build, config_hash, identity, reference_file, steps
from lmjax.run.build import Run
from lmjax.run.feed import device_batches, regime_of, sample_ranges
from lmjax.system.files import write_text
from lmjax.training import checkpoint, metrics
from lmjax.training.checkpoint import Checkpoint, CheckpointError
from lmjax.training.loop_state import sampled
from lmjax.training.step import fetch

IN_ORDER, WRONG = 0, 1


def show(
    run_dir: Path,
    *,
    replay: tuple[int, int] | None = None,
    config_file: Path | None = None,
    changes: Sequence[str] = (),
) -> int:
    """Print the history of the run in `run_dir` and everything that is wrong with it.

    Args:
        run_dir: The directory of the run.
        replay: The first and the last update (from 1) to recompute and compare with the journal, bit for bit.
        config_file: Where to write the configuration of a fresh run that ends with the same bits.
        changes: Changes of `runtime.*`, `parallel.*` and `data.cache`, which are those of the machine here.

    Returns:
        The exit status: 0 if the run is in order, 1 if not.

    Raises:
        UserError: There is no run, the range cannot be replayed, or train.py cannot read the file name.
    """
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    if config_file is not None and config_file.suffix != ".json":
        raise UserError(f"--config {config_file}: the name of a configuration ends in .json")
    findings = Findings()
    with Console() as console:
        config = presets.read(run_dir / "config.json", changes, report=console.event)
        try:
            config_hash.check(run_dir)
        except UserError as error:
            findings.add("inputs", str(error))
        records, chained = _records(run_dir / "journal.jsonl", findings, console)
        sessions = _sessions(run_dir, config, records, findings, console)
        walk = Walk([_plan(run) for run in sessions], findings)
        walk.follow(records)
        known = {problem.partition(":")[0] for record in records for problem in record.get("problems", ())}
        intact, checked = _check_checkpoints(run_dir / "checkpoints", walk if chained else None, findings, known=known)
        if chained:
            _check_metrics(run_dir / "metrics.jsonl", walk.history, findings)
        replay = replay if chained and sessions else None  # the findings already say why it is impossible
        begin = _begin(walk, intact, replay) if replay else 0
        samples = int(sessions[-1].plan.sequences.sum()) if sessions else 0
        _tell(run_dir, records[: walk.followed], walk.history, sessions, samples, console, complete=chained)
        saved = presets.saved(run_dir / "config.json")
        _tell_fresh(run_dir, saved, records, walk.history, config_file, samples, console)
        if replay:
            _replay(sessions[-1], walk.history, intact, begin, replay[1], findings, console)
        problems = findings.lines()
        for line in problems:
            console.event(f"WRONG  {line}")
        counts = f"{len(walk.history.path):,} updates, {len(records):,} records, {checked} checkpoints checked"
        console.event(f"{'not in order, see above' if problems else 'in order'}: {counts}")
    return WRONG if problems else IN_ORDER


# ---- Inputs --------------------------------------------------------------------------------------------------


def _records(path: Path, findings: Findings, console: Console) -> tuple[list[Record], bool]:
    """Return the records and whether their chain is intact.

    If the chain is broken, only the records before the break.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no journal: the run has not started yet")
    content = journal.scan(path, ordered=False)  # the walk finds what does not fit together
    if content.problem:
        findings.add("journal", f"{content.problem}; the audit covers only the records before it")
        return content.records, False
    if content.torn:
        console.event("the last line of the journal is incomplete (a crash during the write); the next resume drops it")
    return content.records, True


def _sessions(
    run_dir: Path, config: Config, records: Sequence[Record], findings: Findings, console: Console
) -> list[Run]:
    """Rebuild the run of each session (the start and each resume); empty if impossible."""
    config = replace(config, parallel=mesh.here(config.parallel, microbatch=config.batch.microbatch))
    try:
        recorded = records[0].get("data_sha256", "") if records else ""
        store = prepare_to_read(config.data, recorded, report=console.report)
        size = quantity(sum(entry["bytes"] for entry in store.manifest["files"].values()), "B")
        console.event(f"data: all {size} of the prepared tokens match their hashes; the text itself is not read")
        sessions = [build.build(config, store)]
        if records:
            sessions = [reference_file.recorded(sessions[0], run_dir, records[0], console, write=False)]
        for record in reversed([record for record in records if record["event"] == "resume"]):
            before = _before(config, record["changed"])
            sessions.append(build.build(before, store) if before != config else sessions[-1])
            config = before
        known = identity.fingerprints(sessions[-1])
        tokenizer_sha256 = tokenizer.load_tokenizer(run_dir / "tokenizer.json").sha256
    except (ValueError, SyntaxError, TypeError, OSError, RecursionError, MemoryError, CheckpointError) as error:
        findings.add("inputs", f"data plan and guard cannot be checked: {one_line(error)}")
        return []
    start = records[0] if records else {}
    inputs = [
        *known.items(),
        ("tokenizer_sha256", tokenizer_sha256),
        ("seed", config.seed),
    ]
    for name, now in inputs if start else []:
        if start.get(name) != now:
            findings.add("inputs", f"{name} was {start.get(name)} when the run began, and is {now}")
    return sessions[::-1]


def _before(config: Config, changed: Sequence[str]) -> Config:
    """Undo the changes of a resume (as of `codec.differences`), except those of devices."""
    for line in (line for line in changed if not line.startswith(MEANS)):
        key, _, values = line.partition(": ")
        old = ast.literal_eval(values.partition(" -> ")[0])
        override = f"{key}={old if isinstance(old, str) else json.dumps(old)}"
        config = codec.apply_overrides(config, [override], load=False)
    return config


def _plan(run: Run) -> Plan:
    return Plan(
        guard=run.config.guard,
        every=run.config.checkpoint.every,
        sequences=run.plan.sequences,
        order=lambda left_out: run.order.excluding(left_out).take,
        regime=partial(regime_of, run),
        samples=partial(sample_ranges, run),
        two_sided=run.objective.episodic,
    )


def _check_checkpoints(
    root: Path, walk: Walk | None, findings: Findings, *, known: set[str]
) -> tuple[dict[int, Checkpoint], int]:
    """Check the checkpoints against the journal.

    Without a `walk`, each checkpoint is only compared with its own manifest. `known` names checkpoints that an earlier
    resume reported as damaged.

    Returns:
        The intact checkpoints of the journal's path by update, and the number of checkpoints checked.
    """
    intact = {}
    quarantined = checkpoint.quarantined(root)
    folders = checkpoint.folders(root)
    for folder in [*folders, *quarantined]:
        update = int(folder.name.partition(".")[0])
        if folder in quarantined and f"checkpoint {update}" in known:
            continue
        problem = checkpoint.verify(folder)
        if folder in quarantined and problem == f"it is the checkpoint of update {update} under another name":
            problem = None  # `<update>.1`: the second checkpoint of this update in quarantine
        if problem is None and walk is not None:
            meta = checkpoint.read(folder).meta
            saved = (meta["cursor"], meta["digest"])
            if not ((update, *saved) in walk.announced if folder in quarantined else walk.saved.get(update) == saved):
                problem = "it differs from the checkpoint in the journal"
            elif folder not in quarantined:
                intact[update] = Checkpoint(folder, meta)
        if problem is not None:
            findings.add("checkpoint", f"{folder.relative_to(root.parent)}: {problem}")
    newest = max(walk.committed, default=-1) if walk is not None else -1
    if newest > max((int(folder.name) for folder in folders), default=-1):
        findings.add("checkpoint", f"{root.name}/{newest}, the newest checkpoint in the journal, is missing")
    return intact, len(folders) + len(quarantined)


def _check_metrics(path: Path, history: History, findings: Findings) -> None:
    """Compare losses, rewards and KL divergences in metrics.jsonl with the journal's.

    Losses that are not in the journal are ignored: a crash loses them.
    """
    for record in metrics.read(path) if path.is_file() else []:
        update, loss = record["update"], record.get("loss")
        if loss is None or not 0 < update <= len(history.path):
            continue
        applied = history.path[update - 1]
        journaled = float.fromhex(applied.loss)
        if loss != journaled:
            findings.add("metrics", f"update {update}: the loss is {loss}, and {journaled} in the journal")
        for name in ("reward", "kl") if applied.sampled is not None else ():
            now, then = record.get(name), getattr(applied.sampled, name)
            if now is not None and not (isinstance(now, float) and now.hex() == then):
                findings.add("metrics", f"update {update}: the {name} is {now}, and {then} in the journal")


# ---- History -------------------------------------------------------------------------------------------------------


def _tell(
    run_dir: Path, records: Sequence[Record], history: History, sessions: Sequence[Run], samples: int,
    console: Console, *, complete: bool,
) -> None:  # fmt: skip
    """Print the events of the run, one per line.

    `complete`: the records reach to the end of the run.
    """
    planned = f" of {sessions[-1].plan.updates:,}" if sessions else ""
    tried = max((record["wall_step"] for record in records), default=0)
    console.event(f"{run_dir}: {len(history.path):,}{planned} updates, {tried:,} batches tried")
    console.event(f"{'batch':>9} {'update':>9}")
    story = list(tell_story(records, samples))
    for record, text in story:
        console.event(f"{record['wall_step']:>9,} {record['update']:>9,}  {text}")
    broken = next((n for n, applied in enumerate(history.path, 1) if "n" in applied.loss), None)  # nan, inf
    if broken is not None:
        console.event(f"the loss is not finite at update {broken}")
    if complete and history.pending is not None:
        console.event(f"the rollback to update {history.pending['target']} is unfinished; the next resume finishes it")
    elif complete and (not story or story[-1][0]["event"] not in ("end", "signal")):
        console.event("the journal ends here: the run is active or was killed; python train.py --resume resumes it")


def _tell_fresh(
    run_dir: Path,
    config: Config,
    records: Sequence[Record],
    history: History,
    path: Path | None,
    samples: int,
    console: Console,
) -> None:
    """Print what the run left out, and how a fresh run leaves it out from the start.

    With `path`, write the configuration of that fresh run.
    """
    count = history.skipped()
    cuts = f" and {len(history.cuts)} cuts of the learning rate" if history.cuts else ""
    console.event(f"left out in all: {count:,} samples ({describe_share(count, samples)}){cuts}")
    if path is not None:
        data = replace(config.data, exclude=(*config.data.exclude, *history.left_out()))
        schedule = replace(config.schedule, cuts=(*config.schedule.cuts, *history.cuts))
        write_text(path, codec.to_json(replace(config, data=data, schedule=schedule)))
    name = path or "FRESH.json"
    console.event(
        f"a fresh run with the same updates: {'' if path else f'lmjax audit {run_dir} --config {name}; '}"
        f"python train.py {name} --run-dir {run_dir}-fresh"
    )
    if any(learnt(record.get("changed", ())) for record in records):
        console.event("but settings changed during the run, and a fresh run has the last settings from the start")


# ---- Replay ------------------------------------------------------------------------------------------------------


def _begin(walk: Walk, intact: dict[int, Checkpoint], updates: tuple[int, int]) -> int:
    """Return the newest checkpoint from which the updates can be recomputed.

    `updates` is the first and the last of them, from 1.

    Raises:
        UserError: There is no such checkpoint, or the journal ends before the last update.
    """
    (first, last), reached = updates, len(walk.history.path)
    begins = [update for update in intact if walk.since <= update < reached]
    if not begins:
        raise UserError("--replay: there is no intact checkpoint to replay from")
    if not min(begins) < first <= last <= reached:
        raise UserError(f"--replay {first}:{last}: updates {min(begins) + 1} to {reached} can be replayed")
    return max(update for update in begins if update < first)


def _replay(
    run: Run,
    history: History,
    intact: dict[int, Checkpoint],
    begin: int,
    last: int,
    findings: Findings,
    console: Console,
) -> None:
    """Recompute updates `begin` + 1 to `last`, and compare them with the journal."""
    here = machine_of(identity.versions(run))
    machines = {applied.machine for applied in history.path[begin:last]}
    exact = machines == {here}
    tolerance = 0.0 if exact else identity.tolerance(run.config)
    if not exact and run.config.model.dropout and "pmap" in {*here, *sum(machines, ())}:
        console.event("not replayed: pmap draws dropout per device, and the run had other devices")
        return
    if not exact:
        console.event(f"the run had another machine, so bits may differ: compared to within {tolerance:g}")
    with console.phase("replaying"):
        try:
            suspects_seen, text = _again(run, history, intact, begin=begin, last=last, tolerance=tolerance)
        except CheckpointError as error:
            suspects_seen, text = 0, str(error)
    if text:
        findings.add("replay", text)
        return
    suspects = f", {suspects_seen} suspects met again" if suspects_seen else ""
    how = "bit for bit" if exact else f"to within {tolerance:g}"
    console.event(f"replayed updates {begin + 1} to {last} from checkpoint {begin}: as in the journal, {how}{suspects}")


def _difference(values: dict[str, Any], applied: Applied, *, cursor: int, tolerance: float) -> str:
    """Compare the metrics of a recomputed update with the journal; empty if they agree."""
    answers, before = sampled(values), applied.sampled
    if not tolerance and answers and before and answers.tokens == before.tokens and answers.reward != before.reward:
        now, then = float.fromhex(answers.reward), float.fromhex(before.reward)
        return f"{OTHER_REWARDS}; their mean is {now}, in the journal {then}"
    for name, value in (("loss", applied.loss), ("grad_norm", applied.grad_norm)):
        now, then = values[name], float.fromhex(value)
        if now.hex() != value and not math.isclose(now, then, rel_tol=tolerance):
            return f"the {name} is {now}, in the journal {then}"
    if not tolerance and answers != before:
        return "its answers, their rewards or their KL divergence are not those in the journal"
    if cursor != applied.cursor:
        return f"its batch ends at cursor {cursor}, in the journal {applied.cursor}"
    return ""


def _again(
    run: Run, history: History, intact: dict[int, Checkpoint], *, begin: int, last: int, tolerance: float
) -> tuple[int, str]:
    """Recompute updates `begin` + 1 to `last`.

    Returns:
        The number of suspects that occurred again, and the first difference (empty if there is none).
    """
    suspects = {record["cursor"] for record in history.suspects}
    step = steps.step_function(run, intact[begin].folder.parent)
    state = checkpoint.restore(intact[begin], run.abstract_state)
    update, cursor, suspects_seen = begin, intact[begin].meta["cursor"], 0
    while update < last:
        with closing(device_batches(run, update, cursor, history)) as feed:
            for fed in feed:
                state, step_metrics = step(state, [fed.batch])
                (values,) = fetch(step_metrics, 1)
                cursor = fed.cursor
                suspect = run.config.guard.policy != "off" and values["suspect"]
                if suspect != (cursor in suspects):
                    now, then = ("suspect", "not") if suspect else ("not suspect", "suspect")
                    return (
                        suspects_seen,
                        f"update {update + 1}: the batch up to cursor {cursor} is {now}, it was {then}",
                    )
                if suspect:  # the same update takes the next batch
                    suspects_seen += 1
                    break
                update += 1
                applied = history.path[update - 1]
                if difference := _difference(values, applied, cursor=cursor, tolerance=tolerance):
                    return suspects_seen, f"update {update}: {difference}"
                if not tolerance and update in intact and digest(state) != intact[update].meta["digest"]:
                    return suspects_seen, f"update {update}: the state is not that of its checkpoint"
                if update == last:
                    break
    return suspects_seen, ""
