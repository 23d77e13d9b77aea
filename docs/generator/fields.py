"""Fields of dataclasses: annotations, defaults, documentation."""

import ast
import inspect
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from generator.project import parse
from generator.text import escape


class Field(NamedTuple):
    """A field of a dataclass. `shared`: its documentation is in the docstring of the class."""

    annotation: ast.expr
    default: str
    doc: str
    shared: bool


def class_node(cls: Any) -> tuple[ast.ClassDef, Path]:
    """Where a class is defined."""
    path = Path(inspect.getsourcefile(cls) or "")
    return next(n for n in parse(path).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__), path


def fields(node: ast.ClassDef, path: Path) -> dict[str, Field]:
    """The fields of a class with their documentation.

    A field is documented by `#:` comments above it or at its end, by a string literal after it, or by `name: text` in
    the docstring of its class.
    """
    source, comments, shared = path.read_text().splitlines(), _comments(path), _from_docstring(node)
    result = {}
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        doc = comments.get(item.end_lineno or item.lineno, "")
        line = item.lineno - 1
        while line in comments and source[line - 1].lstrip().startswith("#:"):
            doc, line = f"{comments[line]} {doc}", line - 1
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            doc = f"{doc} {following.value.value}"
        name = item.target.id
        text = " ".join((doc or shared.get(name, "")).split())
        result[name] = Field(_without_metadata(item.annotation), _default(item.value), text, shared=not doc)
    return result


def _without_metadata(annotation: ast.expr) -> ast.expr:
    """`Annotated[int, at_least(0)]` -> `int`."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        return annotation.slice.elts[0]
    return annotation


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        factory = next((keyword.value for keyword in value.keywords if keyword.arg == "default_factory"), None)
        return f"{ast.unparse(factory)}()" if factory is not None else ast.unparse(value)
    return ast.unparse(value)


@cache
def _comments(path: Path) -> dict[int, str]:
    """The `#:` comments of a file by line number from 1."""
    with tokenize.open(path) as file:
        found = [token for token in tokenize.generate_tokens(file.readline) if token.string.startswith("#:")]
    return {token.start[0]: token.string.removeprefix("#:").strip() for token in found}


def _explained(node: ast.ClassDef) -> Iterator[re.Match[str]]:
    """Where the docstring of a class explains fields: `name: ` or `name, other: ` after a line break or a sentence."""
    annotated = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
    names = "|".join(target.id for target in annotated if isinstance(target, ast.Name))
    pattern = rf"(?:(?<=[.:;)] )|(?<=\n)|(?<=  )|^)((?:{names})(?:, (?:{names}))*): "
    return re.finditer(pattern, ast.get_docstring(node) or "") if names else iter(())


def _from_docstring(node: ast.ClassDef) -> dict[str, str]:
    text, matches, docs = ast.get_docstring(node) or "", list(_explained(node)), {}
    for match, following in zip(matches, [*matches[1:], None], strict=False):
        first, *others = match[1].split(", ")
        docs[first] = text[match.end() : following.start() if following else len(text)].strip().removesuffix(";")
        docs |= dict.fromkeys(others, f"see `{first}`")
    return docs


def summary(cls: Any) -> str:
    """The docstring of a dataclass up to the first field that it explains."""
    node, _ = class_node(cls)
    text = ast.get_docstring(node) or ""
    match = next(_explained(node), None)
    return escape(" ".join(text[: match.start()].split() if match else text.split()))
