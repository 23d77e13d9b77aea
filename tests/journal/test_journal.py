"""The journal survives a torn tail and notices any other change."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.errors import RunError
from lmjax.journal import journal
from lmjax.journal.journal import Journal
from lmjax.system import faults
from tests.journal.records import DIGEST, START


def written(path: Path, count: int = 3) -> Journal:
    """A journal of a start and, from update 1 on, progress."""
    book = Journal(path)
    for n in range(count):
        if n:
            note(book, n, 1)
            book.write("boundary", wall_step=n, update=n, cursor=8 * n, reason="progress")
        else:
            book.write("start", wall_step=0, update=0, cursor=0, **START)
    return book


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path)
    assert journal.read(path) == book.records == Journal(path).records
    assert [record["update"] for record in book.records] == [0, 1, 2]
    assert book.wall_step == 2
    assert set(book.records[0]) == {"wall_step", "update", "cursor", "event", "previous", *START}


def test_an_empty_journal_begins_the_chain(tmp_path: Path) -> None:
    assert written(tmp_path / "a", 1).records[0]["previous"] == "0" * 64


@given(st.integers(min_value=1, max_value=200))
def test_a_torn_tail_is_dropped_and_writing_goes_on(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    written(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[: -min(cut, len(lines[-1]))])
    book = Journal(path)
    assert [record["update"] for record in book.records] == [0, 1]
    book.write("signal", wall_step=9, update=1, cursor=8, name="SIGTERM")
    assert [record["event"] for record in journal.read(path)] == ["start", "boundary", "signal"]


@pytest.mark.parametrize("line", [0, 1])
def test_an_edited_record_breaks_the_chain(tmp_path: Path, line: int) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    lines = path.read_text().splitlines()
    record = json.loads(lines[line])
    record["cursor"] += 1
    lines[line] = json.dumps(record, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f":{line + 2}: the hash chain is broken"):
        Journal(path)


def test_a_removed_record_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(UserError, match="chain"):
        journal.read(path)


def test_reading_no_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no journal"):
        journal.read(tmp_path / "journal.jsonl")


# ---- Applied updates ------------------------------------------------------------------------------------------------


def note(book: Journal, first: int, count: int) -> None:
    for update in range(first, first + count):
        book.note(update=update, cursor=8 * update, loss=2 / update, grad_norm=update / 3)


def test_the_next_record_tells_of_the_applied_updates(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path, 1)
    note(book, 1, 3)
    book.write("boundary", wall_step=3, update=3, cursor=24, reason="progress")
    book.write("boundary", wall_step=3, update=3, cursor=24, reason="progress")
    note(book, 4, 1)
    book.write("end", wall_step=4, update=4, cursor=32, status="finished", digest=DIGEST)
    for records in (book.records, Journal(path).records):
        assert ["applied" in record for record in records] == [False, True, False, True]
        applied = records[1]["applied"]
        assert (applied["first"], applied["cursors"]) == (1, [8, 16, 24])
        assert [float.fromhex(loss) for loss in applied["losses"]] == [2.0, 1.0, 2 / 3]  # every bit
        assert [float.fromhex(norm) for norm in applied["grad_norms"]] == [1 / 3, 2 / 3, 1.0]
        assert records[3]["applied"]["cursors"] == [32]


def test_noted_updates_must_follow_each_other(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    note(book, 1, 2)
    with pytest.raises(AssertionError):
        note(book, 4, 1)


def test_losses_that_are_no_numbers_are_told_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path, 1)
    book.note(update=1, cursor=8, loss=float("nan"), grad_norm=float("inf"))
    book.write("boundary", wall_step=1, update=1, cursor=8, reason="progress")
    applied = Journal(path).records[1]["applied"]
    assert (applied["losses"], applied["grad_norms"]) == (["nan"], ["inf"])


def test_what_waits_too_long_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    book = written(tmp_path / "journal.jsonl", 1)
    now[0] += 2 * journal.PATIENCE
    assert not book.behind()  # nothing waits
    note(book, 1, 1)
    assert book.behind()
    book.write("boundary", wall_step=1, update=1, cursor=8, reason="progress")
    assert not book.behind()
    note(book, 2, 1)
    assert not book.behind()


# ---- Writes that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["full", "error"])
def test_a_write_that_fails_leaves_the_file_as_before_and_the_next_goes_on(tmp_path: Path, action: str) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path)
    before, records = path.read_bytes(), book.records
    note(book, 3, 2)
    with faults.armed(f"journal.torn={action}@1"), pytest.raises(RunError, match=f"cannot write {path}: .*resume"):
        book.write("boundary", wall_step=4, update=4, cursor=32, reason="progress")
    assert path.read_bytes() == before
    assert book.records == records
    book.write("boundary", wall_step=5, update=4, cursor=32, reason="progress")  # what was applied is not lost
    read = journal.read(path)
    assert read == book.records
    assert read[-1]["applied"]["cursors"] == [24, 32]
    assert [record["wall_step"] for record in read] == [0, 1, 2, 5]


def test_a_record_that_is_on_the_disk_counts_whatever_happens_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path)
    with faults.armed("journal.written=error@1"), pytest.raises(OSError, match=r"."):
        book.write("end", wall_step=9, update=2, cursor=16, status="finished", digest=DIGEST)
    assert journal.read(path) == book.records
    assert book.records[-1]["event"] == "end"
