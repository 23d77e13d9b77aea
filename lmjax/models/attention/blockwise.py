"""Blockwise attention: its memory grows linearly with the sequence length.

Scores are materialized for one block of queries and one block of keys at a time. Softmax is computed online (Rabe and
Staats 2021; Milakov and Gimelshein 2018): the loop keeps the running maximum, the sum and the weighted values, and
rescales them when the maximum increases. The gradient recomputes the scores from log Z (Dao et al. 2022, section 3.1).
All loops are loops of the compiled program, whose size does not depend on the length.

Shapes: B batch, T query positions, S key positions, H heads, G key heads, R = H / G, K head size; N blocks of C queries
each, M blocks of E keys each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lmjax.models.costs import BLOCK, block_size
from lmjax.models.layers import dropout, rounded


class Masks(NamedTuple):
    """The masks, split into blocks; None: no mask."""

    #: Position of the first query among the keys.
    offset: Array
    #: Segments of the queries.
    segments_NBC: Array | None
    #: Segments of the keys.
    segments_MBE: Array | None
    #: A key is visible to queries before this position; 0: to none.
    ends_MBE: Array | None


def blockwise(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    *,
    causal: bool,
    segments: tuple[Array, Array] | None = None,
    seen_BS: Array | None = None,
    ends_BS: Array | None = None,
    offset: Array | int = 0,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    dtype: str = "float32",
    block: int = BLOCK,
) -> Array:
    """Softmax(q k^T / sqrt(K)) v -> (B, T, H, K), masked as in `attend`.

    A block of causal queries skips all blocks of keys after it.

    Args:
        q_BTHK: Queries.
        k_BSGK: Keys.
        v_BSGK: Values.
        causal: See `attend`.
        segments: (segments_BT, segments_BS) of queries and of keys.
        seen_BS: See `attend`.
        ends_BS: See `attend`.
        offset: Position of the first query, while keys are at 0, 1, ...; it may be traced.
        dropout_rate: See `attend`.
        dropout_key: See `attend`.
        dtype: See `attend`.
        block: Maximum number of queries, and of keys, of a block.
    """
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    C, E = block_size(T, block), block_size(S, block)
    if seen_BS is not None or S % E:
        seen_BS = jnp.ones((B, S), jnp.int32) if seen_BS is None else seen_BS
        ends_BS = jnp.where(seen_BS != 0, jnp.iinfo(jnp.int32).max if ends_BS is None else ends_BS, 0)
    of_queries, of_keys = segments or (None, None)
    masks = Masks(jnp.asarray(offset, jnp.int32), _cut(of_queries, C), _cut(of_keys, E), _cut(ends_BS, E))
    q_NBCGRK = _cut((q_BTHK * K**-0.5).reshape(B, T, G, H // G, K), C)
    key = dropout_key if dropout_rate else None
    k_MBGEK, v_MBGEK = (_cut(x, E).swapaxes(2, 3) for x in (k_BSGK, v_BSGK))
    q_NBGRCK = q_NBCGRK.transpose(0, 1, 3, 4, 2, 5)
    out_NBGRCK = _mix(q_NBGRCK, k_MBGEK, v_MBGEK, masks, key, causal, dropout_rate, dtype)
    return out_NBGRCK.transpose(1, 0, 4, 2, 3, 5).reshape(B, -1, H, K)[:, :T]


def _cut(x: Any, size: int) -> Any:
    """Split (B, T, ...) into blocks (N, B, size, ...), padded with zeros."""
    if x is None:
        return None
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


# ---- The blocks and their gradient ------------------------------------------------------------------------------


def _forward(q_NBGRCK, k_MBGEK, v_MBGEK, masks, key, causal, rate, dtype):
    wide = q_NBGRCK.dtype
    q_NBGRCK, k_MBGEK, v_MBGEK = (rounded(x, dtype) for x in (q_NBGRCK, k_MBGEK, v_MBGEK))
    C = q_NBGRCK.shape[4]

    def of_queries(block):
        i, q_BGRCK = block

        def step(j, so_far):
            top, total, mixed = so_far
            scores = _scores(q_BGRCK, k_MBGEK[j], masks, (i, j), causal, wide)
            higher = jnp.maximum(top, jnp.max(scores, -1))  # never minus infinity: exp(-inf - lowest) = 0
            weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
            dropped_weights = _dropped(rounded(weights, dtype), rate, key, (i, j))
            mixed = mixed * shrink[..., None] + _einsum("bgrce,bgek->bgrck", dropped_weights, v_MBGEK[j], wide)
            return higher, total * shrink + jnp.sum(weights, -1), mixed

        rows = jnp.zeros(q_BGRCK.shape[:-1], wide)
        start = rows + jnp.finfo(wide).min, rows, jnp.zeros(q_BGRCK.shape, wide)
        top, total, mixed = lax.fori_loop(0, _blocks_seen(i, C, k_MBGEK, masks, causal), step, start)
        keyless = total == 0
        log_z = jnp.where(keyless, jnp.inf, top + jnp.log(total))  # all weights of the backward pass become 0
        return mixed / jnp.where(keyless, 1, total)[..., None], log_z

    out_NBGRCK, log_z_NBGRC = lax.map(of_queries, (jnp.arange(len(q_NBGRCK)), q_NBGRCK))
    return out_NBGRCK, (q_NBGRCK, k_MBGEK, v_MBGEK, masks, key, out_NBGRCK, log_z_NBGRC)


def _backward(causal, rate, dtype, saved, g_NBGRCK):
    q_NBGRCK, k_MBGEK, v_MBGEK, masks, key, out_NBGRCK, log_z_NBGRC = saved
    wide, C = g_NBGRCK.dtype, q_NBGRCK.shape[4]
    inner_NBGRC = jnp.sum(g_NBGRCK * out_NBGRCK, -1)

    def of_queries(so_far, block):
        i, q_BGRCK, g_BGRCK, log_z_BGRC, inner_BGRC = block

        def step(j, so_far):
            dq, dk, dv = so_far
            k_BGEK, v_BGEK = k_MBGEK[j], v_MBGEK[j]
            weights = jnp.exp(_scores(q_BGRCK, k_BGEK, masks, (i, j), causal, wide) - log_z_BGRC[..., None])
            dropped_weights = _dropped(rounded(weights, dtype), rate, key, (i, j))
            mixed = _dropped(_einsum("bgrck,bgek->bgrce", g_BGRCK, v_BGEK, wide), rate, key, (i, j))
            d_scores = rounded(weights * (mixed - inner_BGRC[..., None]), dtype)
            dq = dq + _einsum("bgrce,bgek->bgrck", d_scores, k_BGEK, wide)
            dk = dk.at[j].add(_einsum("bgrce,bgrck->bgek", d_scores, q_BGRCK, wide))
            return dq, dk, dv.at[j].add(_einsum("bgrce,bgrck->bgek", dropped_weights, g_BGRCK, wide))

        start = jnp.zeros(q_BGRCK.shape, wide), *so_far
        dq_BGRCK, *so_far = lax.fori_loop(0, _blocks_seen(i, C, k_MBGEK, masks, causal), step, start)
        return tuple(so_far), dq_BGRCK

    nothing = jnp.zeros(k_MBGEK.shape, wide), jnp.zeros(v_MBGEK.shape, wide)
    each = jnp.arange(len(q_NBGRCK)), q_NBGRCK, rounded(g_NBGRCK, dtype), log_z_NBGRC, inner_NBGRC
    (dk_MBGEK, dv_MBGEK), dq_NBGRCK = lax.scan(of_queries, nothing, each)
    return dq_NBGRCK, dk_MBGEK, dv_MBGEK, None, None


_mix = jax.custom_vjp(lambda *args: _forward(*args)[0], nondiff_argnums=(5, 6, 7))
_mix.defvjp(_forward, _backward)


def _einsum(form: str, a: Array, b: Array, dtype: Any) -> Array:
    return jnp.einsum(form, a, b, preferred_element_type=dtype)


def _blocks_seen(i: Array, C: int, k_MBGEK: Array, masks: Masks, causal: bool) -> Array | int:
    """The number of leading blocks of keys that block i of C queries may see."""
    M, E = k_MBGEK.shape[0], k_MBGEK.shape[3]
    return jnp.minimum(M, (masks.offset + (i + 1) * C + E - 1) // E) if causal else M


def _scores(q_BGRCK: Array, k_BGEK: Array, masks: Masks, at: tuple[Array, Array], causal: bool, dtype: Any) -> Array:
    """The scores (B, G, R, C, E) of block `at` = (i, j); minus infinity where a key is masked."""
    scores_BGRCE = _einsum("bgrck,bgek->bgrce", q_BGRCK, k_BGEK, dtype)
    (i, j), (C, E) = at, scores_BGRCE.shape[-2:]
    places_C, places_E = masks.offset + i * C + jnp.arange(C), j * E + jnp.arange(E)
    visible = []
    if causal:
        visible.append((places_C[:, None] >= places_E)[None])
    if masks.segments_NBC is not None and masks.segments_MBE is not None:
        visible.append(masks.segments_NBC[i][:, :, None] == masks.segments_MBE[j][:, None])
    if masks.ends_MBE is not None:
        visible.append(places_C[:, None] < masks.ends_MBE[j][:, None])
    for visible_BCE in visible:
        scores_BGRCE = jnp.where(visible_BCE[:, None, None], scores_BGRCE, -jnp.inf)
    return scores_BGRCE


def _dropped(x_BGRCE: Array, rate: float, key: Array | None, at: tuple[Array, Array]) -> Array:
    """Dropout of one block; the forward and the backward pass draw the same mask."""
    if key is None:
        return x_BGRCE
    i, j = at
    return dropout(x_BGRCE, rate, jax.random.fold_in(jax.random.fold_in(key, i), j))
