"""Estimates from logits and log-probabilities: entropy, KL divergence, masked averages.

Shapes: B rows, T positions, V vocabulary.

Logits and targets are aligned: `logits_BTV[:, t]` predict `targets_BT[:, t]`. `predicting` aligns the two in
[prompt | response]. A mask is 1 (or True) at the real tokens of a response and 0 at padding, whose content, NaN
included, has no effect. Averages take their denominator as an argument: sums over parts of a batch, divided by the
count of the complete batch, add up to the average of the complete batch.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from lmjax.objectives import losses

KLEstimator = Literal["k1", "k2", "k3", "k3_ratio"]


# ---- From logits -------------------------------------------------------------------------------------------


def predicting(x: Array, *, prompt: int) -> Array:
    """Return the entries (B, N, ...) of x (B, T, ...) that predict the response tokens.

    Position t predicts token t + 1: the response at positions `prompt` to T - 1 is predicted at `prompt` - 1 to T - 2.
    This holds for logits and for values.

    Args:
        x: Outputs of a model for [prompt | response].
        prompt: Width of the prompts, padding included; at least 1.
    """
    assert prompt >= 1, "the first response token needs a position that precedes it"
    return x[:, prompt - 1 : -1]


def token_logprobs(logits_BTV: Array, targets_BT: Array, *, temperature: float = 1.0) -> Array:
    """Return log p (B, T) of given tokens under softmax(logits / temperature), in nats.

    Policy, old policy and reference use this function with the temperature of the rollout. With different temperatures
    the ratio of two policies differs from 1 even if their parameters are equal.

    Args:
        logits_BTV: Logits.
        targets_BT: Token ids.
        temperature: Temperature at which the tokens were sampled; positive.
    """
    log_z_BT, target_BT = losses.log_z_and_target(_at_temperature(logits_BTV, temperature), targets_BT)
    return target_BT - log_z_BT


def entropy(logits_BTV: Array, *, temperature: float = 1.0) -> Array:
    """Return the entropy (B, T) of softmax(logits / temperature), in nats.

    A logit may be -inf.
    """
    logp_BTV = jax.nn.log_softmax(_at_temperature(logits_BTV, temperature))
    p_BTV = jnp.exp(logp_BTV)
    return -jnp.sum(p_BTV * jnp.where(p_BTV > 0, logp_BTV, 0), axis=-1)


def exact_kl(logits_BTV: Array, reference_BTV: Array, *, temperature: float = 1.0) -> Array:
    """Return KL(p || q) (B, T) over the vocabulary, in nats.

    p is the softmax of `logits_BTV` and q that of `reference_BTV`, both at a temperature.

    The sum is over p d + q - p with d = log(p / q), not over p d. The two are equal because p and q each sum to 1, but
    no term of the first is negative, and an error of log Z has an effect of second order only. Near p = q the result is
    therefore not a small negative number. A logit may be -inf; if it is only in the reference, the result is
    infinite.
    """
    logp_BTV = jax.nn.log_softmax(_at_temperature(logits_BTV, temperature))
    logq_BTV = jax.nn.log_softmax(_at_temperature(reference_BTV, temperature))
    p_BTV, q_BTV = jnp.exp(logp_BTV), jnp.exp(logq_BTV)
    d_BTV = jnp.where(p_BTV > 0, logp_BTV, 0) - jnp.where(p_BTV > 0, logq_BTV, 0)
    # q - p = p (exp(-d) - 1), which loses no digits near d = 0. Elsewhere exp(-d) may overflow.
    near_BTV = (p_BTV > 0) & (jnp.abs(d_BTV) < 1)
    change_BTV = jnp.where(near_BTV, p_BTV * jnp.expm1(-jnp.where(near_BTV, d_BTV, 0)), q_BTV - p_BTV)
    return jnp.sum(p_BTV * d_BTV + change_BTV, axis=-1)


def _at_temperature(logits: Array, temperature: float) -> Array:
    return _wide(logits) / temperature


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# ---- Estimators of the KL divergence from sampled tokens -----------------------------------------------------


def kl_estimate(kind: KLEstimator, logprobs: Array, reference: Array, *, old: Array | None = None) -> Array:
    """Estimate KL(policy || reference) at each token, from tokens that `old` sampled.

    With r = log p - log q (Schulman 2020, "Approximating KL divergence"):

    - `k1` is r: unbiased, of high variance. As a loss its expected gradient is zero; use it in the reward.
    - `k2` is r^2 / 2: biased, but as a loss its expected gradient is that of KL(p || q), if `old` is the policy.
    - `k3` is exp(-r) - 1 + r: unbiased and never negative. As a loss its expected gradient is that of KL(q || p).
    - `k3_ratio` is k3 times p / old. Value and gradient are unbiased for KL(p || q), whatever `old` is
      (DeepSeek-AI 2025, "DeepSeek-V3.2", section 3.1).

    Tang and Munos 2025 compare the gradients.

    Args:
        kind: The estimator.
        logprobs: log p of the sampled tokens, of any shape.
        reference: log q of the same tokens; it gets no gradient.
        old: Log-probabilities of the policy that sampled; without it, the policy itself. It gets no gradient.
    """
    log_ratio = logprobs - jax.lax.stop_gradient(reference)
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * jnp.square(log_ratio)
    estimate = k3(log_ratio)
    if kind == "k3":
        return estimate
    return jnp.exp(logprobs - jax.lax.stop_gradient(logprobs if old is None else old)) * estimate


def k3(log_ratio: Array) -> Array:
    """Return exp(-r) - 1 + r for r = log(p / q), as in `kl_estimate`."""
    return jnp.expm1(-log_ratio) + log_ratio


# ---- Masked sums and averages --------------------------------------------------------------------------------


def masked(x: Array, mask: Array) -> Array:
    """Return x with 0 at padding, at least in float32.

    NaN and infinity at padding have no effect, on gradients either.
    """
    return jnp.where(mask.astype(bool), _wide(x), 0)


def masked_sum(x: Array, mask: Array, *, axis: int | None = None) -> Array:
    """Return the sum of x over the real entries."""
    return jnp.sum(masked(x, mask), axis=axis)


def masked_mean(x: Array, mask: Array, count: Array | float) -> Array:
    """Return the sum over the real entries, divided by `count`; 0 if there are none.

    Args:
        x: Values.
        mask: 1 at real entries.
        count: Number of real entries of the complete batch, of which x may be a part.
    """
    return masked_sum(x, mask) / jnp.maximum(count, 1)


def last_token(mask_BT: Array) -> Array:
    """Return a bool mask (B, T) of the last real token of each row.

    A row without real tokens has none.
    """
    real_BT = mask_BT.astype(bool)
    following_BT = jnp.cumsum(real_BT[:, ::-1], axis=-1)[:, ::-1]
    return real_BT & (following_BT == 1)


# ---- Measurements --------------------------------------------------------------------------------------------


def explained_variance(values: Array, returns: Array, mask: Array) -> Array:
    """Return 1 - Var(returns - values) / Var(returns) over the real entries.

    1 is a perfect value model, 0 is a constant one; a negative number is worse than a constant. If the returns are
    constant, the result is 0.
    """
    variance = _variance(returns, mask)
    unexplained = _variance(masked(returns, mask) - masked(values, mask), mask)
    return jnp.where(variance > 0, 1 - unexplained / jnp.where(variance > 0, variance, 1), 0)


def _variance(x: Array, mask: Array) -> Array:
    count = jnp.sum(mask.astype(bool))
    mean = masked_mean(x, mask, count)
    return masked_mean(jnp.square(masked(x, mask) - mean), mask, count)
