"""A journal that was edited with a new chain is refused with its place, or can be folded and continued."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from lmjax.config import UserError
from lmjax.config.errors import RunError
from lmjax.journal import journal
from lmjax.journal.history import Sampled, fold
from lmjax.journal.journal import Journal
from tests.journal import forged
from tests.journal.forged import Record, edited, journals
from tests.journal.records import DIGEST, MACHINE, START


@pytest.mark.parametrize("run", [0, 1])
def test_the_journals_of_recorded_runs_are_accepted(tmp_path: Path, run: int) -> None:
    path = tmp_path / "journal.jsonl"
    forged.write(path, list(journals()[run]))
    assert [record["event"] for record in journal.read(path)] == [record["event"] for record in journals()[run]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edited())
def test_an_edited_journal_is_refused_with_its_line_or_can_be_continued(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    forged.write(path, records)
    if problem := journal.scan(path).problem:
        assert problem.startswith(f"{path}:")
        assert "\n" not in problem
        assert len(problem) < len(str(path)) + 500
        with pytest.raises(UserError):
            Journal(path)
        return
    past = fold(journal.read(path))
    past.left_out()
    assert past.skipped() >= 0
    past.recent(64, cursor=10**9)
    for update, saved in list(past.announced.items())[-2:] if past.pending is None else []:
        assert past.cursor(update) <= saved.cursor
        book = Journal(path)
        counters = {"wall_step": book.wall_step, "update": update, "cursor": saved.cursor}
        book.write("resume", **counters, changed=[], **MACHINE)
        book.note(update=update + 1, cursor=saved.cursor + 8, loss=1.0, grad_norm=1.0)
        counters = {"wall_step": book.wall_step, "update": update + 1, "cursor": saved.cursor + 8}
        book.write("boundary", **counters, reason="progress")
        assert journal.read(path) == book.records
        forged.write(path, records)


def change(event: str, /, **fields: Any) -> list[Record]:
    """The records of the first run with other fields in the last record of an event."""
    records = copy.deepcopy(list(journals()[0]))
    next(record for record in reversed(records) if record["event"] == event).update(fields)
    return records


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (change("end", update=10**9), r":30: end: update is 1000000000, but 32 updates are applied"),
        (change("end", update=-1), r":30: end: update is -1"),
        (change("end", status="done"), ":30: end: status is 'done'"),
        (change("start", seed="0"), ":1: start: seed is '0'"),
        (change("start", event="begin"), ":1: the event is 'begin', not one of start,"),
        (change("rollback", target="../../.."), r": rollback: target is '../../..'"),
        (change("rollback", target=7), r": rollback: the target is update 7, cursor 64, which has no checkpoint"),
        (change("rollback", target_cursor=65), "which has no checkpoint"),
        (change("rollback", positions=None), "positions is None for a skip"),
        (change("rollback", positions=[0, 10**16]), "positions is a list"),
        (change("skip", positions=[0, 10**12]), "no rollback announced positions 0 to 1000000000000"),
        (change("skip", samples=[[3, 1]]), "samples is a list"),
        (change("suspect", loss="much"), "suspect: loss is 'much'"),
        (change("suspect", cursor=True), "suspect: cursor is True"),
        (change("start", data_sha256="\x1b[31m"), "data_sha256 is "),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, records: list[Record], problem: str) -> None:
    path = tmp_path / "journal.jsonl"
    forged.write(path, records)
    with pytest.raises(UserError) as caught:
        journal.read(path)
    assert problem in str(caught.value)
    assert str(caught.value).endswith(": the journal was edited")


def test_a_hostile_line_costs_little(tmp_path: Path) -> None:
    """Brackets, digits and numbers without end are refused as a broken chain, in the memory of their size."""
    path = tmp_path / "journal.jsonl"
    for line in ("[" * 10**6, "9" * 10**6, '{"wall_step":' + "1" * 5000 + "}", "{}", "\xff", '{"a": 1e999}', "NaN"):
        path.write_bytes(line.encode("latin-1") + b"\n")
        tracemalloc.start()
        with pytest.raises(UserError, match=":1: the hash chain is broken"):
            journal.read(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()


def test_a_journal_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*journal.jsonl: Is a directory"):
        Journal(tmp_path / "journal.jsonl")


def test_other_spacing_in_the_last_line_does_not_break_the_chain(tmp_path: Path) -> None:
    """The chain continues from the bytes of the line, not from what they mean."""
    path = tmp_path / "journal.jsonl"
    record = {"wall_step": 0, "update": 0, "cursor": 0, "event": "start", **START, "previous": "0" * 64}
    path.write_text(json.dumps(record, indent=None, separators=(", ", ":  ")) + "\n")
    Journal(path).write("signal", wall_step=0, update=0, cursor=0, name="SIGTERM")
    assert len(journal.read(path)) == 2


def test_a_record_that_would_contradict_the_journal_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = Journal(path)
    book.write("start", wall_step=0, update=0, cursor=0, **START)
    before = path.read_bytes()
    with pytest.raises(RunError, match=f"{path}: the next record would contradict the journal .*is 5, but 0 updates"):
        book.write("signal", wall_step=5, update=5, cursor=40, name="SIGTERM")
    assert path.read_bytes() == before


SAMPLED = Sampled("0x1.0p-1", "0x1.0p+1", DIGEST)


def test_what_was_sampled_is_in_the_history(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = Journal(path)
    book.write("start", wall_step=0, update=0, cursor=0, **START)
    for update in (1, 2):
        book.note(update=update, cursor=8 * update, loss=-0.5, grad_norm=1.0, sampled=SAMPLED)
    book.write("boundary", wall_step=2, update=2, cursor=16, reason="progress")
    assert [applied.sampled for applied in fold(journal.read(path)).path] == [SAMPLED, SAMPLED]


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", None), ("tokens", [DIGEST, DIGEST]), ("tokens", ["text"]), ("rewards", ["1.0"]), ("kls", [1.0])],
)
def test_columns_of_what_was_sampled_are_checked(tmp_path: Path, name: str, value: Any) -> None:
    columns: dict[str, Any] = {"rewards": ["0x1.0p-1"], "kls": ["0x0.0p+0"], "tokens": [DIGEST]}
    columns = {key: values for key, values in (columns | {name: value}).items() if values is not None}
    applied = {"first": 1, "cursors": [8], "losses": ["0x1.0p+0"], "grad_norms": ["0x1.0p+0"], **columns}
    counters = {"wall_step": 1, "update": 1, "cursor": 8}
    start = {"wall_step": 0, "update": 0, "cursor": 0, "event": "start", **START}
    forged.write(
        tmp_path / "journal.jsonl", [start, {**counters, "event": "boundary", "reason": "progress", "applied": applied}]
    )
    with pytest.raises(UserError, match=r":2: boundary: applied is a dict"):
        journal.read(tmp_path / "journal.jsonl")
