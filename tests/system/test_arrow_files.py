"""Parquet and Arrow files: the rows of pyarrow, and one line for what is damaged or ambiguous."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lmjax.config import UserError
from lmjax.system import arrow_files

TABLE = pyarrow.table({"text": ["a", "", "Zwölf\r\n"], "n": [1, 2, 3]})


def write(path: Path, table: pyarrow.Table) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
        with new(path, table.schema) as file:
            file.write_table(table)
    return path


def rows(path: Path, *columns: str) -> list[dict[str, Any]]:
    return [row for _, row in arrow_files.rows(path, columns)]


NAMES = ["a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_alone_decides_the_types(tmp_path: Path, name: str) -> None:
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "FeatureOfTheFuture"}}}}
    for metadata in ({"huggingface": json.dumps(features)}, {"huggingface": "{"}, {"pandas": "no JSON"}):
        table = TABLE.replace_schema_metadata(metadata)
        assert rows(write(tmp_path / name, table), "text") == [{"text": text} for text in TABLE["text"].to_pylist()]


@pytest.mark.parametrize("name", NAMES)
def test_every_type_of_text_is_text(tmp_path: Path, name: str) -> None:
    texts = TABLE["text"].combine_chunks()
    kinds = (pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    for kind in kinds if name != "a.parquet" else kinds[::2]:
        column = texts.dictionary_encode() if pyarrow.types.is_dictionary(kind) else texts.cast(kind)
        assert rows(write(tmp_path / name, pyarrow.table({"text": column}))) == rows(
            write(tmp_path / name, TABLE), "text"
        )


@pytest.mark.parametrize("name", NAMES)
def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path, name: str) -> None:
    column = TABLE["text"]
    write(tmp_path / name, pyarrow.Table.from_arrays([column, column, column], names=["text", "x", "x"]))
    assert rows(tmp_path / name, "text") == [{"text": text} for text in column.to_pylist()]
    for columns in (("x",), ()):
        with pytest.raises(UserError, match=f"'.*{name}' has the column 'x' twice; give every column its own name"):
            rows(tmp_path / name, *columns)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_columns_and_files_have_no_other_meaning(tmp_path: Path, name: str) -> None:
    table = pyarrow.table({"a": [{"b": 1}], "a.b": ["x"]})
    assert rows(write(tmp_path / name, table), "a.b") == [{"a.b": "x"}]
    assert rows(tmp_path / name, "a") == [{"a": {"b": 1}}]
    odd = tmp_path / os.fsdecode(b"caf\xe9 [1]" + os.fsencode(Path(name).suffix))
    (tmp_path / name).rename(odd)
    assert rows(odd, "a.b") == [{"a.b": "x"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_python_does_not_have_is_one_line(tmp_path: Path, name: str) -> None:
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))  # the year 148,000
    write(tmp_path / name, pyarrow.table({"text": ["a"], "when": far}))
    assert rows(tmp_path / name, "text") == [{"text": "a"}]
    with pytest.raises(UserError, match=f"cannot read '.*{name}' as (parquet|arrow): "):
        rows(tmp_path / name)
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    write(tmp_path / name, pyarrow.table({"text": bad}))  # no UTF-8
    with pytest.raises(UserError, match=f"cannot read '.*{name}' as (parquet|arrow): "):
        rows(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_few_bytes_do_not_become_many(tmp_path: Path, name: str) -> None:
    """A dictionary of one value of 1 MB, 100 times."""
    size, count = 1 << 20, 100
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), ["x" * size])
    path = write(tmp_path / name, pyarrow.table({"text": column}))
    tracemalloc.start()
    total = sum(len(row["text"]) for _, row in arrow_files.rows(path, (), memory=4 * size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size * count
    assert peak < 16 * size
    with pytest.raises(
        UserError, match=f"{name}' has a part of [0-9]+ bytes, more than the limit of 1000; write smaller"
    ):
        next(arrow_files.rows(path, (), memory=1000))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_value_that_many_rows_refer_to_does_not_multiply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    value, rows = "a" * (1 << 20), 60
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([value]))
    path = write(tmp_path / f"a.{kind}", pyarrow.table({"text": column, "n": range(rows)}))
    monkeypatch.setattr(arrow_files, "AT_ONCE", 4 << 20)
    tracemalloc.start()
    try:
        read = [(row["text"] == value, row["n"]) for _, row in arrow_files.rows(path, ("text", "n"))]
        assert tracemalloc.get_traced_memory()[1] < 3 * arrow_files.AT_ONCE  # two groups of rows, and what they need
    finally:
        tracemalloc.stop()
    assert read == [(True, number) for number in range(rows)]


def test_values_do_not_depend_on_how_a_parquet_file_encodes_them(tmp_path: Path) -> None:
    words = ["some", "", None, "é", "more"]
    texts = [words[i % 5] if i < 2500 else f"number {i}" for i in range(5000)]
    nested = [None if i % 7 == 0 else [texts[i], None] for i in range(5000)]
    table, path = pyarrow.table({"text": texts, "nested": nested, "flag": [i % 3 == 0 for i in range(5000)]}), tmp_path
    encodings: tuple[dict[str, Any], ...] = ({"dictionary_pagesize_limit": 1000}, {"use_dictionary": False}, {})
    for number, options in enumerate(encodings):
        pyarrow.parquet.write_table(table, path / f"{number}.parquet", row_group_size=2000, **options)
        for columns in ((), ("text",), ("nested", "flag")):
            read = [row for _, row in arrow_files.rows(path / f"{number}.parquet", columns)]
            assert read == table.select(columns or table.column_names).to_pylist()
