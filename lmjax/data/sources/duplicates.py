"""Documents that occurred before in a source: with the same text, or with nearly the same.

Texts are the same if they are equal up to white space. They are nearly the same if the Jaccard similarity of their
shingles, the runs of five words in lower case, is at least 0.8 by the estimate of MinHash with 128 permutations (Broder
1997; Lee et al. 2022, "Deduplicating training data makes language models better", section 4.2). The first occurrence
is kept.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

from lmjax.system.extras import missing

Choice = Literal["exact", "near"]
Piece = tuple[str, bool]  # text, and whether a document begins with it

LARGEST = 1 << 23  # characters of a document that is compared; a longer one is kept
SHINGLE = 5  # words
PERMUTATIONS = 128
THRESHOLD = 0.8


def identity(choice: Choice) -> list[Any]:
    """Return what decides which documents are left out, as a JSON value."""
    return [choice] if choice == "exact" else [choice, SHINGLE, PERMUTATIONS, THRESHOLD]


class Seen(Protocol):
    """Texts that occurred before."""

    def add(self, text: str) -> bool:
        """Remember a text; return whether it is new."""
        ...


class _Exact:
    """Texts by their hash. Needs about 100 bytes of memory for each."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, text: str) -> bool:
        digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        is_new = digest not in self._digests
        self._digests.add(digest)
        return is_new


class _Near:
    """Texts by their MinHash. Needs about 3 kB of memory for each.

    Raises:
        UserError: The package datasketch is not installed.
    """

    def __init__(self) -> None:
        try:
            import datasketch  # an optional package
        except ModuleNotFoundError:
            raise missing("data.deduplicate=near or --near", "datasketch", "data") from None
        self._library: Any = datasketch
        self._index: Any = datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
        self._sketches: list[Any] = []
        self._short = _Exact()

    def add(self, text: str) -> bool:
        words = text.lower().split()
        if len(words) < SHINGLE:
            return self._short.add(text)
        sketch = self._library.MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch({shingle.encode() for shingle in shingles(words)})
        if any(sketch.jaccard(self._sketches[number]) >= THRESHOLD for number in self._index.query(sketch)):
            return False
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return True


def nothing_seen(choice: Choice) -> Seen:
    """Return an empty memory of texts.

    Raises:
        UserError: An optional package is missing.
    """
    return _Near() if choice == "near" else _Exact()


def shingles(words: list[str]) -> Iterator[str]:
    """Yield the runs of five words."""
    return (" ".join(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1))


def without(pieces: Iterable[Piece], choice: Choice, count: Any) -> Iterator[Piece]:
    """Yield the documents that did not occur before.

    Args:
        pieces: The documents in pieces (text, whether a document begins with it).
        choice: `exact` or `near`.
        count: Its `duplicates` is increased for each document that is left out.

    Raises:
        UserError: An optional package is missing.
    """
    seen = nothing_seen(choice)
    for held, is_complete in _documents(pieces):
        if not is_complete or seen.add("".join(text for text, _ in held)):
            yield from held
        else:
            count.duplicates += 1


def _documents(pieces: Iterable[Piece]) -> Iterator[tuple[list[Piece], bool]]:
    """Yield the pieces of each document, and whether they are all of it."""
    held: list[Piece] = []
    size, is_long = 0, False
    for piece in pieces:
        if piece[1] and held:
            yield held, not is_long
        if piece[1]:
            held, size, is_long = [], 0, False
        held.append(piece)
        size += len(piece[0])
        if size > LARGEST or is_long:
            is_long = True
            yield held, False
            held = []
    if held:
        yield held, not is_long
