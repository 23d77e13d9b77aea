"""Rows, lines and blocks of files: exactly what other writers wrote, and every mistake is one clear line."""

import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.system import arrow_files, compression, readers

COLUMNS = {"text": ['a "quoted", cell', "Zwölf\r\nBoxkämpfer 🙂\n", "", "2024-01-01", " 007 "], "label": list("xyzxy")}
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
TABLE = pyarrow.table(COLUMNS)


def rows(path: Path, **options: Any) -> list[Any]:
    return [row for _, row in readers.rows(path, **options)]


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


# ---- Tables ---------------------------------------------------------------------------------------------------------


def write(path: Path) -> Path:
    """Write `TABLE` with another library than lmjax."""
    name = path.name.removesuffix(path.suffix) if path.suffix in compression.PACKED else path.name
    plain = path.with_name(name)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(TABLE, plain, row_group_size=2)
    elif name == "stream.arrow":
        with pyarrow.ipc.new_stream(plain, TABLE.schema) as stream:
            stream.write_table(TABLE, max_chunksize=2)
    elif name == "set.arrow":
        datasets.Dataset.from_dict(COLUMNS).save_to_disk(path.parent / "set")
        next((path.parent / "set").glob("*.arrow")).rename(plain)
    elif name.endswith(".arrow"):
        with pyarrow.ipc.new_file(plain, TABLE.schema) as file:
            file.write_table(TABLE, max_chunksize=2)
    elif name.endswith(".csv"):
        pyarrow.csv.write_csv(TABLE, plain)
    elif name == "array.json":
        plain.write_text(json.dumps(ROWS, indent=1))
    else:
        plain.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    content = plain.read_bytes()
    if path.suffix in compression.PACKED:
        path.write_bytes(PACK[path.suffix](content))
    return path


NAMES = [
    "a.jsonl",
    "a.ndjson.gz",
    "lines.json",
    "array.json",
    "array.json.zst",
    "a.csv",
    "a.csv.gz",
    "a.csv.zst",
    "a.csv.bz2",
    "a.jsonl.xz",
]


@pytest.mark.parametrize("name", [*NAMES, "a.parquet", "file.arrow", "stream.arrow", "set.arrow"])
def test_every_table_has_the_rows_that_another_library_wrote(tmp_path: Path, name: str) -> None:
    assert rows(write(tmp_path / name)) == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_of_a_binary_table_only_the_columns_asked_for_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_files, "BATCH", 2)
    path = write(tmp_path / name)
    assert rows(path, columns=["label"]) == [{"label": label} for label in COLUMNS["label"]]
    assert rows(path, columns=["label", "none"]) == ROWS  # so that a message can name the columns that exist
    assert [where for where, _ in readers.rows(path)] == [f"'{path}', row {n}" for n in range(1, 6)]


def test_the_location_of_a_row_is_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"1\n2",3\n\n4,5\n')
    assert list(readers.rows(tmp_path / "a.csv")) == [
        (f"'{tmp_path / 'a.csv'}', line 2", {"a": "1\n2", "b": "3"}),
        (f"'{tmp_path / 'a.csv'}', line 5", {"a": "4", "b": "5"}),
    ]
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n \n[2]')
    assert [where.split(", ")[1] for where, _ in readers.rows(tmp_path / "a.jsonl")] == ["line 2", "line 4"]


def test_delimited_cells_are_text_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n 1 ,\r\n" + b"x" * 200_000 + b",\xef\xbb\xbf\r\n")
    assert rows(tmp_path / "a.csv") == [{"a": " 1 ", "b": ""}, {"a": "x" * 200_000, "b": "\ufeff"}]
    (tmp_path / "a.tsv").write_text('a\tb\n"Yes, she\tsaid "no"\n\\t\t\'\n')
    assert rows(tmp_path / "a.tsv") == [{"a": '"Yes, she', "b": 'said "no"'}, {"a": "\\t", "b": "'"}]
    (tmp_path / "b.csv").write_text("a,b\n")
    assert rows(tmp_path / "b.csv") == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.text(), st.sampled_from(["x", '"', ",", "\n", ""])), max_size=5))
