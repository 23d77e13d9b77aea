"""The journal survives a torn tail and notices any other change."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.train import journal
from lmjax.train.journal import Journal


def written(path: Path, count: int = 3) -> Journal:
    book = Journal(path)
    for n in range(count):
        book.write("checkpoint", wall_step=n, update=n, cursor=8 * n, digest=f"d{n}")
    return book


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = written(path)
    assert journal.read(path) == book.records == Journal(path).records
    assert [record["update"] for record in book.records] == [0, 1, 2]
    assert book.wall_step == 2
    assert set(book.records[0]) == {"wall_step", "update", "cursor", "event", "digest", "previous"}


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
    book.write("end", wall_step=9, update=2, cursor=16)
    assert [record["event"] for record in journal.read(path)] == ["checkpoint", "checkpoint", "end"]


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
