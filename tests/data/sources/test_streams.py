"""Every kind of source gives its text exactly, and each mistake is one clear line."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lmjax.config import DataConfig, SourceConfig, UserError
from lmjax.data.sources import streams
from tests.data.sources.reading import TEXTS, lines_of, read


def test_tables_give_their_column_exactly(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines_of(TEXTS) + b"\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(TEXTS)))
    (tmp_path / "lines.json").write_bytes(lines_of(TEXTS))
    (tmp_path / "array.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": TEXTS, "id": range(5)}), tmp_path / "a.parquet", row_group_size=2
    )
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(TEXTS)])
    table = pyarrow.table({"text": TEXTS, "id": range(5)})
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    for name in ("a.jsonl", "a.jsonl.gz", "lines.json", "array.json", "a.parquet", "a.csv", "a.arrow"):
        assert read(tmp_path / name) == TEXTS, name
    (tmp_path / "object.json").write_text(json.dumps({"text": "one"}, indent=1))
    assert read(tmp_path / "object.json") == ["one"]
    (tmp_path / "empty.jsonl").write_bytes(lines_of(["", "x"]) + b'{"text": null}\n')
    assert read(tmp_path / "empty.jsonl") == ["x"]
    (tmp_path / "a.tsv").write_text('text\tlabel\nSay "a"\t1\n\t2\n')
    assert read(tmp_path / "a.tsv") == ['Say "a"']
    (tmp_path / "named.jsonl").write_bytes(lines_of(TEXTS, "content"))
    assert read(tmp_path / "named.jsonl", text_field="content") == TEXTS


def test_plain_text_by_paragraph_line_and_file(tmp_path: Path) -> None:
    content = "One\r\ntwo\r\n\r\n\r\n  three\r\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt") == ["One\ntwo", "  three"]
    assert read(tmp_path / "a.txt", document="line") == ["One", "two", "  three"]
    assert read(tmp_path / "a.txt", document="file") == [content]


def test_folders_and_globs_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.txt.gz", ".hidden/d.txt", "notes.pdf", "10.txt", "9.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(name.encode()) if name.endswith(".gz") else name.encode())
    assert read(tmp_path) == ["10.txt", "9.txt", "a.md", "b.txt", "sub/c.txt.gz"]
    assert read(tmp_path / "*.txt") == ["10.txt", "9.txt", "b.txt"]
    assert read(tmp_path / "**/*.txt*") == ["10.txt", "9.txt", "b.txt", "sub/c.txt.gz"]
    data = DataConfig(files=(str(tmp_path / "b.txt"), str(tmp_path / "a.md")))
    assert [text for text, _ in streams.documents(streams.sources(data)[0], data)] == ["b.txt", "a.md"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("here")
    assert read(tmp_path / "a[1].txt") == ["here"]


MISTAKES = {
    "inptu.txt": (None, "no file or folder '.*inptu.txt'; did you mean '.*input.txt'?"),
    "no*.txt": (None, "no file matches"),
    "a.pdf": (b"x", "'.*a.pdf': cannot tell what this file is; its name must end in .txt"),
    "a.parquet.gz": (b"x", "cannot tell"),
    "bad.txt": ("é".encode() * 3 + b"\xe9x", "'.*bad.txt' is not UTF-8 text: byte 0xe9 at offset 6; .* data.encoding$"),
    "bad.jsonl": (lines_of(["a", "b"]) + b'{"text": "c\n', "'.*bad.jsonl', line 3 is not JSON"),
    "list.jsonl": (b'{"text": "a"}\n["b"]\n', "list.jsonl', line 2 is not an object with fields but list"),
    "array.json": (b'[{"text": "a"},\n oops]', "'.*array.json' is not JSON: .*line 2"),
    "chat.jsonl": (
        b'{"messages": []}\n',
        "only 'messages'; conversations are data of `train.py sft`; leave the file out",
    ),
    "field.jsonl": (
        b'\n{"body": "a", "id": 1}\n',
        "field.jsonl', line 2 has no field 'text', only 'body', 'id'; set data.text_field",
    ),
    "nohead.csv": (b"a long text " * 9 + b"\nanother text\n", "has no field 'text', only 'a long .{1,40} ...; set"),
    "wide.csv": (b",".join(b"%d" % i for i in range(99)) + b"\n" + b"," * 98, "only '0', .*, '9', ...; set data"),
    "number.jsonl": (b'{"text": 7}\n', "the field 'text' is not text but int"),
    "half.jsonl": (b'{"text": "a\\ud800"}\n', "holds half a character .* at 1"),
    "deep.jsonl": (b"[" * 100_000, "line 1 has more than 100 levels"),
    "a.txt.gz": (b"plain", "cannot unpack '.*a.txt.gz'"),
    "a.txt.zst": (b"plain text", "cannot unpack '.*a.txt.zst'"),
    "a.parquet": (b"plain text", "cannot read '.*a.parquet' as parquet"),
    "a.arrow": (b"plain text", "cannot read '.*a.arrow' as arrow"),
    "cells.csv": (b"text,id\na,1\nb\n", "'.*cells.csv', line 3 has 1 cells, the header has 2 columns"),
    "field.csv": (b"body,id\na,1\n", "line 2 has no field 'text', only 'body', 'id'; set data.text_field"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "input.txt").touch()
    content, message = MISTAKES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_without_text_and_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file that ends in"):
        read(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no field 'text', only 'body'"):
        read(tmp_path / "a.parquet")


def test_an_error_in_a_mixed_folder_names_the_other_files_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "c.csv").write_text("body,id\na,1\n")
    (tmp_path / "d.jsonl").write_text('{"text": "good"}\n')
    (tmp_path / "e.jsonl").write_text("no json\n")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert "b.jsonl', line 1 has no field 'text', only 'messages'" in str(error.value)
    assert "the first row of these files has no text either: c.csv, e.jsonl; data.on_bad_record=skip" in str(
        error.value
    )


def hub(name: str, **options: Any) -> list[str]:
    data = DataConfig(source=f"hub:{name}", **options)
    return [text for text, _ in streams.documents(streams.sources(data)[0], data)]


def test_a_hub_dataset_streams_through_its_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub: `load_dataset` takes both by the same name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_bytes(lines_of(TEXTS))
    load, folder = datasets.load_dataset, str(tmp_path / "set")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **options: load(folder, *args, **options))
    assert hub("owner/name") == TEXTS
    with pytest.raises(UserError, match="has no field 'body'"):
        hub("owner/name", text_field="body")
    with pytest.raises(UserError, match="cannot read the hub dataset"):
        hub("owner/name:nosubset")


def test_a_hub_dataset_is_asked_for_by_name_and_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*args: Any, **options: Any) -> dict[str, list[dict[str, str]]]:
        asked.append((*args, options))
        return {"test": [{"text": "x"}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="cannot read the hub dataset 'owner/name': it has no split 'train', only test"):
        hub("owner/name:subset")
    assert asked == [("owner/name", "subset", {"streaming": True})]


def test_a_connection_lost_on_the_way_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "first"}
        raise ConnectionError("the network is gone\nand more")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: {"train": rows()})
    with pytest.raises(
        UserError, match=r"cannot read the hub dataset 'owner/name': the network is gone and more; for text of your own"
    ):
        hub("owner/name")


@pytest.mark.parametrize("document", ["file", "line", "paragraph"])
def test_a_large_file_is_never_held_whole(tmp_path: Path, document: str) -> None:
    """24 MB, one paragraph and every other line of a megabyte, streams in less than half of that."""
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(24):
            file.write("word " * 200_000 + "\nshort\n")
    data = DataConfig(files=(str(tmp_path / "a.txt"),), document=document)
    pieces = streams.documents(streams.sources(data)[0], data)
    next(pieces)  # imports
    tracemalloc.start()
    total = sum(len(piece) for piece, _ in pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 22e6
    assert peak < 12e6


def test_a_source_may_name_its_own_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(["a"]))
    (tmp_path / "b.jsonl").write_bytes(lines_of(["b"], "body"))
    parts = (
        SourceConfig(files=(f"{tmp_path}/a.jsonl",)),
        SourceConfig(files=(f"{tmp_path}/b.jsonl",), text_field="body"),
    )
    data = DataConfig(mixture=parts)
    assert [[text for text, _ in streams.documents(part, data)] for part in parts] == [["a"], ["b"]]
    assert [streams.fingerprint(part, data)["text_field"] for part in parts] == ["text", "body"]


def test_new_settings_are_part_of_an_identity_only_where_they_are_set(tmp_path: Path) -> None:
    """A store that an earlier version prepared keeps its name."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["a"]))
    stamp = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    data = DataConfig(files=(str(path),))
    old = {"files": [stamp], "document": "paragraph", "text_field": "text"}
    assert streams.fingerprint(streams.sources(data)[0], data) == old
    for name in ("UTF8", "utf-8"):
        data = DataConfig(files=(str(path),), encoding=name)
        assert streams.fingerprint(streams.sources(data)[0], data) == old
    data = DataConfig(files=(str(path),), encoding="L1", on_bad_record="skip")
    expected = old | {"encoding": "iso8859-1", "on_bad_record": "skip"}
    assert streams.fingerprint(streams.sources(data)[0], data) == expected


