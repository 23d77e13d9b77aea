"""Training objectives: a model, its parameters and a batch to sums of losses and of weights.

Shapes: B rows, T positions, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import CausalConfig


def causal(
    model: nn.Module,
    params: Any,
    batch: dict[str, Array],
    *,
    rng: Array | None = None,
    config: CausalConfig,
    train: bool,
) -> tuple[Array, Array, dict[str, Array]]:
    """Next-token prediction: (loss sum, weight sum, metric sums), float32 scalars.

    batch: `inputs_BT`, `targets_BT` int32, `weights_BT` float32, and for packed rows `segments_BT`,
    `positions_BT`. Each token adds weight * (cross-entropy in nats + z_loss * log(Z)^2) (PaLM, section 5).
    The metrics are the same weighted sums of `cross_entropy` alone and of `accuracy` (the target's logit is
    the largest). `rng` is for dropout, used only when `train`.
    """
    logits_BTV = _logits(model, params, batch, rng=rng, train=train)
    with jax.named_scope("loss"):
        weights_BT = batch["weights_BT"]
        log_z_BT, target_BT = log_z_and_target(logits_BTV, batch["targets_BT"])
        entropy_sum = loss_sum = jnp.sum(weights_BT * (log_z_BT - target_BT))
        if config.z_loss:
            loss_sum += config.z_loss * jnp.sum(weights_BT * jnp.square(log_z_BT))
        hits_BT = target_BT >= jnp.max(logits_BTV, axis=-1)  # log Z has the maximum already; an argmax would cost
        metrics = {"cross_entropy": entropy_sum, "accuracy": jnp.sum(weights_BT * hits_BT)}
    return loss_sum, jnp.sum(weights_BT), metrics


def causal_by_row(model: nn.Module, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
    """Cross-entropy sums (B) and weight sums (B) of each row, without dropout; the batch is `causal`'s."""
    logits_BTV = _logits(model, params, batch, rng=None, train=False)
    log_z_BT, target_BT = log_z_and_target(logits_BTV, batch["targets_BT"])
    return jnp.sum(batch["weights_BT"] * (log_z_BT - target_BT), axis=-1), jnp.sum(batch["weights_BT"], axis=-1)


def _logits(model: nn.Module, params: Any, batch: dict[str, Array], *, rng: Array | None, train: bool) -> Array:
    rngs = {"dropout": rng} if train and rng is not None else None
    packing: dict[str, Any] = {name: batch[name] for name in ("segments_BT", "positions_BT") if name in batch}
    logits_BTV = model.apply({"params": params}, batch["inputs_BT"], train=train, rngs=rngs, **packing)
    assert isinstance(logits_BTV, Array)
    return logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))


@jax.custom_vjp
def log_z_and_target(logits_BTV: Array, targets_BT: Array) -> tuple[Array, Array]:
    """log Z = log sum exp(logits) and the target's logit, both (B, T); cross-entropy in nats is their
    difference.

    Its own gradient needs nothing but the logits and log Z and is written in one pass; XLA's keeps the
    exponentials and scatters.
    """
    return _forward(logits_BTV, targets_BT)[0]


def _forward(logits_BTV: Array, targets_BT: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return (log_z_BT, target_BT), (logits_BTV, targets_BT, log_z_BT)


def _backward(saved: tuple[Array, Array, Array], gradients: tuple[Array, Array]) -> tuple[Array, None]:
    logits_BTV, targets_BT, log_z_BT = saved
    dz_BT, dtarget_BT = gradients
    softmax_BTV = jnp.exp(logits_BTV - log_z_BT[..., None])
    hot_BTV = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    return dz_BT[..., None] * softmax_BTV + jnp.where(hot_BTV, dtarget_BT[..., None], 0), None


log_z_and_target.defvjp(_forward, _backward)
