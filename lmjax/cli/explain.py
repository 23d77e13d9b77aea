"""`lmjax explain`: the meaning of configuration keys, groups of keys and presets."""

import argparse
import ast
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from lmjax.config import Config, UserError, presets, synonyms
from lmjax.config.codec import families, keys, unknown_key, written
from lmjax.config.documentation import Key, documented_keys, summary
from lmjax.config.errors import any_of

_KINDS = {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}
_CONSTANTS = {"True": "true", "False": "false", "None": "none", "()": "[]"}
_COLUMN = 44  # of the meanings in a list of keys
_MOST = 6  # presets of one value that are named


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax explain`."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="KEY | GROUP | CONFIG",
        help="a key (schedule.peak), a group of keys (schedule), a family (objective.family=dpo) or a configuration "
        "(quickstart); without one: the groups",
    )
    parser.set_defaults(function=_explain)


def _explain(options: argparse.Namespace) -> int:
    print("\n\n".join(map(explanation, options.names)) if options.names else groups())
    return 0


class HelpAction(argparse.Action):
    """`--help`, and `--help KEY`, which explains a key."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        text = "show this text, or explain a key, a group of keys or a configuration"
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", metavar="KEY", help=text)

    def __call__(self, parser: argparse.ArgumentParser, _: Any, name: Any, option_string: Any = None) -> NoReturn:
        """Print the text and exit."""
        if name is None:
            parser.print_help()
            parser.exit()
        try:
            print(explanation(name))
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
        parser.exit()


# ---- Keys -----------------------------------------------------------------------------------------------------------


def groups() -> str:
    """Return the list of the groups of keys, of all families."""
    lines = []
    for name, hint in typing.get_type_hints(Config).items():
        members = [member for member in typing.get_args(hint) or (hint,) if is_dataclass(member)]
        for member in members:
            if getattr(member, "family", "other"):  # else the base class of the user's own
                group = f"{name}.family={_family(member)}" if len(members) > 1 else name
                lines.append(_listed(group, _first_sentence(summary(member))))
    scalars = [_line(key) for key in documented_keys(Config) if "." not in key.name]
    return "\n".join([*scalars, *lines, "", "`lmjax explain GROUP` lists the keys of a group."])


def explanation(name: str) -> str:
    """Return the explanation of a key, a group, a family or a configuration.

    Raises:
        UserError: There is none of this name.
    """
    name, every = name.removesuffix(".family"), list(documented_keys(Config))
    if named := [key for key in every if key.name == name]:
        return _key(named)
    if inside := [key for key in every if key.name.startswith(f"{name}.")]:
        return _group(name, inside)
    if any(key.choice == name for key in every):
        return _family_keys(name)
    if name in presets.names() or name.endswith((".py", ".json")):
        return _configuration(name)
    if named := [key for key in every if key.name == synonyms.SYNONYMS.get(name)]:
        return f"{name}: the name of another tool for\n{_key(named)}"
    if name not in synonyms.SYNONYMS and presets.has_similar(name):
        raise presets.unknown(name)
    raise unknown_key(name, Config())


def _key(named: Sequence[Key]) -> str:
    """Return the explanation of a key, one for families in which it is the same."""
    kinds: dict[tuple[str, ...], list[Key]] = {}
    for key in named:
        kinds.setdefault((_type(key), _default(key), key.limits, key.meaning), []).append(key)
    lines = []
    for (kind, default, limits, meaning), equal in kinds.items():
        choices = f" with {synonyms.settings(key.choice for key in equal)}" if equal[0].choice else ""
        lines += [f"{named[0].name}{choices}", _wrapped(meaning, "  ")]
        rows = (("type", kind), ("default", default), ("range", limits))
        lines += [f"  {label:<8} {text}" for label, text in rows if text]
    return "\n".join([*lines, *_set_by(named[0].name)])


def _set_by(name: str) -> Iterator[str]:
    """Yield a line for each value that presets give a key; the others have the default."""
    values: dict[str, list[str]] = {}
    for preset in presets.names():
        changed = dict(_changes(presets.load(preset), Config()))
        if name in changed:
            values.setdefault(changed[name], []).append(preset)
    for value, names in values.items():
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        yield f"  set to   {value} by {', '.join(names[:_MOST])}{more}"


def _group(name: str, inside: Sequence[Key]) -> str:
    """Return the list of the keys of a group, or of the families of a union."""
    choices = list(dict.fromkeys(key.choice for key in inside if key.choice.startswith(f"{name}.family=")))
    if choices:
        lines = [_listed(choice, _first_sentence(_summary_of(choice))) for choice in choices]
        return "\n".join([f"{name}: one of", *lines, "", f"`lmjax explain {choices[0]}` lists the keys of a family."])
    return "\n".join([f"{name}: {_summary_of(name)}", *map(_line, dict.fromkeys(inside))])


def _family_keys(name: str) -> str:
    """Return the list of the keys of a family, and of the unions inside it."""
    inside = list(documented_keys(_hint_of(name), f"{name.partition('.family=')[0]}."))
    unions = dict.fromkeys(key.choice.partition(".family=")[0] for key in inside if key.choice)
    lines = [_line(key) for key in inside if not key.choice]
    lines += [_listed(union, f"One of several families (`lmjax explain {union}`).") for union in unions]
    return "\n".join([f"{name}: {_summary_of(name)}", *lines])


def _summary_of(name: str) -> str:
    return summary(_hint_of(name))


def _hint_of(name: str) -> Any:
    """Return the type of a group such as `parallel.mesh`, or of `model.family=rnn`."""
    path, _, family = name.removesuffix(".family").partition(".family=")
    hint: Any = Config
    for part in path.split("."):
        hints = [typing.get_type_hints(member) for member in typing.get_args(hint) or (hint,)]
        hint = next(fields[part] for fields in hints if part in fields)
    return families(typing.get_args(hint))[family] if family else hint


def _family(member: Any) -> str:
    return getattr(member, "family", "")


def _type(key: Key) -> str:
    kind = any_of(key.options) or (key.type if key.type.startswith("list of") else _in_words(key.type))
    return f"{kind}, or a registered name" if key.is_open else kind


def _in_words(kind: str) -> str:
    """Return `list of (integer, number)` of `tuple[tuple[int, float], ...]`."""
    node = ast.parse(kind, mode="eval").body
    if isinstance(node, ast.BinOp):
        return f"{_in_words(ast.unparse(node.left))}, or none"
    if not isinstance(node, ast.Subscript):
        return _KINDS.get(kind, kind)
    parts = list(map(ast.unparse, node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]))
    if parts[-1] == "...":
        return f"list of {_in_words(parts[0])}"
    return f"({', '.join(map(_in_words, parts))})"


def _line(key: Key) -> str:
    return _listed(f"{key.name}={_default(key)}", _first_sentence(key.meaning))


def _default(key: Key) -> str:
    return _CONSTANTS.get(key.default, key.default.strip("'"))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text)[0]


def _listed(name: str, text: str) -> str:
    """Return a line of a list; a long name has a line of its own."""
    text = _wrapped(text, " " * (_COLUMN + 2))
    return f"{name}\n{text}" if len(name) > _COLUMN else f"{name:<{_COLUMN}}  {text.lstrip()}"


def _wrapped(text: str, indent: str) -> str:
    width = max(shutil.get_terminal_size((100, 24)).columns, len(indent) + 30)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


# ---- Configurations -------------------------------------------------------------------------------------------------


def _configuration(name: str) -> str:
    """Return the docstring of a configuration, and its changes of the defaults."""
    lines = [f"  {key}={value}" for key, value in _changes(presets.load(name), Config())]
    return "\n".join([f"{name}: {presets.docstring(name)}".rstrip(": "), "", "changes of the defaults:", *lines])


def _changes(config: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys with other values than the defaults, and these as a shell takes them."""
    for field in fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if is_dataclass(value):
            if type(value) is not type(usual):
                usual = type(value)()
                yield f"{prefix}{field.name}.family", _family(value)
            yield from _changes(value, usual, f"{prefix}{field.name}.")
        elif value != usual and field.name != "family":
            yield prefix + field.name, shlex.quote(written(value))


def commented(config: Config) -> str:
    """Return every key of a configuration with its meaning, to edit and to read with `@FILE`."""
    meanings = {(key.name, key.choice): key for key in documented_keys(Config)}
    lines = [
        f"# Every key of the configuration {config.name} with its meaning. Written to a file, it can be edited and",
        "# used: python train.py @FILE. Each line is a change of the command line, quoted as for a shell.",
    ]
    for key in keys(config):
        value, choice = _value(config, key)
        documented = meanings.get((key, choice)) or meanings.get((key, ""))
        lines += ["", *([_comment(documented)] if documented else []), f"{key}={shlex.quote(written(value))}"]
    return "\n".join(lines) + "\n"


def _value(config: Config, key: str) -> tuple[Any, str]:
    """Return the value of a key, and the last setting that selects its family."""
    value: Any = config
    choice, path = "", ""
    for name in key.split("."):
        value = getattr(value, name)
        path = f"{path}.{name}".lstrip(".")
        if hasattr(value, "family"):
            choice = f"{path}.family={value.family}"
    return value, choice


def _comment(key: Key) -> str:
    facts = ", ".join(filter(None, [_type(key), f"default {_default(key) or 'empty'}", key.limits]))
    return textwrap.fill(f"{key.meaning} ({facts})", 110, initial_indent="# ", subsequent_indent="# ")
