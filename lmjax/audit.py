"""What happened to a run, and whether it is in order: all that it did is derived again from configuration and journal.

Nothing in the run directory is changed, so this works on a run that is finished, stopped, given up or damaged.
"""

import ast
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from lmjax import dispatch, launch, parallel, typed
from lmjax import run as runs
from lmjax.config import Config, UserError
from lmjax.console import Console
from lmjax.data import store as stores
from lmjax.data import tokenizer
from lmjax.files import write_text
from lmjax.pytrees import digest
from lmjax.run import Run
from lmjax.train import checkpoint, journal, metrics
from lmjax.train.checkpoint import Checkpoint, CheckpointError
from lmjax.train.history import MEANS, TRANSIENT, History, Record, learnt, machine_of
from lmjax.train.retrace import Findings, Plan, Walk
from lmjax.train.step import fetch

IN_ORDER, WRONG = 0, 1


def show(run_dir: Path, *, replay: tuple[int, int] | None = None, config_file: Path | None = None) -> int:
    """Prints what happened to the run in `run_dir` and what is wrong with it; the exit status: 0 in order, 1 if not.

    replay: the first and the last update (from 1) to compute again and compare with the journal, bit for bit.
    config_file: where to write the configuration of a fresh run that ends with the same bits.
    UserError: no run there, a range that cannot be replayed, a file name that train.py would not read.
    """
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    if config_file is not None and config_file.suffix != ".json":
        raise UserError(f"--config {config_file}: the name of a configuration ends in .json")
    config, findings = typed.from_json((run_dir / "config.json").read_text(), Config), Findings()
    with Console() as console:
        records, chained = _records(run_dir / "journal.jsonl", findings, console)
        sessions = _sessions(run_dir, config, records, findings, console)
        walk = Walk([_plan(run) for run in sessions], findings)
        walk.follow(records)
        known = {problem.partition(":")[0] for record in records for problem in record.get("problems", ())}
        whole, checked = _check_checkpoints(run_dir / "checkpoints", walk if chained else None, findings, known=known)
        if chained:
            _check_metrics(run_dir / "metrics.jsonl", walk.history, findings)
        replay = replay if chained and sessions else None  # that it cannot be done is among the findings
        begin = _begin(walk, whole, replay) if replay else 0
        samples = int(sessions[-1].plan.sequences.sum()) if sessions else 0
        _tell(run_dir, records[: walk.followed], walk.history, sessions, samples, console, whole=chained)
        _tell_fresh(run_dir, config, records, walk.history, config_file, samples, console)
        if replay:
            _replay(sessions[-1], walk.history, whole, begin, replay[1], findings, console)
        wrong = findings.lines()
        for line in wrong:
            console.event(f"WRONG  {line}")
        counts = f"{len(walk.history.path):,} updates, {len(records):,} records, {checked} checkpoints checked"
        console.event(f"{'not in order, as said above' if wrong else 'in order'}: {counts}")
    return WRONG if wrong else IN_ORDER


# ---- What there is --------------------------------------------------------------------------------------------------


