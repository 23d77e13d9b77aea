"""Documentation of configuration keys: comments, types, defaults and ranges of the source."""

import ast
import inspect
import re
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.config.codec import every_key
from lmjax.config.ranges import field_ranges


class Field(NamedTuple):
    """A field of a class, as its source shows it."""

    annotation: ast.expr
    default: str
    doc: str
    #: Whether the documentation is in the docstring of the class.
    shared: bool


@dataclass(frozen=True)
class Key:
    """A configuration key with its documentation."""

    name: str
    #: Setting that selects the family with this key, such as `model.family=rnn`; empty if there is only one.
    choice: str
    #: Type, as the source shows it; of a list of objects, their fields.
    type: str
    #: Valid texts of a field that has a list of them.
    options: tuple[str, ...]
    #: Whether a registered name is valid, too.
    is_open: bool
    default: str
    #: Short form of the range; empty if every value of the type is valid.
    limits: str
    meaning: str


def documented_keys(hint: Any, prefix: str = "", choice: str = "") -> Iterator[Key]:
    """Yield the keys of a type: those of all families, and those of objects in lists.

    Args:
        hint: The dataclass or the union.
        prefix: Beginning of the keys, such as `model.`.
        choice: The setting that selects the dataclass.
    """
    for place in every_key(hint, prefix, choice):
        field = _field_of(place.owner, place.field)
        item = _item(typing.get_type_hints(place.owner)[place.field])
        kind, options, is_open = _type(field.annotation)
        if item is not None:
            kind = f"list of ({', '.join(fields(*class_node(item)))})"
        limits = ", ".join(limit.short for limit in field_ranges(place.owner)[place.field])
        yield Key(place.name, place.choice, kind, options, is_open, field.default, limits, field.doc)
        if item is not None:
            yield from documented_keys(item, f"{place.name}[].", place.choice)


def _field_of(cls: type, name: str) -> Field:
    """The documentation of a field, which a base class may define; without source, none."""
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    try:
        return fields(*class_node(owner))[name]
    except (OSError, TypeError, KeyError, StopIteration):  # a class that a program made
        return Field(ast.Name("Any"), "", "", shared=False)


def _item(hint: Any) -> Any:
    """The dataclass of the items of a list, or None."""
    args = typing.get_args(hint)
    return args[0] if typing.get_origin(hint) is tuple and is_dataclass(args[0]) else None


def _type(annotation: ast.expr) -> tuple[str, tuple[str, ...], bool]:
    """Return the type as text, the valid texts, and whether a registered name is valid, too."""
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "str":
        kind, options, _ = _type(annotation.left)
        return kind, options, True
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return "str", tuple(ast.literal_eval(value) for value in values), False
    return ast.unparse(annotation), (), False


# ---- Classes --------------------------------------------------------------------------------------------------------


@cache
def class_node(cls: Any) -> tuple[ast.ClassDef, Path]:
    """Return the syntax tree of a class and its file."""
    path = Path(inspect.getsourcefile(cls) or "")
    return next(n for n in ast.walk(_parse(path)) if isinstance(n, ast.ClassDef) and n.name == cls.__name__), path


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def summary(cls: Any) -> str:
    """Return the docstring of a class up to the first field that it explains."""
    try:
        node, _ = class_node(cls)
    except (OSError, TypeError, StopIteration):  # a class that a program made
        return (inspect.getdoc(cls) or "").partition("\n")[0]
    text = ast.get_docstring(node) or ""
    match = next(_explained(node), None)
    return " ".join(text[: match.start()].split() if match else text.split())


@cache
def fields(node: ast.ClassDef, path: Path) -> dict[str, Field]:
    """Return the fields of a class with their documentation.

    A field is documented by `#:` comments above it or at its end, by a string literal after it, or by `name: text` in
    the docstring of its class.
    """
    source, comments, shared = path.read_text(encoding="utf-8").splitlines(), _comments(path), _from_docstring(node)
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
    """Find where the docstring of a class explains fields.

    That is `name: ` or `name, other: ` after a line break or a sentence.
    """
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
