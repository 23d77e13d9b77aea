"""Reading the texts of files."""

import json
from pathlib import Path
from typing import Any

from lmjax.config import DataConfig
from lmjax.data.sources import streams

TEXTS = ["First text.\n", "2024-01-01", "Zwölf\r\nBoxkämpfer 🙂", "null", "last"]


def read(path: Path | str, **options: Any) -> list[str]:
    data = DataConfig(files=(str(path),), **options)
    pieces = list(streams.documents(streams.sources(data)[0], data))
    assert all(begins for _, begins in pieces)
    return [text for text, _ in pieces]


def lines_of(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()
