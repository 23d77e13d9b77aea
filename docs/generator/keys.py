"""The table of configuration keys."""

import ast
import dataclasses
import typing
from typing import Any

from generator.fields import class_node, fields, summary
from generator.text import cell, table

HEADER = ("key", "type", "default", "range", "meaning")


def config_keys() -> str:
    """Every key of a configuration with its type, default and meaning, one section for each dataclass."""
    from lmjax.config import Config

    hints = typing.get_type_hints(Config)
    groups = {name: [t for t in typing.get_args(hint) or (hint,) if _is_config(t)] for name, hint in hints.items()}
    scalars = [row for row in _key_rows(Config, "") if not groups[row[0].strip("`")]]
    blocks = ["### The run", summary(Config), table(HEADER, scalars)]
    for name, members in groups.items():
        for member in members:
            family = getattr(member, "family", "")
            label = f"{name}.family={family}" if family else "a registered family"
            blocks.append(f"### {name} ({label})" if len(members) > 1 else f"### {name}")
            blocks += [summary(member), table(HEADER, _key_rows(member, f"{name}."))]
    return "\n\n".join(blocks) + "\n"


def _is_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _key_rows(cls: Any, prefix: str) -> list[tuple[str, ...]]:
    """The rows of a dataclass; those of a nested one follow its key."""
    from lmjax.config.ranges import field_ranges

    rows, hints, ranges = [], typing.get_type_hints(cls), field_ranges(cls)
    for name, field in fields(*class_node(cls)).items():
        hint, key = hints[name], f"{prefix}{name}"
        inner = next((t for t in typing.get_args(hint) if _is_config(t)), None)
        if prefix and _is_config(hint):
            rows += _key_rows(hint, f"{key}.")
            continue
        kind = _type(field.annotation)
        if prefix and inner is not None:
            kind = f"list of ({', '.join(fields(*class_node(inner)))})"
        limits = ", ".join(field_range.short for field_range in ranges[name])
        rows.append((f"`{key}`", kind, f"`{field.default}`", cell(limits), cell(field.doc)))
        if prefix and inner is not None:
            rows += _key_rows(inner, f"{key}[].")
    return rows


def _type(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "str":
        return f"{_type(annotation.left)}, or a registered name"
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        options = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return ", ".join(f"`{ast.literal_eval(option)}`" for option in options)
    return f"`{ast.unparse(annotation)}`"
