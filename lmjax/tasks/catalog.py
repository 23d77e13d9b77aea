"""Tasks by name: bundled tasks and user tasks.

Bundled tasks are files in `bundled` or generated rows of `symbolic`.
"""

import os
from pathlib import Path

from lmjax.tasks import loaders, symbolic
from lmjax.tasks.spec import Task

BUNDLED = Path(__file__).parent / "bundled"


def names() -> dict[str, str]:
    """Return the bundled tasks, each with a line on what it measures."""
    folders = sorted(path.parent for path in BUNDLED.glob("*/task.json"))
    return {folder.name: loaders.config(folder).measures for folder in folders} | symbolic.NAMES


def located(name: str) -> str:
    """Return a name that means the same task from any folder.

    It is the absolute path of a folder or file. Names of bundled tasks and of the hub stay, and so does a name that is
    no file, to be refused as given.
    """
    bundled = name in symbolic.NAMES or (name == Path(name).name and (BUNDLED / name / "task.json").is_file())
    if bundled or name.startswith("hub:"):
        return name
    path = os.path.abspath(os.path.expanduser(name))
    return path if name.strip() and os.path.lexists(path) else name


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True, allow_hub: bool = False) -> Task:
    """Load a task by name or path.

    It is a bundled task, a folder with task.json, a file, or `hub:NAME[:SUBSET[:SPLIT]]`. A file is a table (see
    `readers.rows`) or a BIG-bench task in .json. `held_out_share` of the items, by a hash of their keys, are never
    examples; with `held_out` only these items are the documents, otherwise only the others. With a share of 0 all items
    are both. A task.json may name a dataset of the hub only with `allow_hub`.

    Raises:
        UserError: There is no such task (the nearest name is given), or a file is malformed or has other content (the
            file and the line are given).
    """
    if name in symbolic.NAMES:
        return symbolic.load(name, held_out_share=held_out_share, held_out=held_out)
    bundled = name in names()
    where = str(BUNDLED / name) if bundled else name
    return loaders.load(where, held_out_share=held_out_share, held_out=held_out, known=names(), allow_hub=allow_hub)
