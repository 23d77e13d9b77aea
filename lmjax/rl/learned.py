"""Learned rewards: the scores of a reward model for the answers of a policy.

Shapes: R answers, P positions of the prompts, N new tokens, as in `rollouts`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lmjax.models.scalar import Scalar
from lmjax.rl import estimates, rollouts
from lmjax.rl.rollouts import Prompts


def scores(model: Scalar, params: Any, prompts: Prompts, tokens_RN: Array, mask_RN: Array, *, end: int) -> Array:
    """Return the calibrated score (R) of each answer, read at its end.

    The last token of an answer is read as `end`. An answer that was cut is thus scored as if it ended there: the model
    has never seen a text without an end. An answer without tokens has the score 0.

    Args:
        model: The reward model.
        params: Its parameters.
        prompts: The prompts.
        tokens_RN: The tokens of the answers.
        mask_RN: True at tokens, False at padding.
        end: The id that ends an answer in the texts that the model learned from.
    """
    is_last_RN = estimates.last_token(mask_RN)
    texts: dict[str, Any] = rollouts.sequences(prompts, jnp.where(is_last_RN, end, tokens_RN))
    scores_RT = model.apply({"params": params}, **texts, method=Scalar.at_every_place)
    assert isinstance(scores_RT, jax.Array)
    return jnp.sum(jnp.where(is_last_RN, scores_RT[:, prompts.ids_BP.shape[1] :], 0), axis=1)