def test_an_unknown_source_names_the_choices() -> None:
    data = DataConfig(source="docstring")
    with pytest.raises(UserError, match="did you mean 'docstrings'"):
        streams.fingerprint(streams.sources(data)[0], data)


def test_the_fingerprint_changes_with_the_input(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def fingerprint(**options: Any) -> str:
        data = DataConfig(files=(str(tmp_path),), **options)
        return json.dumps(streams.fingerprint(streams.sources(data)[0], data))

    path.write_text("one")
    first = fingerprint()
    assert fingerprint() == first != fingerprint(document="line")
    path.write_text("two!")
    assert fingerprint() != first
    (tmp_path / "b.txt").write_text("new")
    assert "b.txt" in fingerprint()


def test_texts_take_turns_between_sources(tmp_path: Path) -> None:
    """So that a tokenizer trained on the first part of the text has seen every source."""
    (tmp_path / "a.txt").write_text("a\n" * 50)
    (tmp_path / "b.txt").write_text("bbbbb\n" * 50)
    names = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    data = DataConfig(mixture=tuple(SourceConfig(files=(name,)) for name in names), document="line")
    given = list(streams.texts(data))
    assert sorted(given) == ["a"] * 50 + ["bbbbb"] * 50
    start = "".join(given[:48])
    assert abs(start.count("a") - start.count("b")) <= 5


def test_the_stream_is_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    data = DataConfig(files=(str(tmp_path / "a.txt"),))
    stream = streams.dataset(streams.sources(data)[0], data)
    kept = stream.filter(lambda row: "o" in row["text"]).map(lambda row: {"length": len(row["text"])})
    assert [row["length"] for row in kept] == [3, 3]


@pytest.mark.slow
def test_the_users_hugging_face_cache_stays_clean(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    code = (
        "import sys; from lmjax.config import DataConfig, SourceConfig; from lmjax.data.sources import streams\n"
        "print(len(list(streams.documents(SourceConfig(files=(sys.argv[1],)), DataConfig()))))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={
            "HF_HOME": f"{tmp_path}/a.txt/home",
            "HOME": f"{tmp_path}/a.txt/home",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "6\n", run.stderr