def _records(path: Path, findings: Findings, console: Console) -> tuple[list[Record], bool]:
    """The records, and whether their chain is whole: if it is not, those before the break."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no journal: nothing has happened yet")
    content = path.read_bytes()
    try:
        records = journal.read(path)
    except UserError as error:
        findings.add("journal", f"{error}; only what stands before is told")
        broken = int(str(error).removeprefix(f"{path}:").partition(":")[0])
        return [json.loads(line) for line in content.splitlines()[: broken - 1]], False
    if content and not content.endswith(b"\n"):
        console.event("the last line of the journal is torn: a crash while it was written; the next resume drops it")
    return records, True


def _sessions(
    run_dir: Path, config: Config, records: Sequence[Record], findings: Findings, console: Console
) -> list[Run]:
    """The run as each session (from the start, from each resume) had it; empty where that cannot be known."""
    config = replace(config, parallel=parallel.here(config.parallel, microbatch=config.batch.microbatch))
    try:
        store = stores.prepare(config.data, report=console.report)
        sessions = [runs.build(config, store)]
        for record in reversed([record for record in records if record["event"] == "resume"]):
            before = _before(config, record["changed"])
            sessions.append(runs.build(before, store) if before != config else sessions[-1])
            config = before
        beside = tokenizer.load(run_dir / "tokenizer.json").sha256
    except (ValueError, SyntaxError, OSError) as error:  # a UserError is a ValueError
        findings.add("inputs", f"data plan and guard cannot be checked: {error}")
        return []
    began = records[0] if records else {}
    inputs = [*launch.fingerprints(sessions[-1]).items(), ("tokenizer_sha256", beside), ("seed", config.seed)]
    for name, now in inputs if began else []:
        if began.get(name) != now:
            findings.add("inputs", f"{name} was {began.get(name)} when the run began, and is {now}")
    return sessions[::-1]


def _before(config: Config, changed: Sequence[str]) -> Config:
    """The configuration before a resume changed it: undoes what `typed.differences` tells, but not of devices."""
    for line in (line for line in changed if not line.startswith(MEANS)):
        key, _, values = line.partition(": ")
        old = ast.literal_eval(values.partition(" -> ")[0])
        config = typed.apply_overrides(config, [f"{key}={old if isinstance(old, str) else json.dumps(old)}"])
    return config


def _plan(run: Run) -> Plan:
    return Plan(
        guard=run.config.guard,
        every=run.config.checkpoint.every,
        sequences=run.plan.sequences,
        order=lambda left_out: run.order.excluding(left_out).take,
        stretch=partial(runs.stretch_of, run),
        samples=partial(runs.sample_ranges, run),
    )


def _check_checkpoints(
    root: Path, walk: Walk | None, findings: Findings, *, known: set[str]
) -> tuple[dict[int, Checkpoint], int]:
    """The whole checkpoints of the journal's path, by update, and how many were looked at; without a `walk` only their
    own manifests are compared. known: to be damaged, as a resume that fell back told."""
    whole = {}
    aside = sorted(path for path in (root / "quarantine").glob("*") if path.name.partition(".")[0].isdecimal())
    folders = checkpoint.folders(root)
    for folder in [*folders, *aside]:
        update = int(folder.name.partition(".")[0])
        if folder in aside and f"checkpoint {update}" in known:
            continue
        problem = checkpoint.verify(folder)
        if folder in aside and problem == f"it is the checkpoint of update {update} under another name":
            problem = None  # `<update>.1`: set aside when there was one already
        if problem is None and walk is not None:
            meta = checkpoint.read(folder).meta
            saved = (meta["cursor"], meta["digest"])
            if not ((update, *saved) in walk.announced if folder in aside else walk.saved.get(update) == saved):
                problem = "it is not the one that the journal tells of"
            elif folder not in aside:
                whole[update] = Checkpoint(folder, meta)
        if problem is not None:
            findings.add("checkpoint", f"{folder.relative_to(root.parent)}: {problem}")
    newest = max(walk.committed, default=-1) if walk is not None else -1
    if newest > max((int(folder.name) for folder in folders), default=-1):
        findings.add("checkpoint", f"{root.name}/{newest} is missing, the newest that the journal tells of")
    return whole, len(folders) + len(aside)


def _check_metrics(path: Path, history: History, findings: Findings) -> None:
    """The losses in metrics.jsonl must be the journal's. What the journal does not tell yet was lost in a crash."""
    for record in metrics.read(path) if path.is_file() else []:
        update, loss = record["update"], record.get("loss")
        if loss is not None and 0 < update <= len(history.path):
            told = float.fromhex(history.path[update - 1].loss)
            if loss != told:
                findings.add("metrics", f"update {update}: the loss is {loss}, and {told} in the journal")


# ---- In words -------------------------------------------------------------------------------------------------------


def _tell(
    run_dir: Path, records: Sequence[Record], history: History, sessions: Sequence[Run], samples: int,
    console: Console, *, whole: bool,
) -> None:  # fmt: skip
    """What happened, a line each. whole: nothing that these records leave open is told by others."""
    of = f" of {sessions[-1].plan.updates:,}" if sessions else ""
    tried = max((record["wall_step"] for record in records), default=0)
    console.event(f"{run_dir}: {len(history.path):,}{of} updates, {tried:,} batches tried")
    console.event(f"{'batch':>9} {'update':>9}")
    story = list(_story(records, samples))
    for record, text in story:
        console.event(f"{record['wall_step']:>9,} {record['update']:>9,}  {text}")
    broken = next((n for n, applied in enumerate(history.path, 1) if "n" in applied.loss), None)  # nan, inf
    if broken is not None:
        console.event(f"the loss is not finite at update {broken}")
    if whole and history.pending is not None:
        console.event(f"the rollback to update {history.pending['target']} is under way; the next resume finishes it")
    elif whole and (not story or story[-1][0]["event"] not in ("end", "signal")):
        console.event("there the journal ends: the run is at work, or was killed; python train.py --resume goes on")


