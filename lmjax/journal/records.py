"""The records of a journal: the fields of each event, and the order of the records.

A journal is read from a directory that a user can edit, or that comes from elsewhere. What these checks accept can be
folded to a history, resumed and audited.
"""

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from lmjax.journal.history import ROLLED_BACK, SAVING, TRANSIENT, History, Record

EVENTS = ("start", "resume", "checkpoint", "suspect", "rollback", "skip", "boundary", "signal", "fallback", "end")
LARGEST = 10**15  # of any counter or position; a run has fewer

_HEX = re.compile(r"-?0x[01](\.[0-9a-f]{1,13})?p[+-][0-9]{1,4}|nan|-?inf")
_DIGEST = re.compile(r"[0-9a-f]{1,128}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds
_MISSING = object()

Check = Callable[[Any], bool]


# ---- Values ---------------------------------------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**128


def _flag(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str) and not _CONTROL.search(value)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _hex(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _share(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value) and 0 <= value <= LARGEST


def _range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value)) and value[0] <= value[1]


def _cut(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and _count(value[0]) and _share(value[1]) and _count(value[2])


def _place(value: Any) -> bool:
    return isinstance(value, dict) and _count(value.get("update")) and _count(value.get("cursor"))


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _optional(check: Check) -> Check:
    return lambda value: value is _MISSING or check(value)


def _one_of(*values: str) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _applied(value: Any) -> bool:
    columns = {"cursors": _count, "losses": _hex, "grad_norms": _hex}
    sampled = {"rewards": _hex, "kls": _hex, "tokens": _digest}
    if not isinstance(value, dict) or not _count(value.get("first")):
        return False
    if any(name in value for name in sampled):
        columns |= sampled
    if not all(_list(check)(value.get(name)) for name, check in columns.items()):
        return False
    return len(value["cursors"]) > 0 and len({len(value[name]) for name in columns}) == 1


# ---- Fields ---------------------------------------------------------------------------------------------------------

_ALL: Mapping[str, Check] = {
    "wall_step": _count,
    "update": _count,
    "cursor": _count,
    "applied": _optional(_applied),
}
_MACHINE: Mapping[str, Check] = {
    "lmjax": _text,
    "python": _text,
    "jax": _text,
    "devices": _count,
    "platform": _text,
    "processes": _optional(_count),
    "mesh": _optional(_text),
    "form": _optional(_text),
    "xla_flags": _optional(_text),
    "updates_at_once": _optional(_count),
}
_FIELDS: Mapping[str, Mapping[str, Check]] = {
    "start": {
        "seed": _integer,
        "tokenizer_sha256": _text,
        "data_sha256": _text,
        "init_from": _optional(_text),
        "init_sha256": _optional(_text),
        "reference_sha256": _optional(_text),
        "reward_sha256": _optional(_digest),
        **_MACHINE,
    },
    "resume": {"changed": _list(_text), **_MACHINE},
    "checkpoint": {"digest": _digest},
    "suspect": {
        "reason": _text,
        "hard": _flag,
        "batch": _count,
        "samples": _list(_range),
        **dict.fromkeys(("loss", "grad_norm", "param_norm", "z_loss", "z_grad_norm"), _hex),
    },
    "rollback": {
        "rule": _text,
        "kind": _one_of("replay", "skip"),
        "onset": _place,
        "trigger": _place,
        "target": _count,
        "target_cursor": _count,
        "attempt": _count,
        "level": _count,
        "reproduced": _flag,
        "positions": _or_none(_range),
        "cut": _or_none(_cut),
    },
    "skip": {"positions": _range, "samples": _list(_range), "quarantined": _list(_count)},
    "boundary": {"reason": _text},
    "signal": {"name": _text},
    "fallback": {"problems": _list(_text)},
    "end": {"status": _one_of("finished", "gave up")},
}
_BOUNDARY: Mapping[str, Mapping[str, Check]] = {
    SAVING: {"digest": _digest},
    TRANSIENT: {"differs": _or_none(_count)},
    ROLLED_BACK: {"quarantined": _list(_count)},
    "announced change": {"batch": _count},
}
_END: Mapping[str, Mapping[str, Check]] = {
    "finished": {"digest": _digest},
    "gave up": {"why": _text, "rule": _optional(_text), "target": _optional(_count)},
}


def check_fields(record: Any) -> str:
    """Return what is wrong with the fields of a record; empty if nothing is."""
    if not isinstance(record, dict):
        return "the record is not an object"
    event = record.get("event")
    if not isinstance(event, str) or event not in EVENTS:
        return f"the event is {_shown(event)}, not one of {', '.join(EVENTS)}"
    fields = {**_ALL, **_FIELDS[event]}
    problem = _first_wrong(record, fields)
    if not problem and event == "boundary":
        problem = _first_wrong(record, _BOUNDARY.get(record["reason"], {}))
    if not problem and event == "end":
        problem = _first_wrong(record, _END[record["status"]])
    if not problem and event == "rollback" and (record["kind"] == "skip") != (record["positions"] is not None):
        problem = f"positions is {_shown(record['positions'])} for a {record['kind']}"
    return problem and f"{event}: {problem}"


def _first_wrong(record: Record, fields: Mapping[str, Check]) -> str:
    for name, check in fields.items():
        value = record.get(name, _MISSING)
        if not check(value):
            return f"{name} is missing" if value is _MISSING else f"{name} is {_shown(value)}"
    return ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."


# ---- Order ----------------------------------------------------------------------------------------------------------

_GOES_BACK = ("resume", "fallback", "checkpoint")  # their update may be one of an earlier checkpoint


def check_order(history: History, record: Record) -> str:
    """Return why a record with right fields cannot follow this history; empty if it can."""
    event, update, length = record["event"], record["update"], len(history.path)
    if (event == "start") != (history.machine == ()):
        return "start: it is not the first record" if event == "start" else f"{event}: the first record is not a start"
    problem = _check_applied(history, record)
    if problem:
        return f"{event}: {problem}"
    cursors = record["applied"]["cursors"] if "applied" in record else []
    length += len(cursors)
    if update > length or (update < length and event not in _GOES_BACK):
        return f"{event}: update is {update}, but {length} updates are applied"
    if event == "rollback":
        return _check_rollback(history, record)
    if event == "skip" and (history.pending is None or history.pending["positions"] != record["positions"]):
        return f"skip: no rollback announced positions {record['positions'][0]} to {record['positions'][1]}"
    if event in ("resume", "fallback") and update < length and not _is_saved(history, update, record["cursor"]):
        return f"{event}: it goes back to update {update}, cursor {record['cursor']}, which has no checkpoint"
    return ""


def _check_applied(history: History, record: Record) -> str:
    if "applied" not in record:
        return ""
    first, before = record["applied"]["first"], history.cursor(len(history.path))
    if first != len(history.path) + 1:
        return f"applied begins with update {first}, but {len(history.path)} updates are applied"
    for cursor in record["applied"]["cursors"]:
        if cursor <= before:
            return f"applied has cursor {cursor} after cursor {before}"
        before = cursor
    return ""


def _check_rollback(history: History, record: Record) -> str:
    target, cursor = record["target"], record["target_cursor"]
    if history.pending is not None:
        return f"rollback: the one to update {history.pending['target']} is not finished"
    if target > record["update"] or not _is_saved(history, target, cursor):
        return f"rollback: the target is update {target}, cursor {cursor}, which has no checkpoint"
    return ""


def _is_saved(history: History, update: int, cursor: int) -> bool:
    """Whether a checkpoint of this update and cursor was begun on the path."""
    saved = history.announced.get(update)
    return (update, cursor) == (0, 0) or (saved is not None and saved.cursor == cursor)
