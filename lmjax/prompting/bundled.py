"""The tasks that come with lmjax: folders of written rows in `words`, and the generated ones of `symbolic`."""

from pathlib import Path

from lmjax.config import UserError
from lmjax.prompting import loaders, symbolic
from lmjax.prompting.task import Task
from lmjax.typed import nearest

WORDS = Path(__file__).parent / "words"


def names() -> dict[str, str]:
    """Each task with what it measures, in one line."""
    return {name: loaders.config(WORDS / name).measures for name in _words()} | symbolic.NAMES


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True) -> Task:
    """The task of that name, as `task.load` has it. UserError: there is none (names the nearest)."""
    if name in symbolic.NAMES:
        return symbolic.load(name, held_out_share=held_out_share, held_out=held_out)
    if name in _words():
        return loaders.load(str(WORDS / name), held_out_share=held_out_share, held_out=held_out)
    raise UserError(f"no bundled task '{name}'{nearest(name, names())}")


def _words() -> list[str]:
    return sorted(path.parent.name for path in WORDS.glob("*/task.json"))
