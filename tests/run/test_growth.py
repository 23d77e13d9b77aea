"""Rows of new tokens: means of the others, the same for the same seed, and nothing else changed."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import GPTConfig
from lmjax.models import registry
from lmjax.run import growth

AXES = registry.logical_axes(GPTConfig())


@pytest.mark.slow
def test_new_rows_are_means_with_noise() -> None:
    rng = np.random.default_rng(0)
    leaves = {
        "token_embedding/embedding": rng.normal(3, 1, (400, 8)).astype(np.float32),
        "head/kernel": rng.normal(0, 2, (8, 400)).astype(np.float32),
        "blocks/mlp/up/kernel": np.ones((2, 8, 4), np.float32),
        "other/embedding": np.ones((400, 2), np.float32),
    }
    shapes = {name: jnp.zeros(leaf.shape) for name, leaf in leaves.items()}
    shapes |= {"token_embedding/embedding": jnp.zeros((404, 8)), "head/kernel": jnp.zeros((8, 404))}
    result, lines = growth.grown(leaves, shapes, AXES, seed=1)
    assert {name: leaf.shape for name, leaf in result.items()} == {name: leaf.shape for name, leaf in shapes.items()}
    assert [line.split()[4] for line in lines] == ["token_embedding/embedding", "head/kernel"]
    assert all("grown by 4 tokens" in line for line in lines)
    for name, axis in (("token_embedding/embedding", 0), ("head/kernel", 1)):
        rows, old = np.moveaxis(result[name], axis, 0), np.moveaxis(leaves[name], axis, 0)
        np.testing.assert_array_equal(rows[:400], old)
        noise = rows[400:] - old.mean(0)
        assert 0.5 < noise.std() / (growth.NOISE * old.std()) < 1.5  # 32 normal numbers
        assert len({row.tobytes() for row in rows[400:]}) == 4
    again, _ = growth.grown(leaves, shapes, AXES, seed=1)
    other, _ = growth.grown(leaves, shapes, AXES, seed=2)
    np.testing.assert_array_equal(again["head/kernel"], result["head/kernel"])
    assert (other["head/kernel"][:, 400:] != result["head/kernel"][:, 400:]).all()
    assert not (result["token_embedding/embedding"][400:] == result["head/kernel"][:, 400:].T).any()


def test_a_model_with_room_stays_as_it_is() -> None:
    leaves = {"token_embedding/embedding": np.ones((9, 2), np.float32)}
    result, lines = growth.grown(leaves, {"token_embedding/embedding": jnp.zeros((9, 2))}, AXES, seed=0)
    assert result["token_embedding/embedding"] is leaves["token_embedding/embedding"]
    assert lines == []
