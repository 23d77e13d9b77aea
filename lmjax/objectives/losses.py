"""Losses: sums over a batch as functions of a model, its parameters and the batch.

Shapes: B rows, S positions of a source, T positions, P places that are predicted, V vocabulary, C classes, D width;
N chunks, each of E positions from each of J parts of a row.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import CausalConfig
from lmjax.models import gpt
from lmjax.parallel import axes

Batch = Mapping[str, Array]


class Read(NamedTuple):
    """Values that the loss needs of the logits (B, T, V)."""

    #: log Z of the softmax.
    log_z_BT: Array
    #: Logit of the target.
    target_BT: Array
    #: Whether the target's logit is the largest.
    hits_BT: Array


def causal(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    rng: Array | None = None,
    carry: Any = None,
    config: CausalConfig,
    train: bool,
    first_of_equal: bool = False,
) -> tuple[Any, ...]:
    """Compute the loss of next-token prediction.

    Each token adds weight * (cross-entropy in nats + z_loss * log(Z)^2) (PaLM, section 5).

    Args:
        model: A causal language model.
        params: Its parameters.
        batch: `inputs_BT`, `targets_BT` int32, `weights_BT` float32, and for packed rows `segments_BT`,
            `positions_BT`.
        rng: Key for dropout, used only with `train`.
        carry: Initial state of a recurrent model.
        config: Settings of the loss. With `chunk` (GPT), the logits of at most `chunk` tokens are materialized at a
            time; the gradient recomputes them.
        train: Use dropout.
        first_of_equal: Of equal logits only the first counts as the largest, which needs another pass.

    Returns:
        (loss sum, weight sum, metric sums), float32 scalars, and the carry, if one is given. The metrics are the
        weighted sums of `cross_entropy` alone and of `accuracy` (the target's logit is the largest).
    """
    settings: dict[str, Any] = {"chunk": config.chunk, "first_of_equal": first_of_equal}
    read, carry = _read(model, params, batch, rng=rng, train=train, carry=carry, **settings)
    with jax.named_scope("loss"):
        weights_BT, (log_z_BT, target_BT, hits_BT) = batch["weights_BT"], read
        entropy_sum = loss_sum = jnp.sum(weights_BT * (log_z_BT - target_BT))
        if config.z_loss:
            loss_sum += config.z_loss * jnp.sum(weights_BT * jnp.square(log_z_BT))
        if config.penalty:
            loss_sum += config.penalty * jnp.sum(weights_BT) * squared_norm(params)
        metrics = {"cross_entropy": entropy_sum, "accuracy": jnp.sum(weights_BT * hits_BT)}
    return (loss_sum, jnp.sum(weights_BT), metrics, *([] if carry is None else [carry]))


def squared_norm(params: Any) -> Array:
    """Return the sum of the squares of all matrices and embeddings."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum((jnp.sum(x * x) for path, x in leaves if path[-1].key in ("kernel", "embedding")), jnp.float32(0))


def causal_by_row(model: nn.Module, params: Any, batch: Batch, *, chunk: int = 0) -> tuple[Array, Array]:
    """Return cross-entropy sums (B) and weight sums (B) of each row; batch as in `causal`."""
    (log_z_BT, target_BT, _), _ = _read(model, params, batch, rng=None, train=False, chunk=chunk)
    weights_BT = batch["weights_BT"]
    return jnp.sum(weights_BT * (log_z_BT - target_BT), axis=-1), jnp.sum(weights_BT, axis=-1)


def _read(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    rng: Array | None,
    train: bool,
    carry: Any = None,
    chunk: int = 0,
    first_of_equal: bool = False,
) -> tuple[Read, Any]:
    """Return what the loss needs of the logits, and the carry after the batch if one is given."""
    settings: dict[str, Any] = {name: batch[name] for name in ("segments_BT", "positions_BT") if name in batch}
    if carry is not None:
        settings["carry"] = carry
    if chunk:
        assert isinstance(model, gpt.GPT), "the configuration's check refuses chunks of other models"
        settings["head"] = False
    result: Any = apply(model, params, batch["inputs_BT"], rng=rng, train=train, **settings)
    output, after = (result, None) if carry is None else result
    with jax.named_scope("loss"):
        if not isinstance(model, gpt.GPT) or not chunk:
            return _read_off(output, batch["targets_BT"], first_of_equal), after
        targets_BT = batch["targets_BT"]
        return _read_in_chunks(model, params, output, targets_BT, chunk=chunk, first_of_equal=first_of_equal), after


def _read_off(logits_BTV: Array, targets_BT: Array, first_of_equal: bool) -> Read:
    logits_BTV = _wide(logits_BTV)
    log_z_BT, target_BT = log_z_and_target(logits_BTV, targets_BT)
    # log Z has the maximum already; an argmax would cost
    return Read(log_z_BT, target_BT, _hits(logits_BTV, targets_BT, target_BT, train=not first_of_equal))


def _read_in_chunks(
    model: gpt.GPT, params: Any, x_BTD: Array, targets_BT: Array, *, chunk: int, first_of_equal: bool
) -> Read:
    """Compute `_read_off` from features, for about `chunk` tokens and all rows at a time.

    A chunk takes positions of all rows, and of every part into which a mesh divides them, so that each device computes
    with its own positions. With sharded parameters (FSDP), each chunk gathers the output layer again.
    """
    layout, (B, T) = axes.current(), targets_BT.shape
    J = 1 if layout is None or T % layout.size("sequence") else layout.size("sequence")
    E = min(T // J, max(1, chunk // (B * J)))

    def cut(x: Array) -> Array:
        x = x.reshape(B, J, T // J, *x.shape[2:])
        x = jnp.pad(x, [(0, -x.shape[axis] % E if axis == 2 else 0) for axis in range(x.ndim)])
        x = jnp.moveaxis(x.reshape(B, J, -1, E, *x.shape[3:]), 2, 0)
        return axes.constrain(x, None, "batch", "length", *[None] * (x.ndim - 3))

    def join(x_NBJE: Array) -> Array:
        return jnp.moveaxis(x_NBJE, 0, 2).reshape(B, J, -1)[:, :, : T // J].reshape(B, T)

    def read(chunk_arrays: tuple[Array, Array]) -> Read:
        x_BJED, targets_BJE = chunk_arrays
        logits_BJEV = gpt.logits(model.config, params, x_BJED)
        logits_BJEV = axes.constrain(logits_BJEV, "batch", "length", None, "vocab")
        return _read_off(logits_BJEV, targets_BJE, first_of_equal)

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(read, prevent_cse=False), (cut(x_BTD), cut(targets_BT))))


def apply(model: nn.Module, params: Any, *inputs: Array, rng: Array | None, train: bool, **settings: Any) -> Any:
    """Apply the model; `rng` is for dropout, used only with `train`."""
    rngs = {"dropout": rng} if train and rng is not None else None
    return model.apply({"params": params}, *inputs, train=train, rngs=rngs, **settings)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def masked(
    model: nn.Module, params: Any, batch: Batch, *, rng: Array | None = None, train: bool
) -> tuple[Array, Array, dict[str, Array]]:
    """Compute the loss of masked tokens and of the next sentence.

    As in Devlin et al. 2019, section 3.1. The weight counts predicted tokens. The next-sentence loss of a row is added
    once for each place of the row: the quotient of the sums is then the paper's sum of two means (a little more if rows
    are short), and rows may be computed in any portions.

    Args:
        model: BERT.
        params: Its parameters.
        batch: Arrays of `lmjax.data.batches.masking`.
        rng: Key for dropout, used only with `train`.
        train: Use dropout.

    Returns:
        (loss sum, weight sum, further sums). The further sums are `masked_loss`, `masked_accuracy`, and `next_loss`,
        `next_accuracy`: in training means of this batch times its weight, otherwise sums over rows, whose number is
        `next_rows`.
    """
    outputs = apply(
        model,
        params,
        batch["inputs_BT"],
        rng=rng,
        train=train,
        kinds_BT=batch["kinds_BT"],
        real_BT=batch["real_BT"],
        places_BP=batch["places_BP"],
    )
    with jax.named_scope("loss"):
        weights_BP, logits_BPV = batch["weights_BP"], _wide(outputs.logits_BPV)
        log_z_BP, target_BP = log_z_and_target(logits_BPV, batch["targets_BP"])
        loss_sum, weight = jnp.sum(weights_BP * (log_z_BP - target_BP)), jnp.sum(weights_BP)
        hits_BP = _hits(logits_BPV, batch["targets_BP"], target_BP, train=train)
        sums = {"masked_loss": loss_sum, "masked_accuracy": jnp.sum(weights_BP * hits_BP)}
        if outputs.next_B2 is not None:
            rows_B = batch.get("rows_B", jnp.ones(len(weights_BP), jnp.float32))
            next_sum, hits = classified(outputs.next_B2, batch["next_B"], rows_B)
            loss_sum += weights_BP.shape[1] * next_sum
            if train:
                per_row = weight / jnp.maximum(jnp.sum(rows_B), 1)
                sums |= {"next_loss": next_sum * per_row, "next_accuracy": hits * per_row}
            else:
                sums |= {"next_loss": next_sum, "next_accuracy": hits, "next_rows": jnp.sum(rows_B)}
    return loss_sum, weight, sums


def _hits(logits_BTV: Array, targets_BT: Array, target_BT: Array, *, train: bool) -> Array:
    """Return which targets have the highest logit.

    In training equal logits count as hits, which needs only one pass over the logits. A measurement counts the first of
    equal logits: in bfloat16 the highest logits are often equal.
    """
    return target_BT >= jnp.max(logits_BTV, axis=-1) if train else jnp.argmax(logits_BTV, axis=-1) == targets_BT


def translation(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    rng: Array | None = None,
    label_smoothing: float,
    train: bool,
) -> tuple[Array, Array, dict[str, Array]]:
    """Compute the loss of target tokens, predicted from the source and the preceding targets.

    Args:
        model: An encoder-decoder Transformer.
        params: Its parameters.
        batch: `source_BS`, `inputs_BT`, `targets_BT` int32, `source_mask_BS`, `weights_BT` float32.
        rng: Key for dropout, used only with `train`.
        label_smoothing: Share of the probability that is spread evenly over all V entries; the target has the rest
            (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4).
        train: Use dropout.

    Returns:
        (loss sum, weight sum, further sums). The further sums are `cross_entropy` without smoothing, and `accuracy`.
    """
    source_BS, inputs_BT = batch["source_BS"], batch["inputs_BT"]
    mask_BS = batch["source_mask_BS"]
    logits_BTV = _wide(apply(model, params, source_BS, inputs_BT, rng=rng, train=train, source_mask_BS=mask_BS))
    with jax.named_scope("loss"):
        weights_BT = batch["weights_BT"]
        log_z_BT, target_BT = log_z_and_target(logits_BTV, batch["targets_BT"])
        entropy_sum = loss_sum = jnp.sum(weights_BT * (log_z_BT - target_BT))
        if label_smoothing:
            spread_sum = jnp.sum(weights_BT * (log_z_BT - jnp.mean(logits_BTV, axis=-1)))
            loss_sum = (1 - label_smoothing) * entropy_sum + label_smoothing * spread_sum
        hits_BT = _hits(logits_BTV, batch["targets_BT"], target_BT, train=train)
        sums = {"cross_entropy": entropy_sum, "accuracy": jnp.sum(weights_BT * hits_BT)}
    return loss_sum, jnp.sum(weights_BT), sums


def masked_by_row(model: nn.Module, params: Any, batch: Batch) -> tuple[Array, Array]:
    """Return cross-entropy sums (B) and weight sums (B) of the masked tokens of each row."""
    named = {name: batch[name] for name in ("kinds_BT", "real_BT", "places_BP")}
    outputs = apply(model, params, batch["inputs_BT"], rng=None, train=False, **named)
    return _by_row(outputs.logits_BPV, batch["targets_BP"], batch["weights_BP"])


def translation_by_row(model: nn.Module, params: Any, batch: Batch) -> tuple[Array, Array]:
    """Return cross-entropy sums (B) and weight sums (B) of each row, without smoothing."""
    inputs, mask_BS = (batch["source_BS"], batch["inputs_BT"]), batch["source_mask_BS"]
    logits_BTV = apply(model, params, *inputs, rng=None, train=False, source_mask_BS=mask_BS)
    return _by_row(logits_BTV, batch["targets_BT"], batch["weights_BT"])


def _by_row(logits_BTV: Array, targets_BT: Array, weights_BT: Array) -> tuple[Array, Array]:
    log_z_BT, target_BT = log_z_and_target(_wide(logits_BTV), targets_BT)
    return jnp.sum(weights_BT * (log_z_BT - target_BT), axis=-1), jnp.sum(weights_BT, axis=-1)


def classified(
    logits_BC: Array, labels_B: Array, weights_B: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Return the cross-entropy sum in nats, and the sum of the weights of the correct rows.

    Labels are smoothed as in `translation`.
    """
    logits_BC = _wide(logits_BC)
    log_BC = jax.nn.log_softmax(logits_BC)
    target_B = jnp.take_along_axis(log_BC, labels_B[:, None], axis=-1)[:, 0]
    loss_B = -(1 - label_smoothing) * target_B - label_smoothing * jnp.mean(log_BC, axis=-1)
    return jnp.sum(weights_B * loss_B), jnp.sum(weights_B * (jnp.argmax(logits_BC, axis=-1) == labels_B))


@jax.custom_vjp
def log_z_and_target(logits_BTV: Array, targets_BT: Array) -> tuple[Array, Array]:
    """Return log Z = log sum exp(logits) and the target's logit, both (B, T).

    Their difference is the cross-entropy in nats. The custom gradient needs only the logits and log Z and is written
    in one pass; the gradient that XLA derives stores the exponentials and scatters.
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
