"""The decoder-only Transformer, from GPT-2 to LLaMA, set by GPTConfig.

GPT-2: Radford et al. 2019. LLaMA: Touvron et al. 2023.

Shapes: B batch, T positions, D width, V vocabulary.

The parameters are a plain dictionary. "L" marks leaves that `scan` stacks on a leading axis of layers; without `scan`
the same leaves are under `block_0`, `block_1`, ... (`stack` and `unstack` convert).

    leaf                                                 shape        initial value (s = init_std)
    token_embedding/embedding                            (V, D)       normal(s)
    position_embedding/embedding   learned positions     (context, D) normal(s)
    blocks/attention_norm/scale, bias                    L (D)        1, 0
    blocks/attention/query, key, value/kernel, bias      L (D, H K)   normal(s), 0; key and value have G K columns
    blocks/attention/query_norm, key_norm/scale          L (K)        1; with qk_norm
    blocks/attention/output/kernel, bias                 L (H K, D)   normal(s / sqrt(2 layers)), 0
    blocks/mlp_norm/scale, bias                          L (D)        1, 0
    blocks/mlp/up, gate/kernel, bias                     L (D, M)     normal(s), 0; gate with swiglu
    blocks/mlp/down/kernel, bias                         L (M, D)     normal(s / sqrt(2 layers)), 0
    final_norm/scale, bias                               (D)          1, 0
    head/kernel                    untied                (D, V)       normal(s)

The standard deviation and its scaling by depth are those of GPT-2 (section 2.3). Biases exist with `bias`; RMSNorm has
none.
"""

import dataclasses
import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import GPTConfig, UserError
from lmjax.config.ranges import check_ranges
from lmjax.models import costs
from lmjax.models.attention.attend import Place
from lmjax.models.attention.module import Attention, Cache
from lmjax.models.costs import check_gpt, resolve_gpt
from lmjax.models.family import Family
from lmjax.models.layers import MLP, Dense, Embedding, Norm, dropout, product, rotation
from lmjax.parallel import axes

# "parent/leaf" of a parameter -> one logical name for each axis; `lmjax.parallel.axes` maps these names to the mesh.
# "features" is the axis of a vector: vectors are small and replicated.
LOGICAL_AXES = {
    "token_embedding/embedding": ("vocab", "embed"),
    "position_embedding/embedding": ("positions", "embed"),
    "query/kernel": ("embed", "heads"),
    "key/kernel": ("embed", "heads"),
    "value/kernel": ("embed", "heads"),
    "output/kernel": ("heads", "embed"),
    "up/kernel": ("embed", "mlp"),
    "gate/kernel": ("embed", "mlp"),
    "down/kernel": ("mlp", "embed"),
    "head/kernel": ("embed", "vocab"),
    "query/bias": ("heads",),
    "key/bias": ("heads",),
    "value/bias": ("heads",),
    "output/bias": ("features",),
    "up/bias": ("mlp",),
    "gate/bias": ("mlp",),
    "down/bias": ("features",),
    "query_norm/scale": ("head_dim",),
    "key_norm/scale": ("head_dim",),
    "attention_norm/scale": ("features",),
    "attention_norm/bias": ("features",),
    "mlp_norm/scale": ("features",),
    "mlp_norm/bias": ("features",),
    "final_norm/scale": ("features",),
    "final_norm/bias": ("features",),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    #: The resolved configuration.
    config: GPTConfig
    #: Sow the attention weights.
    capture: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        of_layer: tuple[Array | None, Cache | None],
        turn: tuple[Array, Array] | None,
        visible: tuple[Array | None, Array | None],
        place: Place | None,
    ) -> tuple[Array, Cache | None]:
        """Compute the layer; returns x and the layer's next cache, if there is one.

        Args:
            x_BTD: The input.
            of_layer: Dropout key and cache of the layer.
            turn: Cosines and sines of rotary positions.
            visible: (segments_BT, ends_BT).
            place: Position in the cache.
        """
        c, (key, cache) = self.config, of_layer
        std, output_std = c.init_std, c.init_std / math.sqrt(2 * c.layers)
        norm = partial(Norm, c.norm, c.norm_epsilon, c.bias)
        weights_key, attention_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        attention = Attention(
            heads=c.heads,
            key_heads=c.key_heads,
            head_dim=c.head_dim,
            std=std,
            output_std=output_std,
            bias=c.bias,
            norm_epsilon=c.norm_epsilon if c.qk_norm else None,
            dropout=c.dropout,
            dtype=c.dtype,
            capture=self.capture,
            form=c.attention,
            name="attention",
        )
        y_BTD = norm(name="attention_norm")(x_BTD)
        if cache is None or place is None:
            segments_BT, ends_BT = visible
            y_BTD = attention(y_BTD, turn=turn, segments_BT=segments_BT, ends_BS=ends_BT, key=weights_key)
        else:
            y_BTD, cache = attention.extend(y_BTD, cache, place, turn=turn)
        x_BTD = axes.constrain(x_BTD + dropout(y_BTD, c.dropout, attention_key), "batch", "length", None)
        y_BTD = norm(name="mlp_norm")(x_BTD)
        y_BTD = MLP(c.mlp_width, c.activation, std, output_std, c.bias, c.dtype, name="mlp")(y_BTD)
        return axes.constrain(x_BTD + dropout(y_BTD, c.dropout, mlp_key), "batch", "length", None), cache


