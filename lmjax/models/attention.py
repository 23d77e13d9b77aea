"""Attention: one entry point, `attend`, and the module of projections around it.

Shapes: B batch, T query positions, S key positions, D width, H heads, G key heads, R = H / G heads that share a key
head (head h reads key head h // R), K head size.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import PartitionSpec

from lmjax import axes
from lmjax.models import kernels
from lmjax.models.blockwise import blockwise
from lmjax.models.layers import Dense, Norm, recomputed, rotate, rounded
from lmjax.models.written_out import einsum, shown, written_out

_HEADS = ("batch", "length", "heads", None)  # the axes of queries, keys and values
Cache = dict[str, Array]  # a layer's "keys" and "values" (B G, S, K)


class Place(NamedTuple):
    """Where the next positions stand in a cache: from `slot` on; `seen_BS` says which slots they see."""

    slot: Array
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
    """Softmax(q k^T / sqrt(K)) v -> (B, T, H, K) (Vaswani et al. 2017, section 3.2.1), softmax in the dtype of q.

    causal: a query sees the keys up to its own position. segments_BT: and only those of its own segment (then S = T).
    seen_BS: and only those where it is not 0 (padding is 0); a query that sees no key at all gets zeros.
    ends_BS: and a key only by queries before this position: a tree of sequences, written out depth first.
    dropout_key: drops weights with probability `dropout_rate`. dtype: in which products read their inputs.
    form: how it is computed, as `kernels.chosen` decides and GPTConfig.attention says. UserError: it cannot be so.
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
    """The weights (B, H, T, S) that `attend` mixes values with, written out plainly, to look at."""
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    q_BTGRK = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K)
    scores_BGRTS = einsum("btgrk,bsgk->bgrts", rounded(q_BTGRK, dtype), rounded(k_BSGK, dtype), q_BTHK.dtype)
    shown_BTS = shown((segments_BT, seen_BS, None), 0, T, S, causal)
    if shown_BTS is not None:
        scores_BGRTS = jnp.where(shown_BTS[:, None, None], scores_BGRTS, -jnp.inf)
    weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1)
    if seen_BS is not None:  # without keys softmax has 0 / 0
        weights_BGRTS = jnp.where(jnp.isneginf(scores_BGRTS).all(-1, keepdims=True), 0, weights_BGRTS)
    return weights_BGRTS.reshape(B, H, T, S)


def attend_cached(q_BTHK: Array, k_BGSK: Array, v_BGSK: Array, seen_BS: Array, *, dtype: str = "float32") -> Array:
    """`attend` without a gradient, to keys and values as a cache holds them -> (B, T, H, K).

    seen_BS: the keys that are there, at least one in each row, for all queries alike.
    """
    B, T, H, K = q_BTHK.shape
    (G, S), wide, held = k_BGSK.shape[1:3], q_BTHK.dtype, k_BGSK.dtype
    q_BGNK = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 1, 3, 4)
    # "b" is rows and key heads at once, as the cache has them: else one row's cache would be copied for each token
    q_BNK, k_BSK, v_BSK = q_BGNK.reshape(B * G, -1, K), k_BGSK.reshape(-1, S, K), v_BGSK.reshape(-1, S, K)
    scores_BNS = einsum("bnk,bsk->bns", _as_held(q_BNK, dtype, held), k_BSK, wide)
    scores_BGNS = jnp.where(seen_BS[:, None, None], scores_BNS.reshape(B, G, -1, S), -jnp.inf)
    weights_BNS = jax.nn.softmax(scores_BGNS, axis=-1).reshape(B * G, -1, S)
    mixed_BNK = einsum("bns,bsk->bnk", _as_held(weights_BNS, dtype, held), v_BSK, wide)
    return mixed_BNK.reshape(B, G, T, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, T, H, K)


def _as_held(x: Array, dtype: str, held: Any) -> Array:
    """`x` as a product reads it, in the dtype of a cache; where that is wider, with the digits that the product has."""
    return jax.lax.reduce_precision(x, 8, 7).astype(held) if dtype == "bfloat16" else x


# ---- On the devices of a mesh -----------------------------------------------------------------------------------


# The masks of `attend`, the segments of queries and of keys apart: segments_BT, segments_BS, seen_BS, ends_BS.
Visible = tuple[Array | None, Array | None, Array | None, Array | None]


class How(NamedTuple):
    """A form of attention and its settings."""

    form: str
    causal: bool
    dropout_rate: float
    dtype: str


