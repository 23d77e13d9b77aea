"""Seeds: one range, one conversion, different keys."""

from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.system.seeds import LARGEST, check, random_key


def words(seed: int) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(random_key(seed))).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_small_seeds_give_the_keys_of_jax(seed: int) -> None:
    assert words(seed) == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())


def test_seeds_that_differ_in_any_bit_give_different_keys() -> None:
    seeds = [0, *(2**bit for bit in range(64)), LARGEST]
    assert len({words(seed) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("seed", [-1, LARGEST + 1, 1 << 99999, 1.0, "1", None, True, float("nan")], ids=type)
def test_others_are_refused_with_the_name_of_the_setting(seed: Any) -> None:
    with pytest.raises(UserError, match=r"^--seed=.* is not an integer from 0 to 2\^64 - 1$"):
        check(seed, "--seed")


def test_integers_of_numpy_are_integers() -> None:
    assert check(np.uint64(LARGEST)) == LARGEST
    assert words(int(np.int32(7))) == words(7)
