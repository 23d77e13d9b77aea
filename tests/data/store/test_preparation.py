"""What a store's manifest says about data that was not read: bad records, and files that a folder leaves out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import DataConfig, RecordsConfig, SourceConfig, TokenizerConfig, UserError
from lmjax.data.store import facts, preparation
from lmjax.data.store.store import Store

GOOD = [json.dumps({"text": f"text {i}", "label": i % 3}) for i in range(40)]


def text_store(folder: Path, **options: Any) -> Store:
    return preparation.prepare(
        DataConfig(
            files=(str(folder / "d"),),
            tokenizer=TokenizerConfig("bytes"),
            validation_fraction=0.3,
            cache=str(folder / "cache"),
            **options,
        )
    )


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bad_records_and_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d/a.jsonl", GOOD)
    clean = text_store(tmp_path)
    assert not {"dropped", "left_out", "empty"} & clean.manifest["sources"][0].keys()
    assert not {"dropped_records", "skipped_records"} & facts.store_facts(clean).keys()
    write(path, [*GOOD[:20], "{", '{"text": 7}', *GOOD[20:]])
    (tmp_path / "d/notes.bin").touch()
    with pytest.raises(UserError, match=r"line 21 is not JSON.*; data.on_bad_record=skip leaves such records out$"):
        text_store(tmp_path)
    store = text_store(tmp_path, on_bad_record="skip")
    source = store.manifest["sources"][0]
    assert (source["documents"], source["dropped"]) == (40, 2)
    assert source["first_dropped"].startswith(f"'{path}', line 21 is not JSON")
    assert source["left_out"] == [f"left out 1 of files with an unknown ending: {tmp_path}/d/notes.bin"]
    assert [tokens.sha256 for tokens in store.streams.values()] == [t.sha256 for t in clean.streams.values()]
    assert facts.store_facts(store)["dropped_records"] == 2
    assert facts.notes(store)[:2] == [
        f"WARNING: {source['name']}: left out 2 bad records, first {source['first_dropped']}",
        f"{source['name']}: {source['left_out'][0]}",
    ]


def test_rows_without_text_are_counted_and_no_documents(tmp_path: Path) -> None:
    write(tmp_path / "d/a.jsonl", [*GOOD, '{"text": ""}', '{"text": null}', "", *GOOD[:1]])
    write(tmp_path / "d/b.csv", ["text,x", ",1", "row,2"])
    store = text_store(tmp_path)
    (source,) = store.manifest["sources"]
    assert (source["documents"], source["empty"]) == (42, 3)
    assert facts.notes(store) == [f"{source['name']}: left out 3 rows whose text is empty or null"]
    assert facts.store_facts(store)["skipped_records"] == 3
    assert "dropped_records" not in facts.store_facts(store)


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "wordpiece"])
def test_data_of_bad_records_alone_are_refused_with_their_number(tmp_path: Path, kind: Any) -> None:
    path = write(tmp_path / "d/a.jsonl", ["{", '{"text": 7}', '{"body": "x"}'])
    tokenizer, cache = TokenizerConfig(kind, 300), str(tmp_path / "cache")
    skipped = rf"\(left out 3 bad records, first '{path}', line 1 is not JSON: .*\); add"
    for message, config in (
        ("the corpus is empty", DataConfig(files=(str(path),), cache=cache)),
        ("it has no record", RecordsConfig(files=(str(path),), texts=("text",), label="text", cache=cache)),
    ):
        with pytest.raises(UserError, match=rf"{message} {skipped}"):
            preparation.prepare(dataclasses.replace(config, tokenizer=tokenizer, on_bad_record="skip"))


def test_each_source_of_a_mixture_has_its_own_count(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.jsonl", ["{"] * number + GOOD) for number in range(3)]
    store = preparation.prepare(
        DataConfig(
            mixture=tuple(SourceConfig(files=(str(path),)) for path in paths),
            tokenizer=TokenizerConfig("bytes"),
            validation_fraction=0.3,
            on_bad_record="skip",
            cache=str(tmp_path / "cache"),
        )
    )
    assert [source.get("dropped", 0) for source in store.manifest["sources"]] == [0, 1, 2]


def test_bad_records_with_labels_are_counted_and_equal_labels_are_one(tmp_path: Path) -> None:
    mixed = [line.replace('"label": 1}', '"label": 1.0}') for line in GOOD]
    path = write(tmp_path / "a.jsonl", [*mixed[:9], "[]", *GOOD[9:]])
    config = RecordsConfig(
        files=(str(path),),
        texts=("text",),
        label="label",
        tokenizer=TokenizerConfig("bytes"),
        validation_fraction=0.3,
        on_bad_record="skip",
        cache=str(tmp_path / "cache"),
    )
    store = preparation.prepare(config)
    assert store.manifest["labels"] == ["0", "1", "2"]
    assert store.manifest["sources"][0]["dropped"] == 1
    write(path, [*GOOD, json.dumps({"text": "x", "label": "1"})])
    with pytest.raises(UserError, match=r"the labels mix the number 0 \(.*line 1\) and the text '1' \(.*line 41\)"):
        preparation.prepare(config)
