"""Random choices that hang on nothing but a name: the same on every machine and in every version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Digits of hashes of the name in mixed radix: first of the name's own, later of the name with a number behind it.

    A digit is drawn while 64 bits more than it needs are left, so that no value is more likely by above 2^-64.
    """

    def __init__(self, name: str) -> None:
        self.name, self.blocks = name, 0
        self.left, self.room = 0, 1

    def below(self, n: int) -> int:
        """One of 0 .. n - 1."""
        if self.room < n << 64:
            name = f"{self.name}\0{self.blocks}" if self.blocks else self.name
            self.left, self.room = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"), 1 << 256
            self.blocks += 1
        self.left, digit = divmod(self.left, n)
        self.room //= n
        return digit

    def of(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different ones of the items, in a random order (the first steps of Fisher and Yates's shuffle)."""
        left = list(items)
        for i in range(count):
            j = i + self.below(len(left) - i)
            left[i], left[j] = left[j], left[i]
        return left[:count]
