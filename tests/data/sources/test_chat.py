"""Conversations: which are read, on which side of the split, and what is counted."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lmjax.config import ChatConfig, UserError
from lmjax.data.sources import chat, reviews
from lmjax.data.sources.chat import Conversation, Reason
from lmjax.data.sources.streams import Dropped


def table(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def pair(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def read(**options: Any) -> list[tuple[str, Conversation]]:
    config = ChatConfig(**options)
    chat.fingerprint(config)
    return list(chat.conversations(config))


def answers(**options: Any) -> list[str]:
    return [conversation.turns[-1].text for _, conversation in read(**options)]


def test_every_table_gives_the_same_conversations(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"é{i}"}]} for i in (1, 2)]
    table(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.jsonl.gz", "a.parquet"):
        assert answers(files=(str(tmp_path / name),), validation_fraction=1e-9) == ["é1", "é2"], name
    assert answers(files=(str(tmp_path),), validation_fraction=1e-9) == ["é1", "é2"] * 4


def test_equal_prompts_are_on_one_side(tmp_path: Path) -> None:
    rows = [pair(f"q{i % 50}", f"a{i}") for i in range(400)]
    sides: dict[str, set[str]] = {"train": set(), "validation": set()}
    for side, conversation in read(files=(table(tmp_path / "a.jsonl", *rows),), validation_fraction=0.3):
        sides[side].add(conversation.turns[0].text)
    assert len(sides["train"]) + len(sides["validation"]) == 50
    assert 5 < len(sides["validation"]) < 30
    assert not sides["train"] & sides["validation"]


def test_a_limit_and_validation_files(tmp_path: Path) -> None:
    files = (table(tmp_path / "a.jsonl", *(pair(f"q{i}", f"a{i}") for i in range(9))),)
    held = (table(tmp_path / "b.jsonl", pair("q", "held")),)
    result = read(files=files, validation_files=held, limit=3)
    assert [(side, item.turns[1].text) for side, item in result] == [
        *(("train", f"a{i}") for i in range(3)),
        ("validation", "held"),
    ]
    [line] = chat.repeated(ChatConfig(files=files, validation_files=files))
    assert "data.files and in data.validation_files" in line
    with pytest.raises(UserError, match=r"data\.validation_files need data\.files"):
        chat.fingerprint(ChatConfig(validation_files=held))


MANY = {"messages": [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]}


@pytest.mark.parametrize(
    ("targets", "learned"),
    [("assistant", [0, 1, 0, 1]), ("last", [0, 0, 0, 1]), ("all", [1, 1, 1, 1])],
)
def test_the_turns_that_are_learned(tmp_path: Path, targets: str, learned: list[int]) -> None:
    [(_, item)] = read(files=(table(tmp_path / "a.jsonl", MANY),), targets=targets, validation_fraction=1e-9)
    assert [turn.learn for turn in item.turns] == learned


def test_rows_without_an_answer_are_refused_or_counted(tmp_path: Path) -> None:
    unanswered = {"messages": [{"role": "user", "content": "Anyone?"}]}
    empty = [pair("", ""), pair("q", " \n"), {"messages": []}]
    files = (table(tmp_path / "a.jsonl", pair("q", "a"), unanswered, *empty, "{bad", {"prompt": 3, "completion": ""}),)
    with pytest.raises(UserError, match=r"a.jsonl.*no answer of the assistant.*turns are of: user"):
        read(files=files)
    dropped, left_out = Dropped(), Counter[Reason]()
    config = ChatConfig(files=files, on_bad_record="skip", validation_fraction=1e-9)
    assert len(list(chat.conversations(config, dropped=dropped, left_out=left_out))) == 1
    assert (left_out, dropped.count) == ({"no_target": 1, "empty": 3}, 2)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"data.files: .*a.txt' holds no conversations"):
        read(files=(str(tmp_path / "a.txt"),))
    with pytest.raises(UserError, match="https"):
        read(files=("https://example.org/a.jsonl",))


def test_the_fingerprint_follows_what_changes_the_conversations(tmp_path: Path) -> None:
    files = (table(tmp_path / "a.jsonl", pair("q", "a")),)
    base = ChatConfig(files=files)
    changes: list[dict[str, Any]] = [
        {"targets": "last"}, {"format": "messages"}, {"limit": 1}, {"validation_fraction": 0.1},
        {"on_bad_record": "skip"}, {"encoding": "latin-1"}, {"files": ()}, {"validation_files": files},
    ]  # fmt: skip
    prints = [chat.fingerprint(ChatConfig(**{"files": files, **change})) for change in [{}, *changes]]
    assert len({json.dumps(value) for value in prints}) == len(prints)
    for same in ({"packed": True}, {"buckets": 2}, {"shuffle": False}, {"too_long": "cut"}):
        assert chat.fingerprint(ChatConfig(**{"files": files, **same})) == chat.fingerprint(base)


def test_reviews_are_conversations_of_their_own() -> None:
    found = read(source="reviews")
    expected = [(row["prompt"], row["completion"]) for row, _ in reviews.conversations()]
    assert [tuple(turn.text for turn in conversation.turns) for _, conversation in found] == expected
    assert {side for side, _ in found} == {"train", "validation"}


def test_every_own_source_has_rows_and_a_fingerprint_of_its_own() -> None:
    names = ("reviews", "numbers_and_dates", "sorting")
    prints = [json.dumps(chat.fingerprint(ChatConfig(source=name))["chat"]) for name in names]
    assert len(set(prints)) == 3
    (_, first), *_ = read(source="sorting", limit=3)
    assert re.fullmatch(r"Sort \d{7}\.", first.turns[0].text)