class GPT(nn.Module):
    """Token ids to logits."""

    #: The configuration, with a known `vocab_size`.
    config: GPTConfig
    #: Sow the attention weights of every layer.
    capture: bool = False

    @nn.compact
    def __call__(
        self,
        inputs_BT: Array,
        *,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        ends_BT: Array | None = None,
        places_BN: Array | None = None,
        cache: Any = None,
        train: bool = False,
        head: bool = True,
    ) -> Any:
        """Logits (B, T, V), float32; without `head` the features (B, T, D) of the last norm.

        With `capture` and mutable=["intermediates"], the attention weights (B, H, T, T) are at
        blocks/attention/weights (stacked if scanned) or block_i/attention/weights.

        Args:
            inputs_BT: Token ids.
            segments_BT: Segments of packed documents; attention stays within a segment.
            positions_BT: Positions; default 0, 1, ...
            ends_BT: A position is visible only to positions before its end (a tree with shared prefixes).
            places_BN: Return (B, N, V) at these positions only.
            cache: From `begin`; sets the positions, and the result is (logits, next cache).
            train: Apply dropout, from the "dropout" generator.
            head: Apply the output layer.

        Raises:
            UserError: There are more positions than the learned table has.
        """
        c, T = resolve_gpt(self.config), inputs_BT.shape[1]
        embed_key, key = jax.random.split(self.make_rng("dropout")) if train and c.dropout else (None, None)
        place = None
        if cache is not None:
            place, positions_BT = _place(cache, T, c)
        with jax.named_scope("embed"):
            tokens = Embedding(c.vocab_size, c.width, c.init_std, c.dtype, name="token_embedding")
            x_BTD, turn = tokens(inputs_BT), None
            if c.positions == "learned":
                if positions_BT is None and c.context < T:
                    raise UserError(f"{T} tokens exceed model.context={c.context} learned positions; shorten the input")
                table = Embedding(c.context, c.width, c.init_std, name="position_embedding")
                x_BTD += table.first(T) if positions_BT is None else table(positions_BT)
            else:
                positions_BT = jnp.arange(T)[None] if positions_BT is None else positions_BT
                turn = rotation(positions_BT, c.head_dim, c.rope_theta, x_BTD.dtype, c.rope_scaling)
            x_BTD = axes.constrain(dropout(x_BTD, c.dropout, embed_key), "batch", "length", None)
        layers = None if cache is None else cache["layers"]
        x_BTD, layers = self._blocks(c, x_BTD, (key, layers), turn, (segments_BT, ends_BT), place)
        if places_BN is not None:
            x_BTD = jnp.take_along_axis(x_BTD, places_BN[..., None], axis=1)
        x_BTD = Norm(c.norm, c.norm_epsilon, c.bias, name="final_norm")(x_BTD)
        if not head:
            return x_BTD
        with jax.named_scope("logits"):
            output = tokens.logits if c.tied else Dense(c.vocab_size, c.init_std, False, c.dtype, name="head")
            logits_BTV = axes.constrain(output(x_BTD), "batch", "length", "vocab")
        return logits_BTV if cache is None else (logits_BTV, cache | {"layers": layers, "slot": cache["slot"] + T})

    @nn.nowrap
    def _blocks(
        self,
        c: GPTConfig,
        x_BTD: Array,
        of_layers: tuple[Array | None, Any],
        turn: tuple[Array, Array] | None,
        visible: tuple[Array | None, Array | None],
        place: Place | None,
    ) -> tuple[Array, Any]:
        key, caches = of_layers
        keys = None if key is None else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(c.layers))
        block = rematerialised(Block, c.remat, c.scan)
        if c.scan:
            in_axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)  # keys, caches; turn, visible, place
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                length=c.layers,
            )
            return scanned(c, self.capture, name="blocks")(x_BTD, (keys, caches), turn, visible, place)
        after = []
        for i in range(c.layers):
            of_layer = None if keys is None else keys[i], None if caches is None else caches[i]
            x_BTD, cache = block(c, self.capture, name=f"block_{i}")(x_BTD, of_layer, turn, visible, place)
            after.append(cache)
        return x_BTD, tuple(after)