def _divided(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, visible: Visible, key: Array | None, *, how: How) -> Array:
    """`_undivided` on what each device has: its rows, its heads and its queries, with all the keys of those.

    The compiler divides rows and heads of `blockwise` by itself, but no sequence and no kernel. Keys and values are
    gathered along the sequence; the gradient scatters their sums back. Dropout: where sequences are divided each device
    draws with a key of its own, so that another mesh drops other weights.
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
    """The axes of the mesh that divide rows, positions and heads; none where they do not go into a size."""
    (B, T), (S, G) = q_BTHK.shape[:2], k_BSGK.shape[1:3]
    wanted: Any = (axes.ROWS, (B,)), (("sequence",), (T, S)), (("tensor",), (G,))
    counts = [math.prod(layout.size(axis) for axis in names) for names, _ in wanted]
    fits = [all(size % count == 0 for size in sizes) for (_, sizes), count in zip(wanted, counts, strict=True)]
    return [names if fit else () for (names, _), fit in zip(wanted, fits, strict=True)]


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
    """On one device, whose queries stand from `offset` on; only `blockwise` has another than 0."""
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


# ---- The module -------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention with its four projections: of a sequence to itself, or to another (`memory_BSD`).

    key_heads: shared by heads / key_heads queries each (Ainslie et al. 2023). norm_epsilon: if given, queries and keys
    pass through an RMSNorm over the head (Henry et al. 2020, Dehghani et al. 2023). std, output_std: as Dense has it.
    capture: sows the weights. form: as in `attend`.
    """

    heads: int
    key_heads: int
    head_dim: int
    std: float | None
    output_std: float | None
    bias: bool = True
    norm_epsilon: float | None = None
    dropout: float = 0.0
    causal: bool = True
    dtype: str = "float32"
    capture: bool = False
    form: str = "auto"

    def setup(self) -> None:
        dense = partial(Dense, std=self.std, bias=self.bias, dtype=self.dtype)
        self.query = dense(self.heads * self.head_dim)
        self.key = dense(self.key_heads * self.head_dim)
        self.value = dense(self.key_heads * self.head_dim)
        if self.norm_epsilon is not None:
            self.query_norm = Norm("rmsnorm", self.norm_epsilon)
            self.key_norm = Norm("rmsnorm", self.norm_epsilon)

    def __call__(
        self,
        x_BTD: Array,
        memory_BSD: Array | None = None,
        *,
        turn: tuple[Array, Array] | None = None,
        segments_BT: Array | None = None,
        seen_BS: Array | None = None,
        ends_BS: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        """`turn`: the rotary cosines and sines. `key`: of the dropout of weights. The rest as in `attend`."""
        q_BTHK = self._queries(x_BTD, turn)
        k_BSGK, v_BSGK = self.keys_values(x_BTD if memory_BSD is None else memory_BSD, turn=turn)
        visible: Any = {"causal": self.causal, "segments_BT": segments_BT, "seen_BS": seen_BS, "dtype": self.dtype}
        if self.capture:
            self.sow("intermediates", "weights", attention_weights(q_BTHK, k_BSGK, **visible))
        dropped: Any = {"dropout_rate": self.dropout, "dropout_key": key}
        form = "auto" if self.is_initializing() else self.form  # parameters may be made where they are not trained
        mixed_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, **visible, ends_BS=ends_BS, **dropped, form=form)
        return self._output(mixed_BTHK, x_BTD.shape[-1])

    def extend(
        self, x_BTD: Array, cache: Cache, place: Place, *, turn: tuple[Array, Array] | None = None
    ) -> tuple[Array, Cache]:
        """Causal attention of the next T positions to themselves and what the cache holds, and the cache with them.

        More than one position at once begin an empty cache: they see only each other.
        """
        q_BTF, k_BTF, v_BTF = self.projected(x_BTD)
        q_BTHK, k_BSGK, v_BSGK = (
            self._heads("query", q_BTF, turn),
            self._heads("key", k_BTF, turn),
            self._heads("value", v_BTF),
        )
        B, T, _ = x_BTD.shape
        for name, new_BTGK in (("keys", k_BSGK), ("values", v_BSGK)):
            new_NTK = new_BTGK.swapaxes(1, 2).reshape(-1, T, self.head_dim)  # N: rows and key heads
            new_NTK = _as_held(new_NTK, self.dtype, cache[name].dtype)
            cache = cache | {name: jax.lax.dynamic_update_slice_in_dim(cache[name], new_NTK, place.slot, axis=1)}
        if T == 1:
            k_BGSK, v_BGSK = (cache[name].reshape(B, self.key_heads, -1, self.head_dim) for name in ("keys", "values"))
            mixed_BTHK = attend_cached(q_BTHK, k_BGSK, v_BGSK, place.seen_BS, dtype=self.dtype)
        else:
            visible: Any = {"causal": True, "seen_BS": place.seen_BS[:, :T], "dtype": self.dtype, "form": self.form}
            mixed_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, **visible)
        return self._output(mixed_BTHK, x_BTD.shape[-1]), cache

    def cached(self, x_BTD: Array, k_BSGK: Array, v_BSGK: Array, *, seen_BS: Array | None = None) -> Array:
        """Attention to keys and values that `keys_values` gave, where `seen_BS` is not 0; without dropout."""
        mixed_BTHK = attend(self._queries(x_BTD), k_BSGK, v_BSGK, causal=False, seen_BS=seen_BS, dtype=self.dtype)
        return self._output(mixed_BTHK, x_BTD.shape[-1])

    def keys_values(self, x_BSD: Array, *, turn: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        """The keys and values (B, S, G, K) of a sequence."""
        return self._heads("key", self.key(x_BSD), turn), self._heads("value", self.value(x_BSD))

    def projected(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Queries (B, T, H K), keys and values (B, T, G K) as the projections give them."""
        return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

    def _queries(self, x_BTD: Array, turn: tuple[Array, Array] | None = None) -> Array:
        return self._heads("query", self.query(x_BTD), turn)

    def _heads(self, name: str, y_BTF: Array, turn: tuple[Array, Array] | None = None) -> Array:
        """A projection by heads (B, T, H or G, K); queries and keys normed and turned."""
        y_BTHK = y_BTF.reshape(*y_BTF.shape[:2], -1, self.head_dim)
        if name != "value" and self.norm_epsilon is not None:
            y_BTHK = (self.query_norm if name == "query" else self.key_norm)(y_BTHK)
        return axes.constrain(y_BTHK if turn is None else recomputed(rotate)(y_BTHK, *turn), *_HEADS)

    @nn.compact
    def _output(self, mixed_BTHK: Array, width: int) -> Array:
        B, T, _, _ = mixed_BTHK.shape
        dense = Dense(width, self.output_std, bias=self.bias, dtype=self.dtype, name="output")
        return dense(mixed_BTHK.reshape(B, T, -1))
