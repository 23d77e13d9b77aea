"""The embedded corpus: the English text that every Python installation contains.

Docstrings are read from the source files with `ast`, so nothing is imported or run. The text differs between Python
versions, which is why the store records its hash.
"""

import ast
import sys
import sysconfig
import typing
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lmjax.config import UserError

if typing.TYPE_CHECKING:
    import datasets

FORMAT = 3  # part of the fingerprint: raise it when the text below changes
PART = 20_000  # characters

# Tests, demonstrations and vendored code; `encodings` is a hundred near copies of one sentence.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
_SKIPPED |= {"encodings", "ensurepip", "pydoc_data"}
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def docstrings() -> "datasets.Dataset":
    """The docstrings of the standard library and the topics of `help()`.

    The dataset has the column "text".

    Every docstring of a module below the name of what it describes, then every topic, both in alphabetical order, no
    docstring twice; a document is one of these or, of a long one, a part. About 2 million characters.

    Raises:
        UserError: This Python has no library sources.
    """
    import datasets

    whole = [*modules(Path(sysconfig.get_path("stdlib"))), *_topics()]
    texts = list(dict.fromkeys(part for text in whole for part in parts(text)))
    if not texts:
        raise UserError("this Python comes without its library's source files: give text with data.files=[PATH]")
    return datasets.Dataset.from_dict({"text": texts})


def fingerprint() -> dict[str, str | int]:
    """Identify the corpus without reading it."""
    return {"source": "docstrings", "python": sys.version, "format": FORMAT}


def modules(root: Path) -> Iterator[str]:
    """Yield the docstrings of each Python file below `root`, one text for each module."""
    files = {path.relative_to(root).with_suffix("").parts: path for path in root.rglob("*.py")}
    seen: set[str] = set()
    for parts in sorted(files):
        if not _SKIPPED.isdisjoint(parts) or parts[0].startswith("config-"):
            continue
        tree = _parse(files[parts])
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found: dict[str, str] = {}
        for heading, text in _described(tree, name):
            if text not in seen:
                found.setdefault(text, heading)
        seen.update(found)
        if found:
            yield "\n\n".join(f"{heading}\n{text}" for text, heading in found.items()) + "\n"


def parts(text: str) -> Iterator[str]:
    """Split a text between paragraphs into parts of about `PART` characters.

    Without parts, the random side of a few long modules would decide how hard the validation split is.
    """
    paragraphs: list[str] = []
    for paragraph in text.strip("\n").split("\n\n"):
        paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) >= PART:
            yield "\n\n".join(paragraphs) + "\n"
            paragraphs = []
    if paragraphs:
        yield "\n\n".join(paragraphs) + "\n"


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():  # invalid escapes in other people's strings
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates, files for other versions
            return ast.Module([], [])


def _described(node: ast.Module | _Documented, name: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a node and its definitions, in source order."""
    text = ast.get_docstring(node)
    if text:
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Documented):
            prefix = "" if isinstance(node, ast.Module) else f"{name}."
            yield from _described(child, prefix + child.name)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [text.strip("\n") + "\n" for _, text in sorted(topics.items())]
