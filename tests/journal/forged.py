"""Journals of real runs, edited at random, with the chain of hashes computed again."""

import copy
import hashlib
import json
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests import ROOT

Record = dict[str, Any]
HOSTILE: list[Any] = [
    -1, 0, 1, 7, 10**9, 10**12, 10**15 + 1, 2**63, 10**400, 1.5, 1e308, True, None, "", "../../..", "nan", "0x1p+0",
    "0x1.8p+1", "a: 1 -> 2", "a: " + "[" * 1000, "\x1b[2J", [], [[]], [0, 10**12], [5, 1], [[0, 10**12]], [1, 2, 3], {},
    {"update": 3, "cursor": 24}, "saving", "rolled back", "skip", "finished", "gave up",
]  # fmt: skip


@cache
def journals() -> tuple[tuple[Record, ...], ...]:
    """The records of two recorded runs, which have every event but `resume` and `fallback`."""
    result = []
    for name in ("finished", "interrupted"):
        with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / f"{name}.tar.xz") as archive:
            member = next(item for item in archive.getmembers() if item.name.endswith("journal.jsonl"))
            content = archive.extractfile(member)
            assert content is not None
            result.append(tuple(json.loads(line) for line in content))
    start, *_, last = result[1]
    machine = {key: value for key, value in start.items() if key in ("lmjax", "python", "jax", "devices", "platform")}
    counters = {"wall_step": 36, "update": 30, "cursor": 192}
    resume = {**counters, "event": "resume", "changed": ["train.updates: 30 -> 40"], **machine}
    failed = {**counters, "event": "fallback", "problems": ["checkpoint 32 could not be written"]}
    assert last["event"] == "checkpoint"
    result[1] = (*result[1], resume, failed)
    return tuple(result)


def write(path: Path, records: list[Record]) -> None:
    """Write a journal with a chain that is intact."""
    lines, previous = [], "0" * 64
    for record in records:
        fields = {key: value for key, value in record.items() if key != "previous"}
        lines.append(json.dumps({**fields, "previous": previous}).encode() + b"\n")
        previous = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(lines))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a record."""
    items: list[Any] = []
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if key != "previous"]
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def _set(record: Record, place: tuple[Any, ...], value: Any, *, delete: bool) -> None:
    target: Any = record
    for key in place[:-1]:
        target = target[key]
    if delete:
        del target[place[-1]]
    else:
        target[place[-1]] = value


@st.composite
def edited(draw: st.DrawFn, base: Sequence[Record] = ()) -> list[Record]:
    """The records of a run (default: of one of the recorded runs) after one to three edits."""
    records = copy.deepcopy(list(base or draw(st.sampled_from(journals()))))
    for _ in range(draw(st.integers(1, 3))):
        if not records:
            break
        at = draw(st.integers(0, len(records) - 1))
        match draw(st.sampled_from(("field", "field", "field", "delete", "repeat", "swap", "cut", "move"))):
            case "field":
                place = draw(st.sampled_from(_places(records[at])[1:]))
                delete = draw(st.booleans()) and draw(st.booleans())
                _set(records[at], place, copy.deepcopy(draw(st.sampled_from(HOSTILE))), delete=delete)
            case "delete":
                del records[at]
            case "repeat":
                records.insert(at, copy.deepcopy(records[at]))
            case "swap":
                other = draw(st.integers(0, len(records) - 1))
                records[at], records[other] = records[other], records[at]
            case "cut":
                del records[at:]
            case "move":
                records.insert(draw(st.integers(0, len(records) - 1)), records.pop(at))
    return records
