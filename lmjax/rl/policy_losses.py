"""Losses of PPO and GRPO, as sums and weights.

Shapes: B rows, T positions of the responses.

A mask is 1 (or True) at the real tokens of a response. Each loss returns a sum and the weight that divides it: sums and
weights of microbatches add up to those of the minibatch, and the quotient does not depend on the division. The further
sums are over tokens; divide them by the sum `tokens`. Old log-probabilities and values, reference and advantages are
constants: they get no gradient.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from lmjax.objectives.objective import Loss
from lmjax.rl import estimates
from lmjax.rl.estimates import masked, masked_sum

Average = Literal["sequence", "token", "constant"]
LossKL = Literal["k2", "k3", "k3_ratio"]


def policy_loss(
    logprobs_BT: Array,
    old_BT: Array,
    advantages_BT: Array,
    mask_BT: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    average: Average = "token",
    width: int | None = None,
) -> Loss:
    """Compute the clipped surrogate loss (Schulman et al. 2017, "PPO", equation 7).

    A token adds -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) with ratio = exp(log p - log p_old).

    Args:
        logprobs_BT: log p of the response tokens, of the policy that is trained.
        old_BT: log p of the same tokens, of the policy that sampled them, by the same program.
        advantages_BT: Advantage of each token; (B, 1) if the tokens of an answer share one.
        mask_BT: 1 at real tokens.
        clip_low: Largest decrease of the ratio below 1 that is rewarded.
        clip_high: Largest increase above 1. More than `clip_low` lets rare tokens become likely (Yu et al. 2025,
            "DAPO", section 3.1).
        average: What the weight is; see `averaged`.
        width: Maximum number of response tokens, for `constant`.

    Returns:
        The sums `tokens`; `clipped`, tokens whose clipped term is the smaller one, which have no gradient; `ratio`;
        `approximate_kl`, squares of log(p / p_old), halved.
    """
    loss_BT, sums = _surrogate(logprobs_BT, old_BT, advantages_BT, mask_BT, (clip_low, clip_high))
    return Loss(*averaged(loss_BT, mask_BT, average, width=width), sums)


def group_policy_loss(
    logprobs_BT: Array,
    old_BT: Array,
    advantages_B: Array,
    mask_BT: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    average: Average = "constant",
    width: int | None = None,
    reference_BT: Array | None = None,
    coefficient: float = 0.0,
    kl: LossKL = "k3_ratio",
) -> Loss:
    """Compute the clipped surrogate plus a KL term (Shao et al. 2024, "GRPO", section 4.1).

    Args:
        logprobs_BT: As for `policy_loss`.
        old_BT: As for `policy_loss`.
        advantages_B: Advantage of each answer, relative to its group.
        mask_BT: 1 at real tokens.
        clip_low: As for `policy_loss`.
        clip_high: As for `policy_loss`.
        average: What the weight is; see `averaged`. `sequence` is GRPO as published; it favours long wrong answers.
        width: Maximum number of response tokens, for `constant`.
        reference_BT: log p of the same tokens, of the reference; required if there is a coefficient.
        coefficient: Coefficient of the KL term. With 0 the reference only adds the sum `kl`.
        kl: Estimator of the KL term, `estimates.kl_estimate`. The gradient of `k3` is that of another divergence;
            it is there for comparisons with other programs.

    Returns:
        The sums of `policy_loss`, and `kl`, if there is a reference: the estimates `k3` of KL(policy || reference), or
        those of the loss if it has a term.
    """
    loss_BT, sums = _surrogate(logprobs_BT, old_BT, advantages_B[:, None], mask_BT, (clip_low, clip_high))
    if reference_BT is not None:
        logprobs_BT, old_BT, reference_BT = (masked(x, mask_BT) for x in (logprobs_BT, old_BT, reference_BT))
        kl_BT = estimates.kl_estimate(kl if coefficient else "k3", logprobs_BT, reference_BT, old=old_BT)
        sums["kl"] = stop_gradient(masked_sum(kl_BT, mask_BT))
        if coefficient:
            loss_BT += coefficient * kl_BT
    assert reference_BT is not None or not coefficient, "the KL term needs log-probabilities of a reference"
    return Loss(*averaged(loss_BT, mask_BT, average, width=width), sums)


def value_loss(values_BT: Array, old_BT: Array, returns_BT: Array, mask_BT: Array, *, clip: float | None = 0.2) -> Loss:
    """Compute half the squared error of the values, averaged over tokens.

    With `clip`, a token adds the larger error of the value and of the value limited to old +- clip (Huang et al. 2022,
    "The 37 implementation details of PPO", detail 9). The clip is in units of the returns: scores whose deviation is
    much above 1 stop the value from learning.

    Args:
        values_BT: Values before each response token, of the model that is trained.
        old_BT: The same at the time of the rollout.
        returns_BT: Targets.
        mask_BT: 1 at real tokens.
        clip: Largest difference to the old value, or None.

    Returns:
        The weight is the number of tokens. The sums are `tokens` and `value_clipped`, tokens whose limited error is the
        larger one, which have no gradient.
    """
    values_BT, old_BT, returns_BT = (masked(x, mask_BT) for x in (values_BT, old_BT, returns_BT))
    old_BT, returns_BT = stop_gradient((old_BT, returns_BT))
    error_BT = jnp.square(values_BT - returns_BT)
    clipped_BT = jnp.zeros_like(error_BT, bool)
    if clip is not None:
        limited_BT = old_BT + jnp.clip(values_BT - old_BT, -clip, clip)
        limited_error_BT = jnp.square(limited_BT - returns_BT)
        clipped_BT = limited_error_BT > error_BT
        error_BT = jnp.where(clipped_BT, limited_error_BT, error_BT)
    loss, tokens = averaged(0.5 * error_BT, mask_BT, "token")
    return Loss(loss, tokens, {"tokens": tokens, "value_clipped": masked_sum(clipped_BT, mask_BT)})


def averaged(loss_BT: Array, mask_BT: Array, average: Average, *, width: int | None = None) -> tuple[Array, Array]:
    """Return the sum of a loss and the weight that divides it.

    - `token`: the mean over all tokens (Yu et al. 2025, section 3.3).
    - `sequence`: the mean over rows of the mean over the tokens of a row. A token of a long answer counts less.
    - `constant`: the sum over tokens, divided by rows * width. Every token counts the same, also in comparison with
      other updates (Liu et al. 2025, section 3).

    A row without real tokens counts nowhere.

    Args:
        loss_BT: Loss of each token.
        mask_BT: 1 at real tokens.
        average: One of the three.
        width: Maximum number of response tokens of a row, for `constant`; the same for all microbatches.
    """
    lengths_B = jnp.sum(mask_BT.astype(bool), axis=-1)
    rows = jnp.sum(lengths_B > 0).astype(jnp.float32)
    if average == "sequence":
        return jnp.sum(masked_sum(loss_BT, mask_BT, axis=-1) / jnp.maximum(lengths_B, 1)), rows
    if average == "token":
        return masked_sum(loss_BT, mask_BT), jnp.sum(lengths_B).astype(jnp.float32)
    assert width is not None, "the average `constant` needs the maximum number of response tokens"
    return masked_sum(loss_BT, mask_BT), rows * width


def _surrogate(
    logprobs_BT: Array, old_BT: Array, advantages_BT: Array, mask_BT: Array, clip: tuple[float, float]
) -> tuple[Array, dict[str, Array]]:
    """Return the loss of each token, 0 at padding, and the further sums."""
    # Masked before exp: a difference of padding may overflow, and 0 * inf in the gradient is NaN.
    log_ratio_BT = masked(logprobs_BT, mask_BT) - stop_gradient(masked(old_BT, mask_BT))
    advantages_BT = stop_gradient(masked(advantages_BT, mask_BT))
    ratio_BT = jnp.exp(log_ratio_BT)
    plain_BT = -ratio_BT * advantages_BT
    limited_BT = -jnp.clip(ratio_BT, 1 - clip[0], 1 + clip[1]) * advantages_BT
    clipped_BT = limited_BT > plain_BT
    sums = {
        "tokens": masked_sum(jnp.ones_like(ratio_BT), mask_BT),
        "clipped": masked_sum(clipped_BT, mask_BT),
        "ratio": masked_sum(ratio_BT, mask_BT),
        "approximate_kl": masked_sum(0.5 * jnp.square(log_ratio_BT), mask_BT),
    }
    return jnp.where(clipped_BT, limited_BT, plain_BT), stop_gradient(sums)
