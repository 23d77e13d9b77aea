"""Rewards of tokens, advantages and returns of an episode.

Shapes: B rows, T positions, P prompts, G answers of each prompt. Rows of a group are adjacent: row i answers prompt
i // G.

A mask is 1 (or True) at the real tokens of a response. Results are 0 at padding. Statistics are over all rows of the
arrays: call these functions on the complete episode, before it is divided into minibatches.
"""

import jax.numpy as jnp
from jax import Array, lax

from lmjax.rl.estimates import last_token, masked, masked_mean

Pair = tuple[Array, Array]

# ---- Rewards -----------------------------------------------------------------------------------------------


def token_rewards(scores_B: Array, log_ratios_BT: Array, mask_BT: Array, *, coefficient: Array | float) -> Array:
    """Return the rewards (B, T): a KL penalty at each token, the score at the last one.

    The penalty is coefficient * log(old / reference), the estimator k1 (Ziegler et al. 2019, equation 2). A row without
    real tokens gets no reward.

    Args:
        scores_B: Score of each answer.
        log_ratios_BT: log p of the sampling policy minus log p of the reference.
        mask_BT: 1 at real tokens.
        coefficient: Coefficient of the penalty, in units of the score per nat.
    """
    penalty_BT = -coefficient * masked(log_ratios_BT, mask_BT)
    return penalty_BT + jnp.where(last_token(mask_BT), scores_B[:, None], 0)


def replace_unfinished(scores_B: Array, finished_B: Array, *, score: float) -> Array:
    """Return the scores, with a fixed score for answers that did not end.

    As in Ziegler et al. 2019, section 3.1.

    Args:
        scores_B: Score of each answer.
        finished_B: Whether the answer ended by itself, not at the maximum length.
        score: Score of the others; below every score that is expected of a complete answer.
    """
    return jnp.where(finished_B.astype(bool), scores_B, score)


def penalize_unfinished(scores_B: Array, finished_B: Array, *, penalty: float) -> Array:
    """Return the scores, reduced by a penalty for answers that did not end."""
    return scores_B - jnp.where(finished_B.astype(bool), 0, penalty)


def adapt_coefficient(
    coefficient: Array | float,
    kl: Array | float,
    *,
    episodes: int,
    target: float,
    horizon: float,
    limit: float = 0.2,
) -> Array:
    """Return the next coefficient of the KL penalty (Ziegler et al. 2019, section 2.2).

    The coefficient is multiplied by 1 + clip(kl / target - 1, -limit, limit) * episodes / horizon. It is part of the
    state of a run.

    Args:
        coefficient: Present coefficient.
        kl: Mean KL of an answer to the reference, in nats.
        episodes: Number of answers in the batch.
        target: KL to reach, in nats per answer.
        horizon: Number of answers in which the largest error changes the coefficient by a factor of about exp(limit).
        limit: Largest relative error that counts; less than horizon / episodes, so that the coefficient stays positive.
    """
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1, -limit, limit)
    return jnp.asarray(coefficient, jnp.float32) * (1 + error * (episodes / horizon))


# ---- Advantages of tokens ------------------------------------------------------------------------------------


def gae(rewards_BT: Array, values_BT: Array, mask_BT: Array, *, discount: float, decay: float) -> Pair:
    """Compute generalized advantage estimates (Schulman et al. 2016, equation 16).

    A_t = d_t + discount * decay * A_{t+1} with d_t = r_t + discount * V_{t+1} - V_t. The value after the last real
    token is 0. Padding inside a row is left out, as if the tokens on both sides were adjacent.

    Args:
        rewards_BT: Reward of each token.
        values_BT: Value before each token, that is, at the position that predicts it.
        mask_BT: 1 at real tokens.
        discount: Discount of future rewards (gamma).
        decay: Weight of longer estimates (lambda): 0 trusts the values, 1 uses the sampled rewards only.

    Returns:
        The advantages and the returns, advantage + value; both are 0 at padding.
    """
    rewards_BT, values_BT = masked(rewards_BT, mask_BT), masked(values_BT, mask_BT)

    def backward(following: Pair, token: tuple[Array, Array, Array]) -> tuple[Pair, Array]:
        (next_advantage_B, next_value_B), (reward_B, value_B, real_B) = following, token
        advantage_B = reward_B + discount * next_value_B - value_B + discount * decay * next_advantage_B
        carried = jnp.where(real_B, advantage_B, next_advantage_B), jnp.where(real_B, value_B, next_value_B)
        return carried, jnp.where(real_B, advantage_B, 0)

    tokens_TB = rewards_BT.T, values_BT.T, mask_BT.astype(bool).T
    end_B = jnp.zeros_like(values_BT[:, 0])
    _, advantages_TB = lax.scan(backward, (end_B, end_B), tokens_TB, reverse=True)
    return advantages_TB.T, advantages_TB.T + values_BT


