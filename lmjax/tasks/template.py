"""Templates: text with {field} for a field of a row, and {{ and }} for braces.

A field is a key and never an expression: `{a.b}` is the field named "a.b", so a template can reach nothing but its row.
"""

import re
from collections.abc import Mapping
from typing import Any

from lmjax.config import UserError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def fields(template: str) -> tuple[str, ...]:
    """Return the names of the fields in a template, in order.

    Raises:
        UserError: The template has an unpaired brace.
    """
    names = []
    for match in _PART.finditer(template):
        if match[0] in ("{", "}"):
            raise UserError(f"the template {template!r} has a '{match[0]}' on its own; write '{match[0] * 2}' for one")
        if match[1] is not None:
            names.append(match[1])
    return tuple(names)


def render(template: str, row: Mapping[str, Any]) -> str:
    """Insert the values of a row into a template.

    Raises:
        UserError: The template has an unpaired brace or an unknown field, or a value has no text form.
    """
    fields(template)
    return _PART.sub(lambda match: match[0][0] if match[1] is None else value(row, match[1]), template)


def variants(template: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Render a template once for each item of its list field, if it has exactly one.

    Several accepted answers thus share a template.
    """
    lists = [name for name in dict.fromkeys(fields(template)) if isinstance(row.get(name), list | tuple)]
    if len(lists) != 1:
        return (render(template, row),)
    return tuple(render(template, {**row, lists[0]: item}) for item in row[lists[0]])


def value(row: Mapping[str, Any], name: str) -> str:
    """Return a field as text.

    Raises:
        UserError: The row has no such field, or its value has no text form.
    """
    if name not in row:
        raise UserError(f"there is no field '{name}', only {', '.join(map(repr, row)) or 'nothing'}")
    try:
        return text(row[name])
    except UserError as error:
        raise UserError(f"the field '{name}' {error}") from None


def text(item: Any) -> str:
    """Convert text, a number, a boolean, or a list of these (joined by ", ") to text.

    Raises:
        UserError: The item is anything else.
    """
    if isinstance(item, list | tuple) and not any(isinstance(part, list | tuple) for part in item):
        return ", ".join(map(text, item))
    if not isinstance(item, str | int | float):
        raise UserError(f"is no text, number or list of these but {'null' if item is None else type(item).__name__}")
    try:
        result = str(item)
        result.encode()
    except UnicodeEncodeError:
        raise UserError("holds half a character (a lone surrogate)") from None
    except ValueError:  # Python prints no integer of more than 4300 digits
        raise UserError("is an integer with too many digits") from None
    return result
