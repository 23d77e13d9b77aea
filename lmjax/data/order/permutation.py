"""A keyed permutation of the integers below a size, and its inverse."""

from typing import Any

import numpy as np

_ROUNDS = 12  # fewer leave a bias in the orders of a handful of windows


def permute(index: Any, size: Any, key: Any, *, inverse: bool = False) -> np.ndarray:
    """Permute 0..size-1 by a key, element by element (shapes broadcast), int64.

    A Feistel network on pairs (left, right) of Z_a x Z_b, with a * b barely above `size`, and cycle walking:
    a result outside is permuted again until it is inside (Black and Rogaway 2002, sections 3 and 4).
    """
    index, size, key = np.broadcast_arrays(
        np.asarray(index, np.int64), np.asarray(size, np.int64), np.asarray(key, np.uint64)
    )
    shape, index, size, key = index.shape, index.ravel(), size.ravel(), key.ravel()
    a = np.ceil(np.sqrt(size)).astype(np.int64)
    b = -(-size // a)
    result, todo = index.copy(), np.arange(len(index))
    while len(todo):
        left, right = np.divmod(result[todo], b[todo])
        for step in range(_ROUNDS)[:: -1 if inverse else 1]:
            sign = -1 if inverse else 1
            if step % 2 == 0:
                left = (left + sign * _draw(right, key[todo], step, a[todo])) % a[todo]
            else:
                right = (right + sign * _draw(left, key[todo], step, b[todo])) % b[todo]
        result[todo] = left * b[todo] + right
        todo = todo[result[todo] >= size[todo]]
    return result.reshape(shape)


def _draw(value: np.ndarray, key: np.ndarray, step: int, below: np.ndarray) -> np.ndarray:
    mixed = _mix(_mix(value.astype(np.uint64) + np.uint64(step << 56)) ^ key)
    return (mixed % below.astype(np.uint64)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood 2014): one step of the sequence from state `x`."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permutation_key(purpose: int, seed: int, source: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    """Return the keys of a purpose, a seed, sources and epochs, uint64."""
    key = _mix(np.asarray([purpose], np.uint64)) ^ np.uint64(seed % 2**64)
    key = _mix(_mix(key) ^ np.atleast_1d(source).astype(np.uint64))
    key = _mix(key ^ np.atleast_1d(epoch).astype(np.uint64))
    return key.reshape(np.broadcast_shapes(source.shape, epoch.shape))
