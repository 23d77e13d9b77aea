"""Seeds of random keys: one range, and one conversion."""

import operator
from typing import Any

import jax
import numpy as np
from jax import Array

from lmjax.config import UserError

LARGEST = 2**64 - 1
_WORD = 2**32


def check(seed: Any, name: str = "seed") -> int:
    """Return a seed as an integer.

    Args:
        seed: The seed.
        name: Name of the setting, for the message.

    Raises:
        UserError: It is not an integer from 0 to 2^64 - 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST:
        shown = "a large integer" if abs(number) > _WORD**4 else str(seed)[:40]
        raise UserError(f"{name}={shown} is not an integer from 0 to 2^64 - 1")
    return number


def random_key(seed: int) -> Array:
    """Return the random key of a seed; different seeds give different keys.

    For seeds below 2^32 it is `jax.random.key(seed)`, which ignores the higher bits of larger seeds.

    Raises:
        UserError: The seed is out of range.
    """
    high, low = divmod(check(seed), _WORD)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key