def whiten(x: Array, mask: Array, *, shift_mean: bool = True, unbiased: bool = False) -> Array:
    """Scale the real entries to variance 1, over all axes, and shift their mean to 0.

    (x - mean) / sqrt(variance + 1e-8).

    Args:
        x: Values of the complete episode.
        mask: 1 at real entries; the others become 0.
        shift_mean: Shift the mean to 0; otherwise it keeps its value (Ziegler et al. 2019 whiten rewards so).
        unbiased: Divide the squares by n - 1, as PyTorch does; otherwise by n, as OpenAI's code does.
    """
    count = jnp.sum(mask.astype(bool))
    mean = masked_mean(x, mask, count)
    centred = masked(x - mean, mask)
    variance = masked_mean(jnp.square(centred), mask, count - 1 if unbiased else count)
    return masked(centred * lax.rsqrt(variance + 1e-8) + (0 if shift_mean else mean), mask)


# ---- Advantages of answers -----------------------------------------------------------------------------------


def centred_in_group(scores_B: Array, *, group: int) -> Array:
    """Return score - mean of its group (B).

    Without the division by the standard deviation, prompts that are nearly always or nearly never answered well count
    no more than others (Liu et al. 2025, "Understanding R1-Zero-like training", section 3).
    """
    scores_PG = scores_B.reshape(-1, group)
    return (scores_PG - jnp.mean(scores_PG, axis=-1, keepdims=True)).reshape(-1)


def scaled_in_group(scores_B: Array, *, group: int, floor: float = 1e-3, epsilon: float = 0.0) -> Array:
    """Return (score - mean) / max(deviation, floor) of its group (B).

    The advantages of GRPO as published (Shao et al. 2024, section 4.1.2), with a floor.

    Args:
        scores_B: Score of each answer.
        group: Answers of each prompt; at least 2.
        floor: Smallest divisor. A group of equal scores has a deviation that is rounding error; without a floor the
            quotient would be noise of any size.
        epsilon: Added to the divisor; TRL has 1e-4 and tunix 1e-6, without a floor.
    """
    deviation_P = group_deviation(scores_B, group=group)
    divisor_P = jnp.maximum(deviation_P, floor) + epsilon
    return centred_in_group(scores_B, group=group) / jnp.repeat(divisor_P, group)


def leave_one_out(scores_B: Array, *, group: int) -> Array:
    """Return score - mean of the other scores of its group (B).

    Kool et al. 2019; RLOO, Ahmadian et al. 2024.

    Args:
        scores_B: Score of each answer.
        group: Answers of each prompt; at least 2.
    """
    assert group >= 2, "an answer needs another answer to the same prompt as baseline"
    return centred_in_group(scores_B, group=group) * (group / (group - 1))


def group_deviation(scores_B: Array, *, group: int) -> Array:
    """Return the standard deviation (P) of the scores of each group, with n - 1."""
    assert group >= 2, "one answer has no deviation"
    return jnp.std(scores_B.reshape(-1, group), axis=-1, ddof=1)


def share_without_signal(scores_B: Array, *, group: int, floor: float = 1e-3) -> Array:
    """Return the share of groups whose scores are equal, up to a deviation below `floor`.

    All advantages of such a group are 0: it teaches nothing, except for a KL term, which still pulls to the reference.
    """
    return jnp.mean(group_deviation(scores_B, group=group) < floor)
