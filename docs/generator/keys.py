"""The table of configuration keys."""

import typing
from collections.abc import Iterable
from dataclasses import is_dataclass

from generator.text import cell, escape, table
from lmjax.config import Config
from lmjax.config.documentation import Key, documented_keys, summary

HEADER = ("key", "type", "default", "range", "meaning")


def config_keys() -> str:
    """Every key of a configuration with its type, default and meaning, one section for each dataclass."""
    scalars = [key for key in documented_keys(Config) if "." not in key.name]
    blocks = ["### The run", escape(summary(Config)), _table(scalars)]
    for name, hint in typing.get_type_hints(Config).items():
        members = [member for member in typing.get_args(hint) or (hint,) if is_dataclass(member)]
        for member in members:
            family = getattr(member, "family", "")
            label = f"{name}.family={family}" if family else "a registered family"
            blocks.append(f"### {name} ({label})" if len(members) > 1 else f"### {name}")
            blocks += [escape(summary(member)), _table(documented_keys(member, f"{name}."))]
    return "\n\n".join(blocks) + "\n"


def _table(keys: Iterable[Key]) -> str:
    return table(
        HEADER, [(_name(key), _type(key), f"`{key.default}`", cell(key.limits), cell(key.meaning)) for key in keys]
    )


def _name(key: Key) -> str:
    return f"`{key.name}`" + (f" (`{key.choice}`)" if key.choice else "")


def _type(key: Key) -> str:
    kind = ", ".join(f"`{option}`" for option in key.options) or (
        key.type if key.type.startswith("list of") else f"`{key.type}`"
    )
    return f"{kind}, or a registered name" if key.is_open else kind
