"""JSON as every reader accepts it (RFC 8259): a number that is not finite becomes null."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.system.files import write_text


def write_json(path: Path, value: Any) -> None:
    """Write a value so that a crash leaves either the old file or the new file."""
    # Escapes also hold the half characters that stand for a file name which is not UTF-8.
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Convert a value to JSON with readable characters.

    Args:
        value: Text, numbers, NumPy scalars, booleans, None, and lists, tuples and mappings of these.
        indent: Number of blanks of each level (None: one line).
    """
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value of JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
