"""Conversion of frozen dataclasses to and from JSON, and overrides from the command line.

The type of a field decides how its value is read. An error is one line with the key and the nearest valid choice.
"""

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, TypeVar

from lmjax.config import extensions, synonyms, user_files
from lmjax.config.errors import UserError, nearest
from lmjax.config.json_text import parse_json
from lmjax.config.ranges import accepts_integer, shown, type_hints
from lmjax.config.schema import Config

T = TypeVar("T")

#: Bytes of a configuration or of another small file of settings.
LARGEST_CONFIG = 16_000_000
_GROUPS = {item.name for item in fields(Config)}  # first components of the keys of a run
_DIGITS = 1000  # of an integer on the command line; the largest valid one has 19


# ---- JSON -------------------------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    """Convert a dataclass to JSON text; `from_json` restores an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str | bytes, cls: type[T], where: str = "the configuration") -> T:
    """Convert text of `to_json` to a dataclass.

    Args:
        text: The text.
        cls: The dataclass.
        where: The location, for error messages about the text.

    Raises:
        UserError: The text is not JSON, a key is unknown or a value has the wrong type.
    """
    return from_tree(parse_json(text, where, largest=LARGEST_CONFIG), cls)


def from_tree(tree: Any, cls: type[T]) -> T:
    """Convert a value of `json_text.parse_json` to a dataclass.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type.
    """
    return _decode(tree, cls, "")


