"""The attention module: projections around `attend`.

Shapes: B batch, T query positions, S key positions, D width, H heads, G key heads, R = H / G heads that share a key
head (head h reads key head h // R), K head size.
"""

from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from lmjax.models.attention.attend import HEADS, Place, as_held, attend, attend_cached, attention_weights
from lmjax.models.layers import Dense, Norm, recomputed, rotate
from lmjax.parallel import axes

Cache = dict[str, Array]  # a layer's "keys" and "values" (B G, S, K)


class Attention(nn.Module):
    """Self-attention, or cross-attention (`memory_BSD`), with its four projections."""

    #: Number of query heads H.
    heads: int
    #: Number of key heads G; each serves heads / key_heads query heads (Ainslie et al. 2023).
    key_heads: int
    #: Size K of a head.
    head_dim: int
    #: `std` of `Dense` for queries, keys and values.
    std: float | None
    #: `std` of `Dense` for the output.
    output_std: float | None
    #: Whether the projections have biases.
    bias: bool = True
    #: Epsilon of an RMSNorm of queries and keys over the head (Henry et al. 2020, Dehghani et al. 2023); None: no norm.
    norm_epsilon: float | None = None
    #: Dropout rate of the weights.
    dropout: float = 0.0
    #: Whether a query sees only the keys up to its position.
    causal: bool = True
    #: Dtype to which products round their inputs.
    dtype: str = "float32"
    #: Sow the attention weights.
    capture: bool = False
    #: Implementation, as in `attend`.
    form: str = "auto"

    def setup(self) -> None:
        """Create the projections."""
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
        """Compute attention (B, T, D).

        Args:
            x_BTD: Sequence of the queries.
            memory_BSD: Sequence of the keys and values; None: `x_BTD`.
            turn: Cosines and sines of rotary positions.
            segments_BT: See `attend`.
            seen_BS: See `attend`.
            ends_BS: See `attend`.
            key: Key of the dropout of weights.
        """
        q_BTHK = self._queries(x_BTD, turn)
        k_BSGK, v_BSGK = self.keys_values(x_BTD if memory_BSD is None else memory_BSD, turn=turn)
        visible: Any = {"causal": self.causal, "segments_BT": segments_BT, "seen_BS": seen_BS, "dtype": self.dtype}
        if self.capture:
            self.sow("intermediates", "weights", attention_weights(q_BTHK, k_BSGK, **visible))
        dropped: Any = {"dropout_rate": self.dropout, "dropout_key": key}
        form = "auto" if self.is_initializing() else self.form  # the initializing device may lack the kernel
        mixed_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, **visible, ends_BS=ends_BS, **dropped, form=form)
        return self._output(mixed_BTHK, x_BTD.shape[-1])

    def extend(
        self, x_BTD: Array, cache: Cache, place: Place, *, turn: tuple[Array, Array] | None = None
    ) -> tuple[Array, Cache]:
        """Causal attention of the next T positions to the cache and themselves; updates the cache.

        If T > 1 the cache must be empty: the positions see only each other.
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
            new_NTK = as_held(new_NTK, self.dtype, cache[name].dtype)
            cache = cache | {name: jax.lax.dynamic_update_slice_in_dim(cache[name], new_NTK, place.slot, axis=1)}
        if T == 1:
            k_BGSK, v_BGSK = (cache[name].reshape(B, self.key_heads, -1, self.head_dim) for name in ("keys", "values"))
            mixed_BTHK = attend_cached(q_BTHK, k_BGSK, v_BGSK, place.seen_BS, dtype=self.dtype)
        else:
            visible: Any = {"causal": True, "seen_BS": place.seen_BS[:, :T], "dtype": self.dtype, "form": self.form}
            mixed_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, **visible)
        return self._output(mixed_BTHK, x_BTD.shape[-1]), cache

    def cached(self, x_BTD: Array, k_BSGK: Array, v_BSGK: Array, *, seen_BS: Array | None = None) -> Array:
        """Attention to precomputed `keys_values` where `seen_BS` is not 0; without dropout."""
        mixed_BTHK = attend(self._queries(x_BTD), k_BSGK, v_BSGK, causal=False, seen_BS=seen_BS, dtype=self.dtype)
        return self._output(mixed_BTHK, x_BTD.shape[-1])

    def keys_values(self, x_BSD: Array, *, turn: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        """The keys and values (B, S, G, K) of a sequence."""
        return self._heads("key", self.key(x_BSD), turn), self._heads("value", self.value(x_BSD))

    def projected(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """The projections: queries (B, T, H K), keys and values (B, T, G K)."""
        return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

    def _queries(self, x_BTD: Array, turn: tuple[Array, Array] | None = None) -> Array:
        return self._heads("query", self.query(x_BTD), turn)

    def _heads(self, name: str, y_BTF: Array, turn: tuple[Array, Array] | None = None) -> Array:
        """Split a projection into heads (B, T, H or G, K); normalize and rotate queries and keys."""
        y_BTHK = y_BTF.reshape(*y_BTF.shape[:2], -1, self.head_dim)
        if name != "value" and self.norm_epsilon is not None:
            y_BTHK = (self.query_norm if name == "query" else self.key_norm)(y_BTHK)
        return axes.constrain(y_BTHK if turn is None else recomputed(rotate)(y_BTHK, *turn), *HEADS)

    @nn.compact
    def _output(self, mixed_BTHK: Array, width: int) -> Array:
        B, T, _, _ = mixed_BTHK.shape
        dense = Dense(width, self.output_std, bias=self.bias, dtype=self.dtype, name="output")
        return dense(mixed_BTHK.reshape(B, T, -1))
