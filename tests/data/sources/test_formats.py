"""Encodings, saved datasets and bad records: read exactly, or named and counted."""

import gzip
import json
import re
from pathlib import Path

import pytest

from lmjax.config import DataConfig, SourceConfig, UserError
from lmjax.data.sources import streams
from tests.data.sources.reading import TEXTS, lines_of, read


@pytest.mark.parametrize("encoding", ["utf-16", "UTF_16-le", "latin-1", "utf-8-sig", "utf-32", "cp1252", "utf-7"])
def test_files_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    texts = ["Zwölf\nBoxkämpfer", "naïve", "x" * 3000]
    table = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    contents = {
        "a.txt": "\n\n".join(texts),
        "a.jsonl": table,
        "a.json": json.dumps([{"text": text} for text in texts], ensure_ascii=False),
        "a.csv": "text\r\n" + "".join(f'"{text}"\r\n' for text in texts),
        "a.tsv": "text\n" + "\n".join(text.replace("\n", " ") for text in texts),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode(encoding))
        expected = [text.replace("\n", " ") for text in texts] if name == "a.tsv" else texts
        assert read(tmp_path / name, encoding=encoding) == expected, name
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode(encoding)))
        assert read(tmp_path / f"{name}.gz", encoding=encoding) == expected, name


def test_an_encoding_that_is_none_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Zwölf".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes("Zwölf Boxkämpfer".encode("utf-16-le"))
    (tmp_path / "a.jsonl").write_bytes('{"text": "ö"}'.encode("utf-16"))
    for name in ("a.txt", "b.txt", "a.jsonl"):
        with pytest.raises(
            UserError, match=rf"{name}' is UTF-16 text: save it as UTF-8, or, for data, set data.encoding"
        ):
            read(tmp_path / name)
    for encoding in ("rot13", "base64", "none", "", "utf-8\0", "idna", "undefined"):
        with pytest.raises(UserError, match=r"data.encoding = .* is not an encoding of text; set it to utf-8"):
            read(tmp_path / "a.txt", encoding=encoding)
    (tmp_path / "c.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"c.txt' is not ascii text: byte 0xff at offset 3"):
        read(tmp_path / "c.txt", encoding="ascii")
    with pytest.raises(UserError, match=r"c.txt' is not utf-16 text"):
        read(tmp_path / "c.txt", encoding="utf-16")


def test_a_byte_order_mark_is_no_text_and_a_later_one_is(tmp_path: Path) -> None:
    for document, expected in (("paragraph", ["One", "\ufefftwo"]), ("line", ["One", "\ufefftwo"])):
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n\r\nOne\n\n\xef\xbb\xbftwo")
        assert read(tmp_path / "a.txt", document=document) == expected
    assert read(tmp_path / "a.txt", document="file") == ["\r\n\r\nOne\n\n\ufefftwo"]
    for blank in (b"\n \n", b"\n" * 3000, b"\r\n\t" * 10**6):  # an array after blank lines
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + blank + b'[{"text": "\\ufeffx"}]')
        assert read(tmp_path / "a.json") == ["\ufeffx"]


def test_a_record_is_read_whatever_its_other_columns_hold(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": ' + "9" * 5000 + ', "x": NaN, "y": 1e999, "z": "\\ud800"}')
    assert read(tmp_path / "a.jsonl") == ["a"]
    with pytest.raises(UserError, match="the field 'n' is not text but LongInteger"):
        read(tmp_path / "a.jsonl", text_field="n")


def save(folder: Path, texts: list[str], shards: int) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder, num_shards=shards)


def test_saved_datasets_are_read_in_the_order_of_their_shards(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(12)]
    save(tmp_path / "saved", texts, 3)
    assert read(tmp_path / "saved") == texts
    (tmp_path / "saved/cache-1.arrow").write_bytes(b"of another step")  # `datasets` leaves such files
    state = json.loads((tmp_path / "saved/state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    assert read(tmp_path / "saved") == [*texts[8:], *texts[4:8], *texts[:4]]
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "z.txt").write_text("after")
    assert read(tmp_path) == ["before", *texts[8:], *texts[4:8], *texts[:4], "after"]
    (tmp_path / "saved/data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"state.json' lists the file 'data-00001.*', which is not next to it"):
        read(tmp_path / "saved")
    for content in ("[]", "{", '{"_data_files": 1}', '{"_data_files": [{"filename": "../a.txt"}]}'):
        (tmp_path / "saved/state.json").write_text(content)
        with pytest.raises(UserError, match=r"state\.json'"):
            read(tmp_path / "saved")


def test_of_a_saved_dictionary_the_split_train_is_read(tmp_path: Path) -> None:
    save(tmp_path / "d/train", ["a", "b"], 1)
    save(tmp_path / "d/test", ["c"], 1)
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert read(tmp_path / "d") == ["a", "b"]
    source = SourceConfig(files=(str(tmp_path / "d"),))
    assert streams.notes(source) == [f"left out 1 of splits of a saved DatasetDict other than train: {tmp_path}/d/test"]
    assert read(tmp_path / "d/test") == ["c"]
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(UserError, match="has no split 'train', only 'test'; name the folder of a split"):
        read(tmp_path / "d")


BAD = {
    "cut.jsonl": b'{"text": "a"}\n{"text": "b\n{"text": "c"}\n',
    "deep.jsonl": b'{"text": "a"}\n' + b"[" * 9999 + b'\n{"text": "c"}\n',
    "bytes.jsonl": b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n',
    "type.jsonl": b'{"text": "a"}\n{"text": 7}\n{"text": "c"}\n',
    "field.jsonl": b'{"text": "a"}\n{"body": "b"}\n{"text": "c"}\n',
    "half.jsonl": b'{"text": "a"}\n{"text": "\\ud800"}\n{"text": "c"}\n',
    "array.json": b'[{"text": "a"}, [1], {"text": "c"}]',
    "cells.csv": b"text,n\na,1\nb\nc,3\n",
    "bytes.csv": b"text,n\na,1\n\xff,2\nc,3\n",
    "quote.csv": b'text,n\na,1\n"b"b,2\nc,3\n',
    "cells.tsv": b"text\tn\na\t1\nb\nc\t3\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_ends_the_preparation_or_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(UserError, match=rf"{name}'.*; data.on_bad_record=skip leaves such records out$"):
        read(tmp_path / name)
    data, dropped = DataConfig(files=(str(tmp_path / name),), on_bad_record="skip"), streams.Dropped()
    pieces = streams.documents(streams.sources(data)[0], data, dropped=dropped)
    assert [text for text, _ in pieces] == ["a", "c"]
    assert dropped.count == 1
    assert re.match(rf"'{tmp_path}/{name}', (line|row) [23]\b", dropped.first)  # counted with the rows before it
    assert dropped.entry() == {"dropped": 1, "first_dropped": dropped.first}
    assert dropped.note() == f"left out 1 bad records, first {dropped.first}"


def test_damage_that_is_no_record_always_ends_the_preparation(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(TEXTS))[:-9])
    (tmp_path / "header.csv").write_bytes(b"text,text\na,b\n")
    (tmp_path / "open.csv").write_bytes(b'text,n\na,1\n"b,2\n' + b"c,3\n" * 9)  # one quote takes ten records
    for name in ("a.jsonl.gz", "header.csv", "open.csv"):
        for choice in ("skip", "error"):
            with pytest.raises(UserError) as error:
                read(tmp_path / name, on_bad_record=choice)
            assert "on_bad_record" not in str(error.value)  # it would not help