def differences(old: Any, new: Any) -> list[str]:
    """Return a readable line for each key whose values differ."""
    before, after = flatten(dataclasses.asdict(old)), flatten(dataclasses.asdict(new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]


# ---- Overrides --------------------------------------------------------------------------------------------------


def apply_overrides(config: T, overrides: Sequence[str], *, load: bool = True) -> T:
    """Apply overrides of the form `a.b=value` in order.

    Args:
        config: The configuration.
        overrides: The overrides.
        load: Import the files that an override of `extensions` names. False for overrides that no user gave.

    Raises:
        UserError: A key or a value is invalid. The message names the nearest valid key.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"'{override}' is not of the form key.path=value")
        config = _replace(config, key.strip().split("."), value.strip(), key.strip())
        if load and key.strip() == "extensions":  # later overrides may name what these files register
            user_files.load(getattr(config, "extensions", ()))
    return config


def keys(config: Any, prefix: str = "") -> list[str]:
    """Return every key that can be overridden, as a dotted path."""
    result = []
    for item in fields(config):
        value = getattr(config, item.name)
        result += keys(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return result


def unknown_key(key: str, config: Any) -> UserError:
    """Return the error about a key that the configuration does not have, with advice."""
    return UserError(f"unknown key '{key}'{synonyms.advice(key, keys(config), _of_families(type(config)))}")


def _of_families(cls: type) -> dict[str, list[str]]:
    """Return the keys that only some families have, with the settings that select these."""
    choices: dict[str, list[str]] = {}
    for place in every_key(cls):
        if place.choice:
            choices.setdefault(place.name, []).append(place.choice)
    return choices


class Place(NamedTuple):
    """Where a key is defined."""

    #: The key.
    name: str
    #: The last setting that selects its dataclass (`model.family=rnn`); empty if every configuration has it.
    choice: str
    #: Its dataclass.
    owner: type
    #: Its field.
    field: str


def every_key(hint: Any, prefix: str = "", choice: str = "") -> Iterator[Place]:
    """Yield the keys of a type, those of all families.

    Args:
        hint: A dataclass, or a union of dataclasses that `family` distinguishes.
        prefix: Beginning of the keys, such as `model.`.
        choice: The setting that selects this type.
    """
    if _is_union(hint):
        for family, member in families(typing.get_args(hint)).items():
            yield from every_key(member, prefix, f"{prefix}family={family}")
        return
    for name, inner in type_hints(hint).items():
        if is_dataclass(inner) or (_is_union(inner) and all(map(is_dataclass, typing.get_args(inner)))):
            yield from every_key(inner, f"{prefix}{name}.", choice)
        else:
            yield Place(prefix + name, choice, hint, name)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _replace(node: Any, path: list[str], value: str, key: str, root: Any = None) -> Any:
    root = node if root is None else root
    hints = type_hints(type(node))
    name = path[0]
    child = getattr(node, name, None) if name in hints else None
    if name not in hints or (len(path) > 1 and not is_dataclass(child)):
        raise unknown_key(key, root)
    if path[1:] == ["family"] and value != getattr(child, "family", value):  # switch the member
        members = families(typing.get_args(hints[name]))
        if value not in members:
            hint = "; or name its file in extensions=[FILE.py]" if path[0] in ("model", "objective") else ""
            raise UserError(f"{key}: {shown(value)} is unknown{nearest(value, members)}{hint}")
        return dataclasses.replace(node, **{name: members[value]()})
    if len(path) > 1:
        return dataclasses.replace(node, **{name: _replace(child, path[1:], value, key, root)})
    if is_dataclass(child) and (value[:1] + value[-1:] == "()" or re.match(r"[\w.]+\s*=", value)):
        return _group(dataclasses.replace(node, **{name: type(child)()}), name, value, key, root)
    if is_dataclass(child):
        inner = ", ".join(f"{key}.{item.name}" for item in fields(child))
        raise UserError(f"'{key}' is a group of keys; set one of {inner}")
    return dataclasses.replace(node, **{name: _parse_field(value, type(node), name, key)})


def _parse_field(text: str, cls: type, name: str, key: str) -> Any:
    hint = type_hints(cls)[name]
    if not accepts_integer(cls, name):
        return _parse(text, hint, key)
    number = _integer(text)
    try:
        return _parse(text, hint, key) if number is None else number
    except UserError as error:
        problem = str(error) if text[:1] in ("(", "[") else f"{key}: {shown(text)} is not a number"
        raise UserError(f"{problem}; give one number, or a list as `lmjax explain {key}` shows") from None


def _group(node: Any, name: str, text: str, key: str, root: Any) -> Any:
    """Apply the changes of `(a=1, b=2)` or `a=1,b=2` to the field `name` of a dataclass."""
    for part in split(text[1:-1] if text.startswith("(") else text):
        inner, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{key}: '{part}' is not of the form key=value")
        node = _replace(node, [name, *inner.strip().split(".")], value.strip(), f"{key}.{inner.strip()}", root)
    return node


def _parse(text: str, hint: Any, key: str) -> Any:
    """Read a value of type `hint` from command-line text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = split(inner)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_parse(part, args[0], key) for part in parts)
        if len(parts) != len(args):
            raise UserError(f"{key}: expected {len(args)} values, got {shown(text)}")
        return tuple(_parse(part, arg, key) for part, arg in zip(parts, args, strict=True))
    if origin in (typing.Union, types.UnionType) and types.NoneType in args:
        return None if text.lower() in ("", "none", "null") else _parse(text, _without_none(args), key)
    if is_dataclass(hint):
        return _decode(parse_json(text, key, largest=LARGEST_CONFIG), hint, key)
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif hint is int:
        number = _integer(text)
        if number is not None:
            return number
    elif hint is float:
        try:
            return float(text)
        except ValueError:
            pass
    else:
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
        return _decode(text[1:-1] if quoted else text, hint, key)
    raise UserError(f"{key}: expected {_describe(hint)}, got {shown(text)}")


def written(value: Any) -> str:
    """Return a value of a key as it is written on the command line; the inverse of reading it."""
    if isinstance(value, str):
        is_plain = value == value.strip() and not (len(value) > 1 and value[0] == value[-1] and value[0] in "'\"")
        return value if is_plain else f"'{value}'"
    if isinstance(value, tuple):
        return f"[{','.join(map(_written_item, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _written_item(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        return json.dumps(dataclasses.asdict(value))
    if isinstance(value, str) and (not value or value != value.strip() or set(value) & set(",()[]{}'\"")):
        quote = '"' if "'" in value else "'"
        return f"{quote}{value}{quote}"
    return written(value)


