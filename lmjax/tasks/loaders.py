"""Tasks from folders with task.json, JSON, JSON lines, parquet, BIG-bench and the hub.

Everything is read as data and never executed. Rows are read one by one, up to `ROWS`; an error names file and row.
"""

import contextlib
import gzip
import itertools
import json
import typing
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

from lmjax.config import UserError
from lmjax.config.codec import from_json
from lmjax.config.errors import nearest
from lmjax.tasks import render, spec
from lmjax.tasks.bigbench import big_bench, is_big_bench
from lmjax.tasks.render import ROWS, Parts, Rows
from lmjax.tasks.spec import Task, TaskConfig

LINE = 1 << 24  # bytes of a row of JSON lines
WHOLE = 1 << 28  # bytes of a file of JSON, which is read at once
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

T = TypeVar("T")


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True, known: Iterable[str] = ()) -> Task:
    """Load the task of a folder, a file or `hub:NAME[:SUBSET[:SPLIT]]`; see `catalog.load`.

    Args:
        name: The folder, file or hub dataset.
        held_out_share: Share of the items that is held out.
        held_out: Whether the documents are the held-out items or the others.
        known: Names of other tasks, for the suggestion in an error message.
    """
    config, rows, examples = _parts(name, known)
    return render.build_task(config, rows, examples=examples, held_out_share=held_out_share, held_out=held_out)


def config(folder: Path) -> TaskConfig:
    """Read the task.json of a folder.

    Raises:
        UserError: The file does not exist, or is not a `TaskConfig`.
    """
    return _config(_whole(folder / "task.json"), folder / "task.json")


def _parts(name: str, known: Iterable[str]) -> Parts:
    path = Path(name).expanduser()
    if name.startswith("hub:"):
        return _bare(_rows(name), name)
    if not path.exists():
        near = nearest(name, known)
        raise UserError(f"no task '{name}'{near} (or give a folder with task.json, a file of rows, or hub:NAME)")
    if path.is_dir():
        file = next((path / file for file in ("task.json", "task.json.gz") if (path / file).exists()), None)
        if file is None:
            raise UserError(f"the folder '{path}' holds no task: it has no task.json")
        return _folder(path, file)
    if path.name.endswith((".json", ".json.gz")) and is_big_bench(tree := _json(_whole(path), f"'{path}'")):
        return big_bench(tree, path)
    return _bare(_rows(str(path)), path.name.split(".")[0])


# ---- Kinds of task ----------------------------------------------------------------------------------------------


def _folder(folder: Path, file: Path) -> Parts:
    """Read task.json with its rows and pool of examples next to it, or a BIG-bench task."""
    text = _whole(file)
    if is_big_bench(tree := _json(text, f"'{file}'")):
        return big_bench(tree, file)
    config = _config(text, file)
    for name in (config.rows, config.examples):
        if not name.startswith("hub:") and Path(name).name != name:
            raise UserError(f"'{file}': '{name}' must be the name of a file next to it, or hub:NAME")
    examples = config.examples or ("examples.jsonl" if (folder / "examples.jsonl").exists() else "")
    rows, pool = (
        _rows(name if name.startswith("hub:") else str(folder / name)) if name else None
        for name in (config.rows or "rows.jsonl", examples)
    )
    assert rows is not None
    return replace(config, name=config.name or folder.resolve().name), rows, pool


def _config(text: str, file: Path) -> TaskConfig:
    try:
        config = from_json(text, TaskConfig)
        spec.check(config)
    except (ValueError, RecursionError, OverflowError) as error:  # of JSON that no dataclass holds: huge or deep
        raise UserError(f"'{file}': {_line(error)}") from None
    return config


def _bare(rows: Rows, name: str) -> Parts:
    """Infer the kind of a task without a task.json from the fields of its first row."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"the task '{name}' has no rows")
    columns = set(first[1]) if isinstance(first[1], dict) else set()
    config = TaskConfig(name=name, kind="generate")
    if "choices" in columns:
        config = replace(config, kind="choose")
    elif {"good", "bad"} <= columns:
        config = replace(config, kind="pairs")
    elif "text" in columns and "input" not in columns:
        config = replace(config, kind="perplexity", prompt="{text}")
    return config, itertools.chain([first], rows), None


# ---- Rows -------------------------------------------------------------------------------------------------------


def _rows(name: str) -> Rows:
    """Yield at most `ROWS` rows of a file or hub dataset, each with its location."""
    path = Path(name).expanduser()
    if name.startswith("hub:"):
        rows = _hub(*name.removeprefix("hub:").split(":"))
    elif not path.is_file():
        raise UserError(f"no file '{path}'")
    elif not path.name.endswith(ENDINGS):
        raise UserError(f"'{path}': cannot tell what this file is; its name must end in {', '.join(ENDINGS)}")
    elif path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.name.endswith((".json", ".json.gz")):
        rows = _array(path)
    else:
        rows = _lines(path)
    return itertools.islice(rows, ROWS)


def _lines(path: Path) -> Rows:
    with _opened(path) as file:
        for number in itertools.count(1):
            line, where = file.readline(LINE + 1), f"'{path}', line {number}"
            if not line:
                return
            if len(line) > LINE:
                raise UserError(f"{where} has more than {LINE} bytes")
            if line.strip():
                yield where, _json(_text(line, where), where)


def _array(path: Path) -> Rows:
    tree = _json(_whole(path), f"'{path}'")
    if not isinstance(tree, list):
        raise UserError(f"'{path}': expected a list of rows, or a BIG-bench task (an object with a list 'examples')")
    yield from ((f"'{path}', row {number}", row) for number, row in enumerate(tree, 1))


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1000))
            yield from ((f"'{path}', row {number}", row) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # a damaged file, or a strange date
        raise UserError(f"cannot read '{path}' as parquet: {_line(error)}") from None


def _hub(name: str, subset: str = "", split: str = "", *more: str) -> Rows:
    """Yield a split of a hub dataset or local folder; by default the first of test, validation, train."""
    import datasets

    if more or not name:
        raise UserError("a dataset of the hub is named hub:NAME, hub:NAME:SUBSET or hub:NAME:SUBSET:SPLIT")
    try:
        splits = typing.cast(dict[str, Iterable[Any]], datasets.load_dataset(name, subset or None, streaming=True))
        split = split or next((known for known in ("test", "validation", "train") if known in splits), "test")
        if split not in splits:
            raise UserError(f"it has no split '{split}', only {', '.join(map(str, splits))}")
        yield from ((f"hub:{name}, {split} row {number}", row) for number, row in enumerate(splits[split], 1))
    except Exception as error:  # the hub's client has a dozen kinds: not found, offline, gated, connection lost
        raise UserError(f"cannot read the hub dataset '{name}': {_line(error)}") from None


# ---- Files ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with typing.cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"cannot unpack '{path}': {error}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


def _whole(path: Path) -> str:
    with _opened(path) as file:
        content = file.read(WHOLE + 1)
    if len(content) > WHOLE:
        raise UserError(
            f"'{path}' has more than {WHOLE} bytes; write its rows as JSON lines, which are read one by one"
        )
    return _text(content, f"'{path}'")


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: byte 0x{content[error.start]:02x} at {error.start}") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise UserError(f"{where} is not JSON: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The message of an error, as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
