"""Bytes of the text of ids, where a token has no bytes of its own.

Some tokenizers decode the first ids of a text differently: LLaMA's removes a blank there, and WordPiece keeps the mark
of a continued word. The bytes of a part of a document are therefore what it adds to the ids before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BEFORE = 16  # ids before a part that are decoded with it
_DECODED = 100_000  # ids that are decoded at a time

Ids = Sequence[int] | np.ndarray


def count(ids: np.ndarray, decode: Callable[[Any], str], *, end: int | None, before: Ids = ()) -> int:
    """Count the bytes of the text of ids.

    Args:
        ids: The ids.
        decode: The text of ids.
        end: Id that ends a document; it is no text.
        before: Ids that precede them.
    """
    first = np.asarray(before, np.int64)
    first = first[np.flatnonzero(first == end)[-1] + 1 :] if end in first else first
    documents = np.split(ids, np.flatnonzero(ids == end) + 1)
    return sum(_count(part[part != end], decode, first if i == 0 else ()) for i, part in enumerate(documents))


def _count(document: np.ndarray, decode: Callable[[Any], str], before: Ids) -> int:
    """Count the bytes of a part of one document."""
    total = 0
    for start in range(0, len(document), _DECODED):
        part, before = document[start : start + _DECODED], before[-BEFORE:]
        total += len(decode([*before, *part]).encode()) - len(decode([*before]).encode())
        before = part
    return total