def _integer(text: str) -> int | None:
    """The integer of command-line text such as `100` or `1e6`; None if it is none."""
    try:
        number = Decimal(text)  # exact, unlike float
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > _DIGITS or (number.adjusted() < 0 and number):
        return None
    return int(number) if number == number.to_integral_value() else None


def split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes; a trailing comma is allowed."""
    parts, depth, start, quote = [], 0, 0, ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and text[start:i].rstrip()[-1:] in ("", *"([{,:"):  # an item begins with it
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


# ---- Types ------------------------------------------------------------------------------------------------------


def _decode(value: Any, hint: Any, key: str) -> Any:
    """Convert `value`, as JSON represents it, to the type `hint`, or raise UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and types.NoneType in args:
        return None if value is None else _decode(value, _without_none(args), key)
    if origin in (typing.Union, types.UnionType) and str in args:  # one of lmjax's names, or a registered one
        return _decode(value, str, key)
    if origin in (typing.Union, types.UnionType):
        members = families(args)
        family = value.get("family", next(iter(members))) if isinstance(value, dict) else None
        if not isinstance(family, str) or family not in members:
            hint = "; or name its file in extensions=[FILE.py]" if key in ("model", "objective") else ""
            raise UserError(f"{key}.family: {shown(family)} is unknown{nearest(shown(family), members)}{hint}")
        return _decode(value, members[family], key)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{key or 'configuration'}: expected an object, got {shown(value)}")
        value = getattr(hint, "upgrade", dict)(value)
        hints = type_hints(hint)
        for name in value:
            if name not in hints:
                raise _unknown_name(name, hint, key)
        decoded = {
            name: item
            if type(item) is int and accepts_integer(hint, name)
            else _decode(item, hints[name], f"{key}.{name}".lstrip("."))
            for name, item in value.items()
        }
        required = (f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING)
        missing = [f"{key}.{name}".lstrip(".") for name in required if name not in decoded]
        if missing:
            raise UserError(f"the key {', '.join(missing)} is missing")
        return typing.cast(type, hint)(**decoded)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(item, args[0], key) for item in value)
        if len(value) == len(args):
            return tuple(_decode(item, arg, key) for item, arg in zip(value, args, strict=True))
    elif origin is Literal:
        if value in args:
            return value
        raise UserError(f"{key}: {shown(value)} is not one of {', '.join(map(str, args))}")
    elif type(value) is hint:
        return value
    elif hint is float and type(value) is int and value.bit_length() < sys.float_info.max_exp:
        return float(value)
    elif hint is int and type(value) is float and value.is_integer() and abs(value) <= 2**53:  # exact: 1e6
        return int(value)
    raise UserError(f"{key}: expected {_describe(hint)}, got {shown(value)}")


def _unknown_name(name: str, cls: Any, key: str) -> UserError:
    """Return the error about a name that the dataclass of `key` does not have."""
    path, names = f"{key}.{name}".lstrip("."), [f"{key}.{field.name}".lstrip(".") for field in fields(cls)]
    if key.partition(".")[0] in _GROUPS or cls is Config:
        return UserError(f"unknown key '{path}'{synonyms.advice(path, names, _of_families(Config))}")
    return UserError(f"unknown key '{path}'{nearest(name, type_hints(cls))}")


def _without_none(args: tuple[Any, ...]) -> Any:
    """The type of an optional value, from the arguments of its union."""
    (hint,) = (arg for arg in args if arg is not types.NoneType)
    return hint


def families(union: Iterable[Any]) -> dict[str, type]:
    """Return the dataclasses of a union by their `family`, the registered ones included."""
    members = {}
    for member in union:
        names = typing.get_args(type_hints(member)["family"])
        members |= {names[0]: member} if names else extensions.configurations(member)
    return members


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a list" if typing.get_origin(hint) is tuple else str(hint))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their dotted paths."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
