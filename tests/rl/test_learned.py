"""Learned rewards are the scores of the reward model for the unpadded text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import GPTConfig
from lmjax.models.scalar import Scalar
from lmjax.rl import learned
from lmjax.rl.rollouts import Prompts

MODEL = Scalar(GPTConfig(layers=1, width=16, heads=2, context=16, vocab_size=12, dtype="float32", scan=False))
END = 11
PROMPTS = [[1, 2, 3], [4], [5, 6]]
ANSWERS = [[7, 8, END], [9, 10, 7, 8], [END]]  # the second one was cut


def scored(params, *, width: int) -> np.ndarray:
    """The scores with the prompts flush right in `width` places."""
    ids, tokens = np.zeros((3, width), np.int32), np.zeros((3, 4), np.int32)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids[row, width - len(prompt) :], tokens[row, : len(answer)] = prompt, answer
    lengths = np.asarray([len(prompt) for prompt in PROMPTS])
    mask_BP = np.arange(width) >= width - lengths[:, None]
    mask_RN = np.arange(4) < np.asarray([len(answer) for answer in ANSWERS])[:, None]
    return np.asarray(
        learned.scores(MODEL, params, Prompts(ids, mask_BP), jnp.asarray(tokens), jnp.asarray(mask_RN), end=END)
    )


@pytest.mark.slow
def test_the_score_is_that_of_the_text_alone_whatever_the_padding() -> None:
    """float32 sums over other widths: 1e-5."""
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), last_B=jnp.zeros(1, jnp.int32))["params"]
    params = {**params, "calibration": {"gain": jnp.float32(3.0), "bias": jnp.float32(-0.5)}}
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = [*prompt, *answer[:-1], END]
        scores = MODEL.apply({"params": params}, jnp.asarray([ids]), last_B=jnp.asarray([len(ids) - 1]))
        expected.append(float(np.asarray(scores)[0]))
    assert np.ptp(expected) > 0.01
    for width in (3, 6):
        np.testing.assert_allclose(scored(params, width=width), expected, rtol=1e-5, atol=1e-5)
