"""Plain-text history of a run, from its journal."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from lmjax.journal.history import TRANSIENT, Record


def tell_story(records: Sequence[Record], samples: int) -> Iterator[tuple[Record, str]]:
    """Yield the notable events: the (first) record and its text.

    Consecutive suspects are one event.
    """
    notable = [record for record in records if record["event"] == "suspect" or _words(record, {}, samples)]
    pairs_of_records = zip([{}, *notable], notable, strict=False)
    for suspects, pairs in groupby(pairs_of_records, lambda pair: pair[1]["event"] == "suspect"):
        if suspects:
            group = [record for _, record in pairs]
            yield group[0], _suspects(group)
        else:
            yield from ((record, _words(record, before, samples)) for before, record in pairs)


def _words(record: Record, before: Record, samples: int) -> str:
    """Describe a record; empty for a routine record. `before` is the previous notable record."""
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
            return f"{count:,} samples are left out ({describe_share(count, samples)}){_aside(record)}"
        case "boundary" if record["reason"] == TRANSIENT:
            where = f"; the bits first differed at update {record['differs']}" if record["differs"] else ""
            return f"not reproduced: the spike did not recur with the same data, so the data stay{where}"
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
    if record["devices"] > 1 and "mesh" in record:
        devices += f" ({record['mesh']})"
    return f"lmjax {record['lmjax']}, jax {record['jax']}, Python {record['python']}, on {devices}"


def _suspects(group: Sequence[Record]) -> str:
    first, last = group[0]["update"] + 1, group[-1]["update"] + 1
    updates = f"update {first}" if first == last else f"updates {first} to {last}"
    losses = [float.fromhex(record["loss"]) for record in group]
    worst = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
    counts = Counter(record["reason"] for record in group)
    reasons = " and ".join(f"{count} x {reason}" if len(counts) > 1 else reason for reason, count in counts.items())
    subject = (
        f"a batch for {updates} was suspect and" if len(group) == 1 else f"{len(group)} suspect batches for {updates},"
    )
    return f"{subject} not applied (reason: {reasons}; highest loss {worst:.4g})"


def _rollback(record: Record) -> str:
    onset, target = record["onset"]["update"], record["target"]
    text = "reproduced: the spike recurred with the same data" if record["reproduced"] else "spike"
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


def describe_share(count: int, samples: int) -> str:
    """Describe `count` samples as a share of the run."""
    return f"{count / samples:.2%} of the run" if samples else "of a run of unknown length"
