"""Reading records: what is read, on which side of the split it falls, and how a mistake is named."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from lmjax.config import RecordsConfig, UserError
from lmjax.data.sources import rows, streams, tables


def table(path: Path, *records: Any) -> str:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in records))
    return str(path)


def read(**options: Any) -> list[tuple[str, tuple[str, ...], str]]:
    config = RecordsConfig(**options)
    rows.fingerprint(config)
    return [(side, record.texts, str(record.label)) for side, record in rows.records(config)]


def test_columns_and_labels_of_json_lines(tmp_path: Path) -> None:
    first = table(tmp_path / "a.jsonl", {"a": " One ", "b": None, "y": 1}, "", {"a": "Two", "b": "2", "y": "no"})
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b'\xef\xbb\xbf{"a": "T\xc3\xa9n", "b": "X", "y": 1.5, "more": []}\r\n'))
    options = {"texts": ("a", "b"), "label": "y", "lowercase": True, "validation_fraction": 1e-9}
    expected = [("one", ""), ("two", "2"), ("tén", "x")]
    assert [texts for _, texts, _ in read(files=(first, str(packed)), **options)] == expected
    assert [label for *_, label in read(files=(str(tmp_path),), **options)] == ["1", "no", "1.5"]
    assert read(files=(first,), validation_files=(str(packed),), **options)[-1] == ("validation", ("tén", "x"), "1.5")


def test_every_table_gives_the_same_records(tmp_path: Path) -> None:
    content = {"source": ["eins", "zwei, drei"], "target": ["one", 'two "three"'], "more": ["", "x"]}
    arrow = pyarrow.table(content)
    table(tmp_path / "a.jsonl", *arrow.to_pylist())
    (tmp_path / "a.json").write_text(json.dumps(arrow.to_pylist(), indent=1))
    pyarrow.csv.write_csv(arrow, tmp_path / "a.csv")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b'source\ttarget\neins\tone\nzwei, drei\ttwo "three"\n'))
    pyarrow.parquet.write_table(arrow, tmp_path / "a.parquet")
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", arrow.schema) as file:
        file.write_table(arrow)
    expected = [("train", (source, target), "") for source, target in zip(*list(content.values())[:2], strict=True)]
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv.gz", "a.parquet", "a.arrow"):
        assert read(files=(str(tmp_path / name),), validation_fraction=1e-9) == expected, name
    assert read(files=(str(tmp_path),), validation_fraction=1e-9) == expected * 6


def test_lines_of_two_files_belong_together(tmp_path: Path) -> None:
    names = [str(tmp_path / f"train.{language}") for language in ("de", "en")]
    Path(names[0]).write_text("eins\r\nzwei\n\ndrei\n")
    Path(names[1]).write_text("one\ntwo\n\nthree")
    options = {"files": tuple(names), "validation_fraction": 1e-9}
    pairs = [texts for _, texts, _ in read(**options)]
    assert pairs == [("eins", "one"), ("zwei", "two"), ("", ""), ("drei", "three")]
    Path(names[1]).write_text("one\ntwo\n" * 4)
    with pytest.raises(UserError, match=r"train.de' has 4 lines and '.*train.en' has 8"):
        read(**options)


def test_the_split_follows_the_texts_and_the_limit_only_the_training_records(tmp_path: Path) -> None:
    records = [{"source": f"s{i % 500}", "target": f"t{i % 500}", "y": i} for i in range(1000)]
    options = {"files": (table(tmp_path / "a.jsonl", *records),), "label": "y", "validation_fraction": 0.2}
    whole = read(**options)
    sides = {side: {texts for s, texts, _ in whole if s == side} for side in tables.SIDES}
    assert not sides["train"] & sides["validation"]  # although each pair comes twice
    assert 70 < len(sides["validation"]) < 130  # 100 of 500: three standard deviations are 27
    some = read(**options, limit=10)
    assert [row for row in some if row[0] == "train"] == [row for row in whole if row[0] == "train"][:10]
    assert [row for row in some if row[0] == "validation"] == [row for row in whole if row[0] == "validation"]
    assert {side for side, *_ in read(**options | {"validation_files": options["files"]}, limit=3)[:3]} == {"train"}


GOOD = {"source": "a", "target": "b"}


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ("{'source'", {}, r"a.jsonl', line 2 is not JSON: Expecting property name"),
        ([1], {}, "line 2 is not an object with columns but list"),
        ({"sourcce": "a", "target": ""}, {}, r"line 2 has no column 'source' \(data.texts\); did you mean 'sourcce'"),
        (GOOD, {"label": "targe"}, r"no column 'targe' \(data.label\); did you mean 'target'"),
        (dict.fromkeys("abcdefghijklmn"), {}, r"no column 'source' \(data.texts\), but 'a', .*'j', ...; data.on"),
        (GOOD | {"target": 3}, {}, "line 2: the column 'target' is not text but int"),
        ('{"source": "\\ud800", "target": ""}', {}, "line 2: the column 'source' holds half a character"),
        (GOOD | {"source": []}, {"label": "source", "texts": ("target",)}, "neither text nor a number but list"),
        (GOOD | {"source": None}, {"label": "source", "texts": ("target",)}, "neither text nor a number but NoneType"),
        (GOOD, {"texts": ("source",)}, "nothing to predict: set data.label"),
        (GOOD, {"texts": ("a", "b", "c")}, "data.texts names 3 columns"),
        (GOOD, {"limit": -1}, "data.limit = -1 "),
        (GOOD, {"validation_fraction": 0.0}, "validation_fraction = 0.0 must be in"),
        (GOOD, {"files": (), "validation_files": ("x",)}, "data.validation_files need data.files"),
        (GOOD, {"files": ("a.jsonk",)}, "no file or folder 'a.jsonk'; did you mean 'a.jsonl'?"),
        (GOOD, {"files": ("a.de", "a.em")}, "no file or folder 'a.em'; did you mean 'a.de'?"),
        (GOOD, {"files": ("a.de",)}, "'a.de' holds no records: give files that end in .jsonl"),
        (GOOD, {"files": (), "source": "docstrings"}, "docstrings: record 1 has no column 'source'"),
    ],
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.de").write_text("eins\n")
    with pytest.raises(UserError, match=message) as error:
        read(**{"files": (table(tmp_path / "a.jsonl", GOOD, record),)} | options)
    assert "\n" not in str(error.value)


# ---- Labels, encodings, bad records ----------------------------------------------------------------------------------


def test_a_label_keeps_its_value(tmp_path: Path) -> None:
    path = table(tmp_path / "a.jsonl", *({"source": "a", "target": "b", "y": y} for y in (1, 1.0, True, "1")))
    config = RecordsConfig(files=(path,), label="y", validation_fraction=1e-9)
    assert [(record.label, type(record.label)) for _, record in rows.records(config)] == [
        (1, int),
        (1.0, float),
        (True, bool),
        ("1", str),
    ]
    table(tmp_path / "a.jsonl", '{"source": "a", "target": "b", "y": NaN}')
    with pytest.raises(UserError, match=r"line 1: the label 'y' is nan, which is no label"):
        list(rows.records(config))


def test_a_byte_order_mark_inside_a_text_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbffirst\n\xef\xbb\xbfsecond\n")
    pairs = [texts for _, texts, _ in read(files=(f"{tmp_path}/a", f"{tmp_path}/b"), validation_fraction=1e-9)]
    assert pairs == [("first", "first"), ("\ufeffsecond", "\ufeffsecond")]


def test_records_in_another_encoding(tmp_path: Path) -> None:
    for name, text in (("a", "Öl\nÄsche"), ("b", "oil\nash"), ("c.csv", "source,target\nÖl,oil\nÄsche,ash\n")):
        (tmp_path / name).write_bytes(text.encode("utf-16"))
    for names in ((f"{tmp_path}/a", f"{tmp_path}/b"), (f"{tmp_path}/c.csv",)):
        pairs = [texts for _, texts, _ in read(files=names, encoding="utf-16", validation_fraction=1e-9)]
        assert pairs == [("Öl", "oil"), ("Äsche", "ash")]


def test_bad_records_are_left_out_and_counted(tmp_path: Path) -> None:
    good = {"source": "a", "target": "b", "y": 1}
    bad = ["{", {"source": "a"}, [1], good | {"y": None}, good | {"source": 3}, good | {"y": "\ud800"}]
    path = table(tmp_path / "a.jsonl", good, *bad, good)
    config, dropped = RecordsConfig(files=(path,), label="y", on_bad_record="skip"), streams.Dropped()
    assert len(list(rows.records(config, dropped=dropped))) == 2
    assert (dropped.count, dropped.first.split(": ")[0]) == (6, f"'{path}', line 2 is not JSON")
    for record in bad:
        table(tmp_path / "a.jsonl", good, record)
        with pytest.raises(UserError, match=r"line 2.*; data.on_bad_record=skip leaves such records out$"):
            list(rows.records(dataclasses.replace(config, on_bad_record="error")))


def test_a_pair_of_lines_that_is_not_text_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntw\xf6\nthree\n")
    (tmp_path / "b").write_text("eins\nzwei\ndrei\n")
    files, dropped = (f"{tmp_path}/a", f"{tmp_path}/b"), streams.Dropped()
    config = RecordsConfig(files=files, validation_fraction=1e-9)
    with pytest.raises(UserError, match=r"a', line 2 is not UTF-8 text: byte 0xf6 at 2; save it as UTF-8, or, .*=skip"):
        list(rows.records(config))
    config = dataclasses.replace(config, on_bad_record="skip")
    pairs = [record.texts for _, record in rows.records(config, dropped=dropped)]
    assert pairs == [("one", "eins"), ("three", "drei")]
    assert (dropped.count, dropped.first.split(":")[0]) == (1, f"line 2 of '{tmp_path}/a' and '{tmp_path}/b'")


def test_what_a_folder_leaves_out_is_named(tmp_path: Path) -> None:
    table(tmp_path / "a.jsonl", GOOD)
    for name in ("README.md", "data.bin"):
        (tmp_path / name).touch()
    assert rows.notes(RecordsConfig(files=(str(tmp_path),))) == [
        f"left out 1 of files with an unknown ending: {tmp_path}/data.bin",
        f"left out 1 of text files next to tables: {tmp_path}/README.md",
    ]
