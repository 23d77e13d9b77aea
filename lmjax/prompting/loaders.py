"""Tasks from files and from the hub: a folder with task.json, rows as JSON lines, JSON or parquet, BIG-bench tasks.

All that is read is data. Rows are read one by one as far as `ROWS`; a mistake is one line that names file and row.
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
from lmjax.prompting import task
from lmjax.prompting.shots import shuffled
from lmjax.prompting.task import Rows, Task, TaskConfig
from lmjax.typed import from_json, nearest

ROWS = 100_000  # of a file or a split; those behind them are no part of the task
LINE = 1 << 24  # bytes of a row of JSON lines
WHOLE = 1 << 28  # bytes of a file of JSON, which is read at once
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

Parts = tuple[TaskConfig, Rows, Rows | None]  # of a task: its configuration, its rows, the pool of examples if another
T = TypeVar("T")


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True) -> Task:
    """The task of a folder, a file or `hub:NAME[:SUBSET[:SPLIT]]`, as `task.load` has it."""
    config, rows, examples = _parts(name)
    return task.build(config, rows, examples=examples, held_out_share=held_out_share, held_out=held_out)


def config(folder: Path) -> TaskConfig:
    """What the task.json of a folder says. UserError: there is none, or it is not a `TaskConfig`."""
    return _config(_whole(folder / "task.json"), folder / "task.json")


def _parts(name: str) -> Parts:
    path = Path(name).expanduser()
    if name.startswith("hub:"):
        return _bare(_rows(name), name)
    if not path.exists():
        near = nearest(name, task.names())
        raise UserError(f"no task '{name}'{near} (or give a folder with task.json, a file of rows, or hub:NAME)")
    if path.is_dir():
        file = next((path / file for file in ("task.json", "task.json.gz") if (path / file).exists()), None)
        if file is None:
            raise UserError(f"the folder '{path}' holds no task: it has no task.json")
        return _folder(path, file)
    if path.name.endswith((".json", ".json.gz")) and _is_big_bench(tree := _json(_whole(path), f"'{path}'")):
        return _big_bench(tree, path)
    return _bare(_rows(str(path)), path.name.split(".")[0])


# ---- Kinds of task ----------------------------------------------------------------------------------------------


def _folder(folder: Path, file: Path) -> Parts:
    """task.json with its rows, and the pool of examples, beside it; or a BIG-bench task."""
    text = _whole(file)
    if _is_big_bench(tree := _json(text, f"'{file}'")):
        return _big_bench(tree, file)
    config = _config(text, file)
    for name in (config.rows, config.examples):
        if not name.startswith("hub:") and Path(name).name != name:
            raise UserError(f"'{file}': '{name}' must be the name of a file beside it, or hub:NAME")
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
        task.check(config)
    except (ValueError, RecursionError, OverflowError) as error:  # of JSON that no dataclass holds: huge or deep
        raise UserError(f"'{file}': {_line(error)}") from None
    return config


def _bare(rows: Rows, name: str) -> Parts:
    """Rows without a task.json: the fields of the first say what kind of task they are."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"the task '{name}' has no rows")
    found = set(first[1]) if isinstance(first[1], dict) else set()
    config = TaskConfig(name=name, kind="generate")
    if "choices" in found:
        config = replace(config, kind="choose")
    elif {"good", "bad"} <= found:
        config = replace(config, kind="pairs")
    elif "text" in found and "input" not in found:
        config = replace(config, kind="perplexity", prompt="{text}")
    return config, itertools.chain([first], rows), None


def _is_big_bench(tree: Any) -> bool:
    return isinstance(tree, dict) and isinstance(tree.get("examples"), list)


def _big_bench(tree: dict[str, Any], file: Path) -> Parts:
    """A task in the JSON of BIG-bench (Srivastava et al. 2022), with the defaults of its documentation.

    Its `task_prefix` stands in front of every prompt, its canary and `description` nowhere. What is scored as
    `multiple_choice_grade` is `choose`, anything else `generate`; of several best choices the first is the right one.
    Blanks at the end of the output prefix become the separator, so that no prompt ends in one.
    """

    def said(key: str, default: T) -> T:
        value = tree.get(key, default)
        if type(value) is not type(default):
            raise UserError(f"'{file}': {key}: expected {type(default).__name__}, got {type(value).__name__}")
        return value

    before, behind = said("example_input_prefix", "\nQ: "), said("example_output_prefix", "\nA: ")
    option = said("choice_prefix", "\n  choice: ") if said("append_choices_to_input", True) else ""
    stop, pattern = said("stop_string", ""), said("output_regex", "")
    scored = all(isinstance(row, dict) and "target_scores" in row for row in tree["examples"])
    choose = scored and said("preferred_score", "multiple_choice_grade") == "multiple_choice_grade"
    bare = behind.rstrip(" ")
    config = TaskConfig(
        name=said("name", "") or file.resolve().parent.name,
        kind="choose" if choose else "generate",
        prefix=said("task_prefix", ""),
        prompt=_literal(before) + "{input}{options}" + _literal(bare),
        separator=behind[len(bare) :],
        joint=said("few_shot_example_separator", "\n"),
        stop=(stop or "\n",),
        filters=(pattern,) if pattern else () if stop else (r"[^.?!;\n]+",),
        ignore_case=False,
        measures=" ".join(said("description", "").split()),
    )
    try:
        task.check(config)
    except UserError as error:
        raise UserError(f"'{file}': {error}") from None
    numbered = ((f"'{file}', example {number}", row) for number, row in enumerate(tree["examples"], 1))
    rows = ((where, _big_bench_row(row, where, option, choose)) for where, row in numbered)
    return config, itertools.islice(rows, ROWS), None


def _big_bench_row(row: Any, where: str, option: str, choose: bool) -> dict[str, Any]:
    """One example of BIG-bench as a row of ours. option: what stands before each choice in the prompt, if any does."""
    if not isinstance(row, dict) or "input" not in row or not ("target" in row or "target_scores" in row):
        raise UserError(f"{where}: expected an object with 'input', and 'target' or 'target_scores'")
    scores = row.get("target_scores", {})
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise UserError(f"{where}: target_scores: expected an object of numbers")
    best = [choice for choice, score in scores.items() if score == max(scores.values())]
    if scores and not best:
        raise UserError(f"{where}: target_scores: one is not a number")
    shown = shuffled(sorted(scores), ["options", str(row["input"])]) if option else ()
    return {
        "input": row["input"],
        "options": "".join(option + choice for choice in shown),
        "choices": list(scores),
        "answer": list(scores).index(best[0]) if choose else row.get("target", best),
    }


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


# ---- Rows -------------------------------------------------------------------------------------------------------


def _rows(name: str) -> Rows:
    """The rows of a file or of the hub, at most `ROWS`, each with where it stands."""
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
    """A split of a dataset of the hub or a local folder; by default the first there is of test, validation, train."""
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
    """What an error says, as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
