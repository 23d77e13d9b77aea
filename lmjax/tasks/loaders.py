"""Tasks from folders with task.json, tables, BIG-bench and the hub.

Everything is read as data and never executed. Rows are read one by one, up to `render.ROWS`; an error names file and
row.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lmjax.config import UserError
from lmjax.config.codec import from_json
from lmjax.config.errors import nearest, one_line
from lmjax.config.json_text import parse_json
from lmjax.system import hub, paths, readers
from lmjax.tasks import render, spec
from lmjax.tasks.bigbench import big_bench, is_big_bench
from lmjax.tasks.render import Parts, Rows
from lmjax.tasks.spec import Task, TaskConfig

LINE = 1 << 24  # maximum number of bytes of a line
WHOLE = 1 << 28  # maximum number of bytes of a file of JSON that is read at once
SPLITS = ("test", "validation", "train")  # of a hub dataset, the first that exists is read


def load(
    name: str,
    *,
    held_out_share: float = 0.0,
    held_out: bool = True,
    known: Iterable[str] = (),
    allow_hub: bool = False,
) -> Task:
    """Load the task of a folder, a file or `hub:NAME[:SUBSET[:SPLIT]]`; see `catalog.load`.

    Args:
        name: The folder, file or hub dataset.
        held_out_share: Share of the items that is held out.
        held_out: Whether the documents are the held-out items or the others.
        known: Names of other tasks, for the suggestion in an error message.
        allow_hub: Whether a task.json may name a dataset of the hub, which is then downloaded.
    """
    config, rows, examples = _parts(name, known, allow_hub=allow_hub)
    return render.build_task(config, rows, examples=examples, held_out_share=held_out_share, held_out=held_out)


def config(folder: Path) -> TaskConfig:
    """Read the task.json of a folder.

    Raises:
        UserError: The file does not exist, or is not a `TaskConfig`.
    """
    file = folder / "task.json"
    return _config(readers.read_text(file, largest=WHOLE), file)


def _parts(name: str, known: Iterable[str], *, allow_hub: bool) -> Parts:
    if name.startswith("hub:"):
        return _bare(_rows(name), name)
    path = paths.local(name, key="the task")
    if not path.exists() and not path.is_symlink():
        near = nearest(name, known)
        raise UserError(f"no task '{name}'{near} (or give a folder with task.json, a file of rows, or hub:NAME)")
    if not path.exists():
        raise paths.missing(path)
    if path.is_dir():
        file = next((path / file for file in ("task.json", "task.json.gz") if (path / file).exists()), None)
        if file is None:
            raise UserError(f"the folder '{path}' holds no task: it has no task.json")
        return _folder(path, file, allow_hub=allow_hub)
    if readers.kind(path) == ".json":
        tree = readers.read_json(path, largest=WHOLE, long_integers=True)
        if is_big_bench(tree):
            return big_bench(tree, path)
        if not isinstance(tree, list):
            raise UserError(
                f"'{path}': expected a list of rows, or a BIG-bench task (an object with a list 'examples')"
            )
    return _bare(_rows(str(path)), path.name.split(".")[0])


# ---- Kinds of task ----------------------------------------------------------------------------------------------


def _folder(folder: Path, file: Path, *, allow_hub: bool) -> Parts:
    """Read task.json with its rows and pool of examples next to it, or a BIG-bench task."""
    text = readers.read_text(file, largest=WHOLE)
    if is_big_bench(tree := parse_json(text, f"'{file}'", long_integers=True)):
        return big_bench(tree, file)
    config = _config(text, file)
    for name in (config.rows, config.examples):
        if name.startswith("hub:"):
            if not allow_hub:
                raise UserError(f"'{file}' reads '{name}' from the hub; allow it with --allow-hub, or copy the rows")
        elif Path(name).name != name:
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
        raise UserError(f"'{file}': {one_line(error)}") from None
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
    """Return the rows of a file or hub dataset, each with its location."""
    if name.startswith("hub:"):
        return _hub(*name.removeprefix("hub:").split(":"))
    path = paths.local(name, key="the task")
    if not path.is_file():
        raise UserError(f"no file '{path}'")
    return readers.rows(path, longest=LINE, largest=WHOLE)


def _hub(name: str, subset: str = "", split: str = "", *more: str) -> Rows:
    if more or not name:
        raise UserError("a dataset of the hub is named hub:NAME, hub:NAME:SUBSET or hub:NAME:SUBSET:SPLIT")
    return hub.rows(name, subset, splits=(split,) if split else SPLITS)
