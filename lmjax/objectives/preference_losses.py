"""Losses of preference pairs: a reward model, and direct preference optimization.

Shapes: B pairs, T positions.

Each loss returns a sum over pairs and the weight that divides it. A pair of weight 0 has no effect, whatever its
values are.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from lmjax.objectives.objective import Loss

DirectKind = Literal["sigmoid", "ipo", "hinge", "robust"]


def bradley_terry(
    chosen_B: Array,
    rejected_B: Array,
    weights_B: Array,
    *,
    margins_B: Array | None = None,
    centring: float = 0.0,
) -> Loss:
    """Compute the loss of a reward model (Ouyang et al. 2022, equation 1).

    A pair adds -log sigmoid(chosen - rejected - margin) + centring * (chosen + rejected)^2. The first term is the model
    of Bradley and Terry (1952).

    Args:
        chosen_B: Scores of the preferred answers.
        rejected_B: Scores of the other answers.
        weights_B: 1 for a pair, 0 for a blank row.
        margins_B: By how much the preferred answer should be ahead (Touvron et al. 2023, "Llama 2", section 3.2.2).
        centring: Coefficient of the term that keeps the scores near 0 (Eisenstein et al. 2023).

    Returns:
        The weight is the number of pairs. The sums are `accuracy`, pairs of which the preferred answer has the higher
        score, and `margin`, chosen - rejected.
    """
    chosen_B, rejected_B = _of_pairs(weights_B, chosen_B, rejected_B)
    difference_B = chosen_B - rejected_B
    (margins_B,) = _of_pairs(weights_B, jnp.zeros_like(difference_B) if margins_B is None else margins_B)
    loss_B = jax.nn.softplus(margins_B - difference_B)
    if centring:
        loss_B += centring * jnp.square(chosen_B + rejected_B)
    return _summed(loss_B, weights_B, {"accuracy": difference_B > 0, "margin": difference_B})


def sequence_logprobs(logprobs_BT: Array, mask_BT: Array, *, average: bool = False) -> Array:
    """Return the log-probability (B) of each response: the sum over its tokens.

    Args:
        logprobs_BT: log p of each token.
        mask_BT: 1 at the response tokens, the end token included.
        average: Return the mean over the tokens, as `ipo` expects. With means, the coefficient of `direct` has to be
            larger by about the number of tokens.
    """
    real_BT = mask_BT.astype(bool)
    sums_B = jnp.sum(jnp.where(real_BT, logprobs_BT, 0), axis=-1)
    return sums_B / jnp.maximum(jnp.sum(real_BT, axis=-1), 1) if average else sums_B


def direct(
    kind: DirectKind,
    chosen_B: Array,
    rejected_B: Array,
    weights_B: Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_nll_B: Array | None = None,
    nll_coefficient: float = 0.0,
) -> Loss:
    """Compute a loss of direct preference optimization, with x = beta * (chosen - rejected).

    - `sigmoid`: -log sigmoid(x) (Rafailov et al. 2023, "DPO", equation 7). With label smoothing e it is
      -(1 - e) log sigmoid(x) - e log sigmoid(-x) (Mitchell 2023).
    - `robust`: (-(1 - e) log sigmoid(x) + e log sigmoid(-x)) / (1 - 2 e), unbiased if a share e of the labels is wrong
      (Chowdhury et al. 2024). A pair may add a negative number.
    - `ipo`: (chosen - rejected - 1 / (2 beta))^2 (Azar et al. 2023, equation 17), with means over tokens.
    - `hinge`: max(0, 1 - x) (Zhao et al. 2023).

    Args:
        kind: The loss.
        chosen_B: log p of policy minus reference of the preferred answers: sums, or means (`sequence_logprobs`).
        rejected_B: The same of the other answers.
        weights_B: 1 for a pair, 0 for a blank row.
        beta: Coefficient of the KL to the reference.
        label_smoothing: Assumed share of wrong labels, below 0.5; for `sigmoid` and `robust`.
        chosen_nll_B: Mean negative log p of the tokens of the preferred answers.
        nll_coefficient: Coefficient of `chosen_nll_B` (Pang et al. 2024): keeps the preferred answers likely.

    Returns:
        The weight is the number of pairs. The sums are `accuracy`, pairs of which the preferred answer has the higher
        implied reward; `margin`, the difference of the implied rewards; `chosen_reward` and `rejected_reward`; `nll`,
        if given.
    """
    chosen_B, rejected_B = _of_pairs(weights_B, chosen_B, rejected_B)
    loss_B = _direct_by_pair(kind, chosen_B - rejected_B, beta=beta, label_smoothing=label_smoothing)
    chosen_reward_B, rejected_reward_B = implied_rewards(chosen_B, beta=beta), implied_rewards(rejected_B, beta=beta)
    by_pair = {
        "accuracy": chosen_B > rejected_B,
        "margin": chosen_reward_B - rejected_reward_B,
        "chosen_reward": chosen_reward_B,
        "rejected_reward": rejected_reward_B,
    }
    if chosen_nll_B is not None:
        (chosen_nll_B,) = _of_pairs(weights_B, chosen_nll_B)
        loss_B, by_pair = loss_B + nll_coefficient * chosen_nll_B, by_pair | {"nll": chosen_nll_B}
    return _summed(loss_B, weights_B, by_pair)


def implied_rewards(log_ratios_B: Array, *, beta: float) -> Array:
    """Return beta * log(policy / reference), the reward that a policy implies.

    Rafailov et al. 2023, section 4.
    """
    return beta * stop_gradient(log_ratios_B)


def _direct_by_pair(kind: DirectKind, difference_B: Array, *, beta: float, label_smoothing: float) -> Array:
    if kind == "ipo":
        return jnp.square(difference_B - 1 / (2 * beta))
    x_B = beta * difference_B
    if kind == "hinge":
        return jax.nn.relu(1 - x_B)
    right_B, wrong_B = jax.nn.softplus(-x_B), jax.nn.softplus(x_B)
    if kind == "robust":
        return ((1 - label_smoothing) * right_B - label_smoothing * wrong_B) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right_B + label_smoothing * wrong_B


def _of_pairs(weights_B: Array, *arrays_B: Array) -> tuple[Array, ...]:
    """Return arrays with 0 in blank rows, so that NaN there has no effect."""
    return tuple(jnp.where(weights_B > 0, x_B, 0) for x_B in arrays_B)


def _summed(loss_B: Array, weights_B: Array, by_pair: dict[str, Array]) -> Loss:
    sums = {name: stop_gradient(jnp.sum(weights_B * x_B)) for name, x_B in by_pair.items()}
    return Loss(jnp.sum(weights_B * loss_B), jnp.sum(weights_B), sums)
