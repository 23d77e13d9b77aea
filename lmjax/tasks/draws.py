"""Random choices that depend only on a name, on every machine and version."""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A sequence of random choices: mixed-radix digits of hashes of a name.

    The first hash is of the name itself, later ones are of the name followed by a number. A digit is drawn only while
    64 more bits than it needs remain, so the bias of a value is at most 2^-64.
    """

    def __init__(self, name: str) -> None:
        self.name, self.blocks = name, 0
        self.left, self.room = 0, 1

    def below(self, n: int) -> int:
        """Draw an integer from 0 to n - 1."""
        if self.room < n << 64:
            name = f"{self.name}\0{self.blocks}" if self.blocks else self.name
            self.left, self.room = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"), 1 << 256
            self.blocks += 1
        self.left, digit = divmod(self.left, n)
        self.room //= n
        return digit

    def of(self, items: Sequence[T]) -> T:
        """Draw an item."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """Draw `count` distinct items in random order (the first steps of a Fisher-Yates shuffle)."""
        left = list(items)
        for i in range(count):
            j = i + self.below(len(left) - i)
            left[i], left[j] = left[j], left[i]
        return left[:count]


def held_out(key: str, share: float) -> bool:
    """Whether an item is held out. Only a hash of its key decides; a larger share adds items."""
    digest = hashlib.sha256(json.dumps(["held out", key]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
