"""Attention with materialized scores, a block of queries at a time, for short contexts.

Each block of queries is multiplied only with the keys that a causal query can see. Weights are normalised after the
product with the values: w = exp(scores - max), out = (w v) / sum(w). The gradient recomputes w (Dao et al. 2022,
section 3.1), keys first, so that every product reads its large factor row by row: with h = g / sum(w), d scores = w (h
v^T - sum(h out)). The backward pass keeps the inputs, the result and two numbers per query, but no scores.

Shapes: B batch, T query positions, S key positions, G key heads, R query heads of each, K head size; C queries of a
block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lmjax.models.costs import query_blocks
from lmjax.models.layers import dropout, rounded, row_major
from lmjax.parallel import axes

Visible = tuple[Array | None, Array | None, Array | None]  # segments_BT, seen_BS, ends_BS of `attend`


def _forward(q_BGRTK, k_BGSK, v_BGSK, visible, key, causal, rate, dtype):
    wide, keyless = q_BGRTK.dtype, visible[1] is not None  # whether a query may see no key
    q_BGRTK, k_BGSK, v_BGSK = (rounded(x, dtype) for x in (q_BGRTK, k_BGSK, v_BGSK))
    outs, tops, totals = [], [], []
    for start, stop, keys_seen in query_blocks(q_BGRTK.shape[3], k_BGSK.shape[2], causal):
        with jax.named_scope("scores"):
            scores = einsum("bgrck,bgsk->bgrcs", q_BGRTK[:, :, :, start:stop], k_BGSK[:, :, :keys_seen], wide)
            shown_BCS = shown(visible, start, stop, keys_seen, causal)
            scores = scores if shown_BCS is None else jnp.where(shown_BCS[:, None, None], scores, -jnp.inf)
        with jax.named_scope("softmax"):
            top = jnp.max(scores, -1, keepdims=True)
            top = jnp.maximum(top, jnp.finfo(wide).min) if keyless else top  # exp(-inf - lowest) = 0
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, -1, keepdims=True)
            total = jnp.where(total == 0, 1, total) if keyless else total
        with jax.named_scope("mix"):
            dropped = weights if key is None else weights * _kept(weights, rate, key, start)
            outs.append(einsum("bgrcs,bgsk->bgrck", rounded(dropped, dtype), v_BGSK[:, :, :keys_seen], wide) / total)
        tops.append(top[..., 0])
        totals.append(total[..., 0])
    out_BGRTK, top_BGRT, total_BGRT = (jnp.concatenate(parts, 3) for parts in (outs, tops, totals))
    return out_BGRTK, (q_BGRTK, k_BGSK, v_BGSK, visible, key, out_BGRTK, top_BGRT, total_BGRT)


def _backward(causal, rate, dtype, saved, g_BGRTK):
    q_BGRTK, k_BGSK, v_BGSK, visible, key, out_BGRTK, top_BGRT, total_BGRT = saved
    wide, T, S = g_BGRTK.dtype, q_BGRTK.shape[3], k_BGSK.shape[2]
    h_BGRTK = g_BGRTK / total_BGRT[..., None]
    inner_BGRT = jnp.sum(h_BGRTK * out_BGRTK, -1)
    h_BGRTK = rounded(h_BGRTK, dtype)
    dq, dk_BGSK, dv_BGSK = [], 0.0, 0.0
    for start, stop, keys_seen in query_blocks(T, S, causal):
        q, h = (x[:, :, :, start:stop] for x in (q_BGRTK, h_BGRTK))
        top, inner = (x[:, :, None, :, start:stop] for x in (top_BGRT, inner_BGRT))
        k, v = (x[:, :, :keys_seen] for x in (k_BGSK, v_BGSK))
        weights_BGSRC = jnp.exp(einsum("bgsk,bgrck->bgsrc", k, q, wide) - top)
        shown_BCS = shown(visible, start, stop, keys_seen, causal)
        if shown_BCS is not None:
            weights_BGSRC = jnp.where(shown_BCS.swapaxes(1, 2)[:, None, :, None], weights_BGSRC, 0)
        mixed_BGSRC, dropped_BGSRC = einsum("bgsk,bgrck->bgsrc", v, h, wide), weights_BGSRC
        if key is not None:
            kept_BGRCS = jax.ShapeDtypeStruct((*q.shape[:4], keys_seen), wide)
            kept_BGSRC = jnp.moveaxis(_kept(kept_BGRCS, rate, key, start), -1, 2)
            mixed_BGSRC, dropped_BGSRC = mixed_BGSRC * kept_BGSRC, weights_BGSRC * kept_BGSRC
        d_scores_BGSRC = rounded(weights_BGSRC * (mixed_BGSRC - inner), dtype)
        pad = ((0, 0), (0, 0), (0, S - keys_seen), (0, 0))
        dv_BGSK += jnp.pad(einsum("bgsrc,bgrck->bgsk", rounded(dropped_BGSRC, dtype), h, wide), pad)
        dk_BGSK += jnp.pad(einsum("bgsrc,bgrck->bgsk", d_scores_BGSRC, q, wide), pad)
        dq.append(_over_keys(d_scores_BGSRC, k, wide))
    return jnp.concatenate(dq, 3), dk_BGSK, dv_BGSK, None, None


def _over_keys(d_scores_BGSRC: Array, k_BGSK: Array, dtype: Any) -> Array:
    """The gradient (B, G, R, C, K) of the queries.

    On CPU the product is transposed: transposing the keys and the result costs less than transposing the scores.
    """
    if axes.current() is not None:
        return einsum("bgsrc,bgsk->bgrck", d_scores_BGSRC, k_BGSK, dtype)
    turned_BGKRC = einsum("bgks,bgsrc->bgkrc", row_major(k_BGSK.swapaxes(2, 3)), d_scores_BGSRC, dtype)
    return jnp.moveaxis(row_major(turned_BGKRC), 2, 4)


written_out = jax.custom_vjp(lambda *args: _forward(*args)[0], nondiff_argnums=(5, 6, 7))
written_out.defvjp(_forward, _backward)
written_out.__doc__ = """Softmax(q k^T) v -> (B, G, R, T, K), for queries that are already scaled.

