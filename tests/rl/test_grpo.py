"""Advantages of groups, as `objective.advantage` selects them."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import GRPOConfig
from lmjax.rl import grpo

SCORES = np.float32([1, 0, 0.5, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("mean", [0.625, -0.375, 0.125, -0.375]),
        ("deviation", np.float32([0.625, -0.375, 0.125, -0.375]) / np.std([1, 0, 0.5, 0], ddof=1)),
        ("leave_one_out", [0.833333, -0.5, 0.166667, -0.5]),
    ],
)
def test_the_advantage_is_relative_to_its_group(advantage: str, expected: list[float]) -> None:
    """The fixed values are those of TRL and tunix, rounded to 1e-6; equal rewards have no advantage."""
    config = GRPOConfig(group=4, advantage=advantage)  # type: ignore[arg-type]
    relative = np.asarray(grpo.relative(jnp.asarray(SCORES), config))
    np.testing.assert_allclose(relative[:4], expected, atol=2e-6)
    np.testing.assert_array_equal(relative[4:], 0)