def rematerialised(block: Any, remat: str, scan: bool) -> Any:
    """Apply rematerialization to the module of one layer.

    `dots` keeps the results of products with weights, and no scores. On CPU only a scan saves memory: in an unrolled
    program XLA merges duplicate computations.
    """
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(block, policy=policy, prevent_cse=not scan)


# ---- Parameters -------------------------------------------------------------------------------------------------


def init_params(model: GPT, seed: int | Array) -> dict[str, Any]:
    """Initialize the parameters (table above) from a seed; scanning does not change them.

    The function is traceable: under `jax.eval_shape` it costs nothing, and under `jit` with `out_shardings` no leaf is
    materialized unsharded.
    """
    check_ranges(model.config, "model")
    check_gpt(model.config)
    return _init_params(resolve_gpt(model.config), seed)


@partial(jax.jit, static_argnums=0)
def _init_params(c: GPTConfig, seed: Array) -> dict[str, Any]:
    outer_key, blocks_key = jax.random.split(jax.random.key(seed))
    without_blocks = GPT(dataclasses.replace(c, layers=0, scan=False))
    outer: Any = without_blocks.init(outer_key, jnp.zeros((1, 1), jnp.int32))["params"]

    def block(layer: Array) -> Any:
        inputs = jnp.zeros((1, 1, c.width)), (None, None), None, (None, None), None
        return Block(c).init(jax.random.fold_in(blocks_key, layer), *inputs)["params"]

    params = outer | {"blocks": jax.vmap(block)(jnp.arange(c.layers))}
    return params if c.scan else unstack(params)


# ---- The cache of keys and values -------------------------------------------------------------------------------


def begin(config: GPTConfig, first_B: Array, size: int) -> dict[str, Any]:
    """Create an empty cache for `size` positions of B rows; row b begins at slot first_B[b].

    The padding is on the left. The cache holds keys and values (B G, S, K) of every layer, stacked if the model scans,
    in the dtype that products read. On CPU it holds float32 numbers rounded to this dtype, since XLA would convert the
    complete cache for each token.
    """
    c = resolve_gpt(config)
    shape = len(first_B) * c.key_heads, size, c.head_dim
    dtype = jnp.bfloat16 if c.dtype == "bfloat16" and jax.default_backend() != "cpu" else jnp.float32
    lead = (c.layers,) if c.scan else ()
    layers = [
        {name: jnp.zeros(lead + shape, dtype) for name in ("keys", "values")} for _ in range(1 if c.scan else c.layers)
    ]
    return {"layers": layers[0] if c.scan else tuple(layers), "slot": jnp.int32(0), "first_B": first_B}


def unstacked_cache(cache: dict[str, Any]) -> dict[str, Any]:
    """Convert the cache of a scanned model to that of the unrolled model."""
    stacked = cache["layers"]
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(stacked["keys"])))
    return cache | {"layers": layers}


def _place(cache: dict[str, Any], T: int, c: GPTConfig) -> tuple[Place, Array]:
    """The cache slots of the next T positions, and the positions (B, T)."""
    layers = cache["layers"] if c.scan else cache["layers"][0]
    slots_S, first_B1 = jnp.arange(layers["keys"].shape[-2]), cache["first_B"][:, None]
    seen_BS = (slots_S >= first_B1) & (slots_S < cache["slot"] + T)
    positions_BT = jnp.maximum(cache["slot"] + jnp.arange(T) - first_B1, 0)
    return Place(cache["slot"], seen_BS), positions_BT


def stack(params: dict[str, Any]) -> dict[str, Any]:
    """Convert parameters of an unrolled model (`block_0`, ...) to a scanned model (`blocks`)."""
    names = sorted((name for name in params if re.fullmatch(r"block_\d+", name)), key=lambda name: int(name[6:]))
    blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *(params[name] for name in names))
    return {name: leaf for name, leaf in params.items() if name not in names} | {"blocks": blocks}


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack`."""
    blocks = params["blocks"]
    layers = len(jax.tree.leaves(blocks)[0])
    unrolled = {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(layers)}
    return {name: leaf for name, leaf in params.items() if name != "blocks"} | unrolled


def logits(config: GPTConfig, params: Any, x_ND: Array) -> Array:
    """Apply the output layer to features (N, D) of a call without `head`: logits (N, V)."""
    name, leaf, axis = ("token_embedding", "embedding", 1) if config.tied else ("head", "kernel", 0)
    return product(x_ND, params[name][leaf], axis, config.dtype, axes.held(name, leaf))


FAMILY = Family(
    module=GPT,
    axes=LOGICAL_AXES,
    check=check_gpt,
    parameters=costs.parameters,
    flops_per_token=costs.flops_per_token,
    activation_bytes=costs.activation_bytes,
    resolve=resolve_gpt,
    mesh_axes=("tensor", "sequence"),
)
