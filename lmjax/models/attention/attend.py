"""Attention, dispatched to an implementation, on one device or on a mesh."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from lmjax.models.attention import kernels
from lmjax.models.attention.blockwise import blockwise
from lmjax.models.attention.xla import einsum, shown, written_out
from lmjax.models.layers import rounded
from lmjax.parallel import axes

# The masks of `attend`, with separate segments of queries and keys: segments_BT, segments_BS, seen_BS, ends_BS.
Visible = tuple[Array | None, Array | None, Array | None, Array | None]


HEADS = ("batch", "length", "heads", None)  # the axes of queries, keys and values


class Place(NamedTuple):
    """The location of the next positions in a cache."""

    #: The first slot.
    slot: Array
    #: The slots that are visible to the positions.
    seen_BS: Array


def attend(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    *,
    causal: bool,
    segments_BT: Array | None = None,
    seen_BS: Array | None = None,
    ends_BS: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    dtype: str = "float32",
    form: str = "auto",
) -> Array:
    """Softmax(q k^T / sqrt(K)) v -> (B, T, H, K), softmax in the dtype of q.

    See Vaswani et al. 2017, section 3.2.1. All masks apply together; a query that sees no key gets zeros.

    Args:
        q_BTHK: Queries.
        k_BSGK: Keys.
        v_BSGK: Values.
        causal: A query sees only the keys up to its own position.
        segments_BT: A query sees only the keys of its own segment (then S = T).
        seen_BS: A query sees only keys where this is not 0 (0 at padding).
        ends_BS: A key is visible only to queries before this position: a tree of sequences, depth first.
        dropout_rate: Probability of dropping a weight.
        dropout_key: Key of the dropout; None: no dropout.
        dtype: Dtype to which products round their inputs.
        form: Implementation, as in `GPTConfig.attention`; `kernels.chosen` selects it.

    Raises:
        UserError: The implementation cannot compute this case.
    """
    key, visible = dropout_key if dropout_rate else None, (segments_BT, seen_BS, ends_BS)
    case = kernels.Case(
        kernels.device(),
        dtype,
        causal,
        packed=segments_BT is not None,
        dropout=key is not None,
        masked=seen_BS is not None or ends_BS is not None,
    )
    form = kernels.chosen(form, case, q_BTHK, k_BSGK)
    if form != "xla":
        how = How(form, causal, dropout_rate, dtype)
        return _divided(q_BTHK, k_BSGK, v_BSGK, (segments_BT, *visible), key, how=how)
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BGRTK = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGSK, v_BGSK = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2)
    mixed_BGRTK = written_out(q_BGRTK, k_BGSK, v_BGSK, visible, key, causal, dropout_rate, dtype)
    return mixed_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def attention_weights(
    q_BTHK: Array,
    k_BSGK: Array,
    *,
    causal: bool,
    segments_BT: Array | None = None,
    seen_BS: Array | None = None,
    dtype: str = "float32",
) -> Array:
    """The attention weights (B, H, T, S) of `attend`, computed directly, for inspection."""
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    q_BTGRK = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K)
    scores_BGRTS = einsum("btgrk,bsgk->bgrts", rounded(q_BTGRK, dtype), rounded(k_BSGK, dtype), q_BTHK.dtype)
    shown_BTS = shown((segments_BT, seen_BS, None), 0, T, S, causal)
    if shown_BTS is not None:
        scores_BGRTS = jnp.where(shown_BTS[:, None, None], scores_BGRTS, -jnp.inf)
    weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1)
    if seen_BS is not None:  # without visible keys softmax computes 0 / 0
        weights_BGRTS = jnp.where(jnp.isneginf(scores_BGRTS).all(-1, keepdims=True), 0, weights_BGRTS)
    return weights_BGRTS.reshape(B, H, T, S)


def attend_cached(q_BTHK: Array, k_BGSK: Array, v_BGSK: Array, seen_BS: Array, *, dtype: str = "float32") -> Array:
    """`attend` without a gradient, to the keys and values of a cache -> (B, T, H, K).

    `seen_BS` marks the valid keys, at least one in each row; they are visible to all queries.
    """
    B, T, H, K = q_BTHK.shape
    (G, S), wide, cache_dtype = k_BGSK.shape[1:3], q_BTHK.dtype, k_BGSK.dtype
    q_BGNK = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 1, 3, 4)
    # "b" is rows and key heads merged, as in the cache; otherwise XLA copies a single row's cache for each token.
    q_BNK, k_BSK, v_BSK = q_BGNK.reshape(B * G, -1, K), k_BGSK.reshape(-1, S, K), v_BGSK.reshape(-1, S, K)
    scores_BNS = einsum("bnk,bsk->bns", as_held(q_BNK, dtype, cache_dtype), k_BSK, wide)
    scores_BGNS = jnp.where(seen_BS[:, None, None], scores_BNS.reshape(B, G, -1, S), -jnp.inf)
    weights_BNS = jax.nn.softmax(scores_BGNS, axis=-1).reshape(B * G, -1, S)
    mixed_BNK = einsum("bns,bsk->bnk", as_held(weights_BNS, dtype, cache_dtype), v_BSK, wide)
    return mixed_BNK.reshape(B, G, T, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, T, H, K)


def as_held(x: Array, dtype: str, cache_dtype: Any) -> Array:
    """Round `x` to `dtype` and convert it to the dtype of a cache, which may be wider."""
    return jax.lax.reduce_precision(x, 8, 7).astype(cache_dtype) if dtype == "bfloat16" else x


class How(NamedTuple):
    """An implementation of attention and its settings (see `attend`)."""

    #: The implementation.
    form: str
    #: Whether attention is causal.
    causal: bool
    #: Probability of dropping a weight.
    dropout_rate: float
    #: Dtype to which products round their inputs.
    dtype: str


def _divided(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, visible: Visible, key: Array | None, *, how: How) -> Array:
    """Shard `_undivided`: each device computes its rows, heads and queries with all keys.

    The compiler shards rows and heads of `blockwise` by itself, but neither sequences nor kernels. Keys and values are
    gathered along the sequence; the gradient scatters their sums. Each device draws dropout with its own key, so that
    the dropped weights depend on the mesh.
    """
    layout = axes.current()
    if layout is None or (how.form == "blockwise" and layout.size("sequence") == 1):
        return _undivided(q_BTHK, k_BSGK, v_BSGK, visible, key, how=how)
    rows, length, heads = _parts(layout, q_BTHK, k_BSGK)

    def on_each(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, visible: Visible, key: Array | None) -> Array:
        offset, own = 0, (*rows, *length, *heads)
        if length and layout.size("sequence") > 1:
            k_BSGK, v_BSGK = (jax.lax.all_gather(x, length, axis=1, tiled=True) for x in (k_BSGK, v_BSGK))
            offset = jax.lax.axis_index(length) * q_BTHK.shape[1]
        if key is not None and own:
            key = jax.random.fold_in(key, jax.lax.axis_index(own))
        return _undivided(q_BTHK, k_BSGK, v_BSGK, visible, key, how=how, offset=offset)

    of_heads, of_queries, of_keys = (
        PartitionSpec(*parts) for parts in ((rows, length, heads), (rows, length), (rows,))
    )
    of_visible: Any = (of_queries, of_keys, of_keys, of_keys)
    places = of_heads, of_heads, of_heads, of_visible, PartitionSpec()
    mapped = jax.shard_map(on_each, mesh=layout.mesh, in_specs=places, out_specs=of_heads, check_vma=False)
    return mapped(q_BTHK, k_BSGK, v_BSGK, visible, key)


def _parts(layout: axes.Layout, q_BTHK: Array, k_BSGK: Array) -> list[tuple[str, ...]]:
    """Return the mesh axes that shard rows, positions and heads.

    There are none where a size is not divisible.
    """
    (B, T), (S, G) = q_BTHK.shape[:2], k_BSGK.shape[1:3]
    candidates: Any = (axes.ROWS, (B,)), (("sequence",), (T, S)), (("tensor",), (G,))
    counts = [math.prod(layout.size(axis) for axis in names) for names, _ in candidates]
    fits = [all(size % count == 0 for size in sizes) for (_, sizes), count in zip(candidates, counts, strict=True)]
    return [names if fit else () for (names, _), fit in zip(candidates, fits, strict=True)]


def _undivided(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    visible: Visible,
    key: Array | None,
    *,
    how: How,
    offset: Array | int = 0,
) -> Array:
    """Attention on one device; queries start at `offset`, nonzero only for `blockwise`."""
    segments_BT, segments_BS, seen_BS, ends_BS = visible
    if how.form == "cudnn":
        return kernels.cudnn(q_BTHK, k_BSGK, v_BSGK, causal=how.causal)
    if how.form == "splash":
        return kernels.splash(q_BTHK, k_BSGK, v_BSGK, segments_BT=segments_BT, dtype=how.dtype)
    return blockwise(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        causal=how.causal,
        segments=None if segments_BT is None or segments_BS is None else (segments_BT, segments_BS),
        seen_BS=seen_BS,
        ends_BS=ends_BS,
        offset=offset,
        dropout_rate=how.dropout_rate,
        dropout_key=key,
        dtype=how.dtype,
    )