def test_any_text_survives_csv(tmp_path: Path, cells: list[tuple[str, ...]]) -> None:
    cells = [tuple(cell.encode(errors="replace").decode().replace("\r", "\n") for cell in row) for row in cells]
    with (tmp_path / "any.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b", "c"), *cells])
    assert rows(tmp_path / "any.csv") == [dict(zip("abc", row, strict=True)) for row in cells]


MISTAKES = {
    "two.csv": (b"a,a\n1,2\n", "'.*two.csv', line 1: the column 'a' occurs twice"),
    "long.csv": (b"a,b\n1,2\n1,2,3\n", "'.*long.csv', line 3 has 3 cells, the header has 2 columns"),
    "short.tsv": (b"a\tb\n1\n", "'.*short.tsv', line 2 has 1 cells, the header has 2 columns"),
    "quote.csv": (b'a,b\n1,"2"3\n', "'.*quote.csv', line 2 is not csv: ',' expected after '\"'"),
    "open.csv": (b'a,b\n1,2\n1,"2\n3\n', "'.*open.csv', line 3 is not csv: unexpected end of data"),
    "mac.csv": (b"a,b\r1,2\r", "'.*mac.csv', line 1 is not csv: new-line character"),
    "bytes.csv": (b"a,b\n1,2\n1,\xff\n", "'.*bytes.csv', line 3 is not UTF-8 text: byte 0xff at 2"),
    "bytes.jsonl": (b"1\n\n\xff", "'.*bytes.jsonl', line 3 is not UTF-8 text: byte 0xff at 0"),
    "half.jsonl": (b'1\n{"a": ', "'.*half.jsonl', line 2 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "'.*deep.jsonl', line 1 has more than 100 levels"),
    "array.json": (b'[{"a": 1},\n oops]', "'.*array.json' is not JSON: .*line 2"),
    "plain.parquet": (b"plain text", "cannot read '.*plain.parquet' as parquet"),
    "plain.arrow": (b"plain text", "cannot read '.*plain.arrow' as arrow"),
    "empty.arrow": (b"", "cannot read '.*empty.arrow' as arrow"),
    "a.parquet.gz": (b"x", "a.parquet.gz': cannot tell what this file is; its name must end in .jsonl"),
    "a.csv.gz": (b"plain", "cannot unpack '.*a.csv.gz'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, name: str) -> None:
    content, message = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.csv", "none.parquet", "none.arrow"):
        with pytest.raises(UserError, match=f"cannot read '.*{name}'.*No such file"):
            rows(tmp_path / name)


DAMAGED = ["a.parquet", "file.arrow", "stream.arrow", "a.jsonl", "array.json", "a.csv"]
DAMAGED += [f"a.jsonl.{packing}" for packing in ("gz", "bz2", "xz", "zst")]
VALUES = [b"", b"\0", b"\xff\xff\xff\xff", b"\0\0\0\x7f", b'"', b"[" * 99, b"\n"]


def is_read_or_refused(path: Path, content: bytes) -> bool:
    """Whether the outcome is rows, or one line that names the file; any other exception is raised."""
    path.write_bytes(content)
    try:
        rows(path)
        rows(path, columns=["text"], skip=lambda error: None)
    except UserError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return True


def damage(path: Path, examples: int) -> None:
    """Change, cut and insert bytes of a file that another library wrote."""
    complete, bad = write(path).read_bytes(), path.with_name(f"bad-{path.name}")
    place = st.integers(0, len(complete) - 1)

    @settings(max_examples=examples, deadline=None)
    @given(
        st.integers(0, len(complete)),
        st.lists(st.tuples(place, st.integers(1, 255)), max_size=3),
        st.lists(st.tuples(place, st.integers(0, 40), st.sampled_from(VALUES)), max_size=2),
    )
    def check(stop: int, flips: list[tuple[int, int]], replaced: list[tuple[int, int, bytes]]) -> None:
        content = bytearray(complete)
        for at, mask in flips:
            content[at] ^= mask
        for at, size, value in replaced:
            content[at : at + size] = value
        assert is_read_or_refused(bad, bytes(content))
        assert is_read_or_refused(bad, bytes(content[:stop]))

    check()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_or_read(tmp_path: Path, name: str) -> None:
    damage(tmp_path / name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_much_damage_is_refused_or_read(tmp_path: Path, name: str) -> None:
    damage(tmp_path / name, 500)


def test_limits_hold_before_the_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"short"\n"' + "long" * 10 + '"\nno JSON')
    with pytest.raises(UserError, match=r"a\.jsonl', line 2 has more than 20 bytes"):
        rows(tmp_path / "a.jsonl", longest=20)
    (tmp_path / "a.csv").write_text('a,b\n1,2\n1,"' + "line\n" * 10)
    with pytest.raises(UserError, match=r"a\.csv', line 3 has more than 20 bytes"):
        rows(tmp_path / "a.csv", longest=20)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=r"a\.json' has more than 20 bytes; write its rows as JSON lines"):
        rows(tmp_path / "a.json", longest=20, largest=20)
    assert rows(tmp_path / "a.json", longest=20, largest=2000) == ROWS  # a limit of lines does not concern an array


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
def test_a_large_table_is_never_held_whole(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("w") as file:
        file.write("" if name == "a.jsonl" else "text\n")
        for _ in range(200):
            file.write(json.dumps("word " * 20_000) + "\n")
    table = readers.rows(tmp_path / name)
    next(table)
    tracemalloc.start()
    count = sum(1 for _ in table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 199
    assert peak < 8e6  # of 20 MB


# ---- Lines and blocks -----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.sampled_from("a b\n\ré"), max_size=60), block=st.integers(1, 9))
def test_lines_however_they_come_in_blocks(tmp_path_factory: pytest.TempPathFactory, value: str, block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(value.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BLOCK", block)
        lines = list(readers.lines(path))
    assert [line for _, line in lines] == (value.removesuffix("\n").split("\n") if value else [])
    assert [where for where, _ in lines] == [f"'{path}', line {n}" for n in range(1, len(lines) + 1)]


@settings(max_examples=100, deadline=None)
@given(before=st.text(max_size=20), bad=st.sampled_from([b"\xff", b"\xc3(", b"\xe2\x82"]), size=st.integers(1, 7))
def test_bytes_that_are_not_utf8_are_named_with_their_offset(before: str, bad: bytes, size: int) -> None:
    content = before.encode() + bad
    blocks = [content[i : i + size] for i in range(0, len(content), size)]
    expected = rf"'x.txt' is not UTF-8 text: byte 0x.. at offset {len(before.encode())}; save it as UTF-8, or"
    with pytest.raises(UserError, match=expected):
        list(readers.decode(blocks, Path("x.txt")))


# ---- What a file may be --------------------------------------------------------------------------------------------


def test_upper_case_does_not_matter() -> None:
    names = {"A.TXT": ".txt", "a.Jsonl.GZ": ".jsonl", "b.CSV.Bz2": ".csv", "c.Parquet": ".parquet", "d.PARQUET.gz": ""}
    assert {name: readers.kind(Path(name)) for name in names} == names


def test_json_of_a_file_has_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert readers.read_json(tmp_path / "a.json") == {"a": [1]}
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"[1]"))
    assert readers.read_json(tmp_path / "b.json.gz") == [1]
    with pytest.raises(UserError, match=r"a\.json' has more than 9 bytes"):
        readers.read_json(tmp_path / "a.json", largest=9)
    for content, message in ((b"{", "is not JSON"), (b"[" * 10**6, "levels"), ("[1]".encode("utf-16"), "is UTF-16")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.json' .*{message}"):
            readers.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"cannot read '.*none\.json': No such file"):
        readers.read_json(tmp_path / "none.json")


def test_a_long_line_exists_at_most_twice(tmp_path: Path) -> None:
    path, size = tmp_path / "a.jsonl", 12_000_000
    path.write_text('{"text": "' + "word " * (size // 5) + '"}\n[1]\n')
    table = readers.rows(path)
    tracemalloc.start()
    next(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert next(table)[1] == [1]
    assert peak < 2.4 * size  # two copies and a few blocks


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_blank_lines_are_bounded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLANK_LINES", 50)
    rows = {"a.csv": "x\n1\n"}.get(name, '{"x": "1"}\n')
    (tmp_path / name).write_text(rows + 50 * "\n" + rows[-2:] * (name == "a.csv"))
    assert all(row == {"x": "1"} for _, row in readers.rows(tmp_path / name))
    (tmp_path / name).write_text(rows + 99 * "\n")
    with pytest.raises(UserError, match="50 more lines are blank than are not; remove the blank lines"):
        list(readers.rows(tmp_path / name))