Arguments: q_BGRTK, k_BGSK, v_BGSK, (segments_BT, seen_BS, ends_BS), dropout_key, causal, dropout_rate, dtype, as in
`attention.attend`.
"""


def einsum(form: str, a: Array, b: Array, dtype: Any) -> Array:
    """`jnp.einsum` that accumulates in `dtype`, independent of the dtype of the factors."""
    return jnp.einsum(form, a, b, preferred_element_type=dtype)


def shown(visible: Visible, start: int, stop: int, seen: int, causal: bool) -> Array | None:
    """The mask (B or 1, C, S) of the first `seen` keys for queries start..stop; None: no mask."""
    segments_BT, seen_BS, ends_BS = visible
    queries_C1, rules = jnp.arange(start, stop)[:, None], []
    if causal:
        rules.append((queries_C1 >= jnp.arange(seen))[None])
    if segments_BT is not None:
        rules.append(segments_BT[:, start:stop, None] == segments_BT[:, None, :seen])
    if seen_BS is not None:
        rules.append(seen_BS[:, None, :seen] != 0)
    if ends_BS is not None:
        rules.append(queries_C1 < ends_BS[:, None, :seen])
    return functools.reduce(jnp.logical_and, rules) if rules else None


def _kept(weights_BGRCS: Any, rate: float, key: Array, start: int) -> Array:
    """The dropout factors of a block's weights; the same key and block give the same factors."""
    return dropout(jnp.ones(weights_BGRCS.shape, weights_BGRCS.dtype), rate, jax.random.fold_in(key, start))