def _story(records: Sequence[Record], samples: int) -> Iterator[tuple[Record, str]]:
    """What is worth telling, each with the (first) record that it is about; suspects in a row are one."""
    told = [record for record in records if record["event"] == "suspect" or _words(record, {}, samples)]
    for suspects, pairs in groupby(zip([{}, *told], told, strict=False), lambda pair: pair[1]["event"] == "suspect"):
        if suspects:
            group = [record for _, record in pairs]
            yield group[0], _suspects(group)
        else:
            yield from ((record, _words(record, before, samples)) for before, record in pairs)


def _words(record: Record, before: Record, samples: int) -> str:
    """What a record means; empty for what is routine. before: the last one that was not."""
    match record["event"]:
        case "start":
            return f"started with seed {record['seed']}, {_where(record)}"
        case "resume":
            announced = before.get("event") in ("signal", "end", "fallback")
            killed = "" if announced else "; before that the run was killed or crashed"
            changed = f"; changed: {', '.join(record['changed'])}" if record["changed"] else ""
            return f"resumed with {_where(record)}{killed}{changed}"
        case "rollback":
            return _rollback(record)
        case "skip":
            count = _count(record["samples"])
            return f"{count:,} samples are left out ({_share(count, samples)}){_aside(record)}"
        case "boundary" if record["reason"] == TRANSIENT:
            where = f"; the bits first differed at update {record['differs']}" if record["differs"] else ""
            return f"not reproduced: the spike did not come again with the same data, so they stay{where}"
        case "boundary" if record["reason"] == "announced change":
            return f"the batch size or the mixture changes as planned: {record['batch']} sequences"
        case "boundary" if record.get("quarantined"):
            return f"went back{_aside(record)}"
        case "fallback":
            problems = "; ".join(record["problems"])
            return problems if "could not be written" in problems else f"fell back to this checkpoint: {problems}"
        case "signal":
            return f"stopped by {record['name']}, the state saved"
        case "end" if record["status"] == "finished":
            return "finished"
        case "end":
            rule = f"{record['rule']}: " if "rule" in record else ""
            return f"gave up: {rule}{record['why']}"
    return ""


def _where(record: Record) -> str:
    devices = f"{record['devices']} {record['platform']} device{'s' * (record['devices'] != 1)}"
    devices += f" ({record['mesh']})" * (record["devices"] > 1 and "mesh" in record)
    return f"lmjax {record['lmjax']}, jax {record['jax']}, Python {record['python']}, on {devices}"


def _suspects(group: Sequence[Record]) -> str:
    first, last = group[0]["update"] + 1, group[-1]["update"] + 1
    updates = f"update {first}" if first == last else f"updates {first} to {last}"
    losses = [float.fromhex(record["loss"]) for record in group]
    worst = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
    counts = Counter(record["reason"] for record in group)
    reasons = " and ".join(f"{count} x {reason}" if len(counts) > 1 else reason for reason, count in counts.items())
    many = (
        f"a batch for {updates} was suspect and" if len(group) == 1 else f"{len(group)} suspect batches for {updates},"
    )
    return f"{many} not applied (reason: {reasons}; highest loss {worst:.4g})"


def _rollback(record: Record) -> str:
    onset, target = record["onset"]["update"], record["target"]
    text = "reproduced: the spike came again with the same data" if record["reproduced"] else "spike"
    text += (
        f": {record['rule']}, begun at update {onset + 1}; back to update {target}, {onset - target} updates before,"
    )
    if record["kind"] == "replay":
        text += " to replay the same data"
    else:
        text += f" to skip positions {record['positions'][0]:,} to {record['positions'][1]:,}"
    text += f", attempt {record['attempt']}" if record["attempt"] > 1 else ""
    if record["cut"]:
        text += f", with the learning rate x {record['cut'][1]:g}, rising back over {record['cut'][2]} updates"
    return text


def _aside(record: Record) -> str:
    moved = sorted(record["quarantined"])
    return f"; checkpoints {', '.join(map(str, moved))} are in quarantine" if moved else ""


