"""A small corpus of documents, and the configuration that prepares it."""

from pathlib import Path
from typing import Any

from lmjax.config import DataConfig, TokenizerConfig
from lmjax.data.store import store
from lmjax.data.store.store import Store

BYTES = TokenizerConfig("bytes")


def documents(n: int) -> list[str]:
    return [f"Document {i}: {'é' * (i % 7)} some words\nand {i * i} more." for i in range(n)]


def configuration(folder: Path, **options: Any) -> DataConfig:
    path = folder / "a.txt"
    if not path.exists():
        path.write_text("\n\n".join(documents(100)), encoding="utf-8")
    return DataConfig(**{"files": (str(path),), "tokenizer": BYTES, "cache": str(folder / "cache"), **options})


def split_up(tokens: store.Tokens, made: Store) -> list[str]:
    """The documents of a stream, their end_of_text taken off."""
    ends = [*tokens.starts[1:], len(tokens.ids)]
    parts = [tokens.ids[start:end] for start, end in zip(tokens.starts, ends, strict=True)]
    assert all(part[-1] == made.tokenizer.end_of_text for part in parts)
    return [made.tokenizer.decode(part[:-1]) for part in parts]
