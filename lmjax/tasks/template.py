"""Templates: text with {field} for a field of a row, and {{ and }} for braces.

    {question}           the field "question"
    {answers[0]}         item 0 of a list (-1: the last one)
    {answers[text][0]}   the entry "text" of an object, and item 0 of this
    {question|strip}     a function of the value; several are applied from left to right

A field is a key and never an expression. Brackets hold a key or a number, and the functions are those of `FUNCTIONS`:
a template can reach nothing but its row. If the row has a field with the complete name, such as "a[0]" or "a.b", the
template refers to this field.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lmjax.config import UserError

LARGEST = 1 << 24  # characters of a rendered text, and of all variants of it together

FUNCTIONS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lstrip": str.lstrip,
    "rstrip": str.rstrip,
    "lower": str.lower,
    "upper": str.upper,
    "capitalize": str.capitalize,
}

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"([^\[\]|]+)((?:\[[^\[\]|]+\])*)((?:\|[a-z]+)*)")
_KEY = re.compile(r"\[([^\[\]]+)\]")


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
        UserError: The template has an unpaired brace or an unknown field, a value has no text form, or the text is too
            long.
    """
    names = fields(template)
    values = {name: value(row, name) for name in dict.fromkeys(names)}
    size = len(template) + sum(len(values[name]) for name in names)
    if size > LARGEST:
        raise UserError(f"the text of a row has {size} characters; at most {LARGEST} are allowed")
    return _PART.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], template)


def variants(template: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Render a template once for each item of its list field, if it has exactly one.

    Several accepted answers thus share a template.
    """
    values = {name: lookup(row, name) for name in dict.fromkeys(fields(template)) if has(row, name)}
    lists = [name for name, value in values.items() if isinstance(value, list | tuple)]
    if len(lists) != 1:
        return (render(template, row),)
    known = values if values.keys() >= set(fields(template)) else row  # of a row, the first item gives the error
    rendered, size = [], 0
    for item in values[lists[0]]:
        rendered.append(render(template, {**known, lists[0]: item}))
        size += len(rendered[-1])
        if size > LARGEST:
            raise UserError(f"the texts of the items of '{lists[0]}' have more than {LARGEST} characters together")
    return tuple(rendered)


def value(row: Mapping[str, Any], name: str) -> str:
    """Return a field as text.

    Raises:
        UserError: The row has no such field, or its value has no text form.
    """
    item = lookup(row, name)
    try:
        return text(item)
    except UserError as error:
        raise UserError(f"the field '{name}' {error}") from None


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has a field, or what a name with brackets and functions refers to."""
    try:
        lookup(row, name)
    except UserError:
        return False
    return True


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field; a function applies to each item of a list.

    Raises:
        UserError: The row has no such field, item or entry, or there is no such function.
    """
    if name in row:
        return row[name]
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in row:
        raise UserError(f"there is no field '{name}', only {', '.join(map(repr, row)) or 'nothing'}")
    item = row[match[1]]
    for key in _KEY.findall(match[2]):
        item = _entry(item, key, name, row)
    for function in filter(None, match[3].split("|")):
        if function not in FUNCTIONS:
            raise UserError(f"the template field '{name}': there is no function '{function}', only {_functions()}")
        item = _applied(function, item)
    return item


def _entry(item: Any, key: str, name: str, row: Mapping[str, Any]) -> Any:
    """Return the entry of an object, or the item of a list."""
    if isinstance(item, Mapping) and key in item:
        return item[key]
    if isinstance(item, list | tuple) and re.fullmatch(r"-?[0-9]{1,9}", key) and -len(item) <= int(key) < len(item):
        return item[int(key)]
    if isinstance(item, Mapping):
        reason = f"its object has no '{key}', only {', '.join(map(repr, item)) or 'nothing'}"
    elif isinstance(item, list | tuple):
        reason = f"its list has {len(item)} items, and no item '{key}'"
    else:
        reason = f"[{key}] needs a list or an object"
    raise UserError(f"there is no field '{name}', only {', '.join(map(repr, row))}: {reason}")


def _applied(function: str, item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_applied(function, part) for part in item]
    return FUNCTIONS[function](text(item))


def _functions() -> str:
    return ", ".join(FUNCTIONS)


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