def _count(ranges: Sequence[Sequence[int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def _share(count: int, samples: int) -> str:
    return f"{count / samples:.2%} of the run" if samples else "of a run of unknown length"


def _tell_fresh(
    run_dir: Path,
    config: Config,
    records: Sequence[Record],
    history: History,
    path: Path | None,
    samples: int,
    console: Console,
) -> None:
    """What is left out, and the run that leaves it out from the start, its configuration written to `path`."""
    count = history.skipped()
    cuts = f" and {len(history.cuts)} cuts of the learning rate" if history.cuts else ""
    console.event(f"left out in all: {count:,} samples ({_share(count, samples)}){cuts}")
    if path is not None:
        data = replace(config.data, exclude=(*config.data.exclude, *history.left_out()))
        schedule = replace(config.schedule, cuts=(*config.schedule.cuts, *history.cuts))
        write_text(path, typed.to_json(replace(config, data=data, schedule=schedule)))
    name = path or "FRESH.json"
    console.event(
        f"a fresh run that takes the same way: {'' if path else f'lmjax audit {run_dir} --config {name}; '}"
        f"python train.py {name} --run-dir {run_dir}-fresh"
    )
    if any(learnt(record.get("changed", ())) for record in records):
        console.event("but settings were changed on the way, and a fresh run has the last ones from the start")


# ---- Once more ------------------------------------------------------------------------------------------------------


def _begin(walk: Walk, whole: dict[int, Checkpoint], updates: tuple[int, int]) -> int:
    """The newest checkpoint from which updates first..last (from 1) can be computed again.

    UserError: there is none, or the journal does not reach so far.
    """
    (first, last), reached = updates, len(walk.history.path)
    begins = [update for update in whole if walk.since <= update < reached]
    if not begins:
        raise UserError("--replay: there is no whole checkpoint to begin with")
    if not min(begins) < first <= last <= reached:
        raise UserError(f"--replay {first}:{last}: updates {min(begins) + 1} to {reached} can be replayed")
    return max(update for update in begins if update < first)


def _replay(
    run: Run,
    history: History,
    whole: dict[int, Checkpoint],
    begin: int,
    last: int,
    findings: Findings,
    console: Console,
) -> None:
    """Computes the updates behind checkpoint `begin` again, up to `last`, and compares their bits."""
    here = machine_of(launch.versions(run))
    machines = {applied.machine for applied in history.path[begin:last]}
    exact = machines == {here}
    tolerance = 0.0 if exact else launch.tolerance(run.config)
    if not exact and run.config.model.dropout and "pmap" in {*here, *sum(machines, ())}:
        console.event("not replayed: pmap draws dropout for each device, and the devices of the run are others")
        return
    if not exact:
        console.event(f"this is another machine than the run's, bits may differ: compared to within {tolerance:g}")
    with console.phase("replaying"):
        try:
            met, text = _again(run, history, whole, begin=begin, last=last, tolerance=tolerance)
        except CheckpointError as error:
            met, text = 0, str(error)
    if text:
        findings.add("replay", text)
        return
    suspects = f", {met} suspects met again" if met else ""
    how = "bit for bit" if exact else f"to within {tolerance:g}"
    console.event(f"replayed updates {begin + 1} to {last} from checkpoint {begin}: as in the journal, {how}{suspects}")


def _again(
    run: Run, history: History, whole: dict[int, Checkpoint], *, begin: int, last: int, tolerance: float
) -> tuple[int, str]:
    """How many suspects came again, and the first difference (empty: none)."""
    suspects = {record["cursor"] for record in history.suspects}
    step = dispatch.step(run)
    state = checkpoint.restore(whole[begin], runs.abstract(run))
    update, cursor, met = begin, whole[begin].meta["cursor"], 0
    while update < last:
        with closing(runs.batches(run, update, cursor, history)) as feed:
            for fed in feed:
                state, found = step(state, [fed.batch])
                (values,) = fetch(found, 1)
                cursor = fed.cursor
                suspect = run.config.guard.policy != "off" and values["suspect"]
                if suspect != (cursor in suspects):
                    now, then = ("suspect", "not") if suspect else ("not suspect", "suspect")
                    return met, f"update {update + 1}: the batch up to cursor {cursor} is {now}, it was {then}"
                if suspect:  # the same update with the data that follow
                    met += 1
                    break
                update += 1
                told = history.path[update - 1]
                for name, value in (("loss", told.loss), ("grad_norm", told.grad_norm)):
                    now, then = values[name], float.fromhex(value)
                    if now.hex() != value and not math.isclose(now, then, rel_tol=tolerance):
                        return met, f"update {update}: the {name} is {now}, in the journal {then}"
                if cursor != told.cursor:
                    return met, f"update {update}: its batch ends at cursor {cursor}, in the journal {told.cursor}"
                if not tolerance and update in whole and digest(state) != whole[update].meta["digest"]:
                    return met, f"update {update}: the state is not that of its checkpoint"
                if update == last:
                    break
    return met, ""
