"""The encoder-decoder Transformer of Vaswani et al. 2017, set by TransformerConfig.

Shapes: B batch, S source positions, T target positions, D width, M MLP width, H heads, K head size, V vocabulary.

The parameters are a plain dictionary; i counts the layers of each stack.

    leaf                                                          shape      initial value
    token_embedding/embedding               shared                (V, D)     normal(D^-0.5)
    source_embedding, target_embedding/embedding    not shared    (V, D)     normal(D^-0.5)
    head/kernel                             not shared            (D, V)     Glorot, as every kernel
    encoder_i, decoder_i/attention/query, key, value, output/...             kernel (D, D), bias (D)
    decoder_i/cross_attention/query, key, value, output/...                  kernel (D, D), bias (D)
    encoder_i, decoder_i/mlp/up, down/kernel, bias                           (D, M), (M); (M, D), (D)
    encoder_i, decoder_i/attention_norm, mlp_norm/scale, bias     (D)        1, 0, as every norm
    decoder_i/cross_norm/scale, bias                              (D)
    encoder_norm, decoder_norm/scale, bias  norm_first            (D)

Glorot is the uniform distribution within +-sqrt(6 / (rows + columns)); the paper does not specify the initialization.
Initial biases are 0. Embeddings are scaled by sqrt(D) (section 3.4), so that their initial values are normal(1).
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from lmjax.config import TransformerConfig, UserError
from lmjax.models import gpt
from lmjax.models.attention.module import Attention
from lmjax.models.costs import query_blocks
from lmjax.models.family import Family
from lmjax.models.layers import MLP, Dense, Embedding, Norm, dropout, sinusoids
from lmjax.parallel import axes

# Extends gpt.LOGICAL_AXES.
LOGICAL_AXES = gpt.LOGICAL_AXES | {
    "source_embedding/embedding": ("vocab", "embed"),
    "target_embedding/embedding": ("vocab", "embed"),
    "cross_norm/scale": ("features",),
    "cross_norm/bias": ("features",),
    "encoder_norm/scale": ("features",),
    "encoder_norm/bias": ("features",),
    "decoder_norm/scale": ("features",),
    "decoder_norm/bias": ("features",),
}


class Block(nn.Module):
    """A layer: self-attention, in the decoder cross-attention, and the MLP (section 3.1).

    Each sublayer is norm(x + f(x)), or x + f(norm(x)) with `norm_first`.
    """

    #: The resolved configuration.
    config: TransformerConfig
    #: Whether the layer belongs to the decoder.
    decoder: bool

    def setup(self) -> None:
        """Create the submodules."""
        c = self.config
        norm = partial(Norm, "layernorm", c.norm_epsilon)
        sizes: dict[str, Any] = {"heads": c.heads, "key_heads": c.heads, "head_dim": c.width // c.heads}
        attention = partial(Attention, **sizes, std=None, output_std=None, dtype=c.dtype)
        self.attention, self.attention_norm = attention(causal=self.decoder), norm()
        if self.decoder:
            self.cross_attention, self.cross_norm = attention(causal=False), norm()
        self.mlp, self.mlp_norm = MLP(c.mlp_width, c.activation, None, None, dtype=c.dtype), norm()

    def __call__(
        self, x_BTD: Array, memory_BSD: Array | None = None, *, seen_BS: Array | None = None, key: Array | None = None
    ) -> Array:
        """Compute the layer.

        Args:
            x_BTD: The input.
            memory_BSD: The encoder's output, for the decoder.
            seen_BS: 0 hides a source position.
            key: Dropout key.
        """
        attention_key, cross_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        y_BTD = self._before(self.attention_norm, x_BTD)
        y_BTD = self.attention(y_BTD, seen_BS=None if self.decoder else seen_BS)
        x_BTD = self._after(self.attention_norm, x_BTD, y_BTD, attention_key)
        if self.decoder:
            y_BTD = self.cross_attention(self._before(self.cross_norm, x_BTD), memory_BSD, seen_BS=seen_BS)
            x_BTD = self._after(self.cross_norm, x_BTD, y_BTD, cross_key)
        return self._mlp(x_BTD, mlp_key)

    def step(
        self, x_B1D: Array, place: Array, past: dict[str, Array], memory: dict[str, Array], seen_BS: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Compute the decoder's layer at one position; returns x and the updated cache `past`."""
        y_B1D = self._before(self.attention_norm, x_B1D)
        own = self.keys_values(y_B1D)
        past = {name: lax.dynamic_update_slice_in_dim(past[name], own[name], place, axis=1) for name in past}
        so_far_1T = jnp.arange(past["keys"].shape[1])[None] <= place
        y_B1D = self.attention.cached(y_B1D, past["keys"], past["values"], seen_BS=so_far_1T)
        x_B1D = self._after(self.attention_norm, x_B1D, y_B1D)
        y_B1D = self._before(self.cross_norm, x_B1D)
        y_B1D = self.cross_attention.cached(y_B1D, memory["keys"], memory["values"], seen_BS=seen_BS)
        return self._mlp(self._after(self.cross_norm, x_B1D, y_B1D)), past

    def keys_values(self, x_BSD: Array, *, cross: bool = False) -> dict[str, Array]:
        """The keys and values (B, S, H, K) for self-attention or, with `cross`, cross-attention."""
        keys, values = (self.cross_attention if cross else self.attention).keys_values(x_BSD)
        return {"keys": keys, "values": values}

    def _mlp(self, x_BTD: Array, key: Array | None = None) -> Array:
        return self._after(self.mlp_norm, x_BTD, self.mlp(self._before(self.mlp_norm, x_BTD)), key)

    @nn.nowrap
    def _before(self, norm: Norm, x_BTD: Array) -> Array:
        return norm(x_BTD) if self.config.norm_first else x_BTD

    @nn.nowrap
    def _after(self, norm: Norm, x_BTD: Array, y_BTD: Array, key: Array | None = None) -> Array:
        x_BTD = axes.constrain(x_BTD + dropout(y_BTD, self.config.dropout, key), "batch", "length", None)
        return x_BTD if self.config.norm_first else norm(x_BTD)


class Transformer(nn.Module):
    """Source and target ids to logits.

    `source_mask_BS` is 0 at padding of a source; no position attends to it. A target needs no mask: the positions
    before its padding do not see it. `train` applies dropout to the output of every sublayer and to the sum of
    embeddings and positions (section 5.4), from the "dropout" generator.
    """

    #: The configuration, with a known `vocab_size`.
    config: TransformerConfig

    def setup(self) -> None:
        """Create the submodules."""
        c = resolve(self.config)
        table = partial(Embedding, c.vocab_size, c.width, c.width**-0.5, c.dtype)
        if c.shared:
            self.token_embedding = table()
        else:
            self.source_embedding, self.target_embedding = table(), table()
            self.head = Dense(c.vocab_size, None, bias=False, dtype=c.dtype)
        self.encoder = [Block(c, decoder=False) for _ in range(c.layers)]
        self.decoder = [Block(c, decoder=True) for _ in range(c.layers)]
        if c.norm_first:
            norm = partial(Norm, "layernorm", c.norm_epsilon)
            self.encoder_norm, self.decoder_norm = norm(), norm()

    def __call__(
        self, source_BS: Array, target_BT: Array, *, source_mask_BS: Array | None = None, train: bool = False
    ) -> Array:
        """Logits (B, T, V), float32, of the next tokens; targets start with a begin token."""
        memory_BSD = self.encode(source_BS, source_mask_BS=source_mask_BS, train=train)
        return self.decode(target_BT, memory_BSD, source_mask_BS=source_mask_BS, train=train)

    def encode(self, source_BS: Array, *, source_mask_BS: Array | None = None, train: bool = False) -> Array:
        """Encode sources to the memory (B, S, D), float32, that the decoder attends to."""
        x_BSD, keys = self._embed(self._tables()[0], source_BS, train)
        for block, key in zip(self.encoder, keys, strict=True):
            x_BSD = block(x_BSD, seen_BS=source_mask_BS, key=key)
        return self.encoder_norm(x_BSD) if self.config.norm_first else x_BSD

    def decode(
        self, target_BT: Array, memory_BSD: Array, *, source_mask_BS: Array | None = None, train: bool = False
    ) -> Array:
        """Decode targets as `__call__`, from the memory of `encode`."""
        x_BTD, keys = self._embed(self._tables()[1], target_BT, train)
        for block, key in zip(self.decoder, keys, strict=True):
            x_BTD = block(x_BTD, memory_BSD, seen_BS=source_mask_BS, key=key)
        return self._logits(x_BTD)

    def start(self, memory_BSD: Array, length: int) -> dict[str, list[dict[str, Array]]]:
        """Create a cache for `step` of at most `length` target positions.

        The first axis of every leaf indexes rows. `memory` holds each layer's keys and values of the encoder's output,
        `past` those of the target, initially zeros.
        """
        c = self.config
        shape = memory_BSD.shape[0], length, c.heads, c.width // c.heads
        empty = {name: jnp.zeros(shape, memory_BSD.dtype) for name in ("keys", "values")}
        memory = [block.keys_values(memory_BSD, cross=True) for block in self.decoder]
        return {"memory": memory, "past": [empty] * c.layers}

    def step(
        self, token_B: Array, place: Array, cache: dict[str, Any], *, source_mask_BS: Array | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Decode one token: logits (B, V) of the next token, and the updated cache.

        `token_B` is at position `place` (a single integer). All previous positions must have been decoded, from 0.
        `cache["memory"]` is returned as the identical object.
        """
        c, past = self.config, []
        length = cache["past"][0]["keys"].shape[1]
        x_BD = self._tables()[1](token_B) * math.sqrt(c.width) + sinusoids(length, c.width)[place]
        x_B1D = x_BD[:, None]
        for block, layer_past, layer_memory in zip(self.decoder, cache["past"], cache["memory"], strict=True):
            x_B1D, layer_past = block.step(x_B1D, place, layer_past, layer_memory, source_mask_BS)
            past.append(layer_past)
        return self._logits(x_B1D)[:, 0], {"memory": cache["memory"], "past": past}

    def _embed(self, table: Embedding, ids_BT: Array, train: bool) -> tuple[Array, list[Array | None]]:
        """The scaled vectors with their positions, and a dropout key for each layer."""
        c = self.config
        with jax.named_scope("embed"):
            x_BTD = table(ids_BT) * math.sqrt(c.width) + sinusoids(ids_BT.shape[1], c.width)
            x_BTD = axes.constrain(x_BTD, "batch", "length", None)
            if not (train and c.dropout):
                return x_BTD, [None] * c.layers
            key, *keys = jax.random.split(self.make_rng("dropout"), c.layers + 1)
            return dropout(x_BTD, c.dropout, key), keys

    def _logits(self, x_BTD: Array) -> Array:
        with jax.named_scope("logits"):
            x_BTD = self.decoder_norm(x_BTD) if self.config.norm_first else x_BTD
            logits_BTV = self.token_embedding.logits(x_BTD) if self.config.shared else self.head(x_BTD)
            return axes.constrain(logits_BTV, "batch", "length", "vocab")

    @nn.nowrap
    def _tables(self) -> tuple[Embedding, Embedding]:
        """The embeddings of the source and of the target."""
        if self.config.shared:
            return self.token_embedding, self.token_embedding
        return self.source_embedding, self.target_embedding


# ---- Closed forms -----------------------------------------------------------------------------------------------


def resolve(config: TransformerConfig) -> TransformerConfig:
    """Replace a `mlp_width` of 0 by its default value."""
    return replace(config, mlp_width=config.mlp_width or 4 * config.width)


def check(config: TransformerConfig) -> None:
    """Check the rules between the fields of a configuration; `vocab_size` may still be 0.

    Raises:
        UserError: Two values contradict each other; the message names them.
    """
    if config.width % config.heads:
        raise UserError(
            f"model.width={config.width} does not divide among model.heads={config.heads}; change one of them"
        )


def parameters(config: TransformerConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`.

    A shared output layer is part of the embeddings.
    """
    c = resolve(config)
    V, D, M, L = c.vocab_size, c.width, c.mlp_width, c.layers
    parts = {
        "embeddings": V * D * (1 if c.shared else 2),
        "attention": 3 * L * 4 * (D * D + D),
        "mlp": 2 * L * (2 * D * M + M + D),
        "norms": 2 * D * (5 * L + 2 * c.norm_first),
        "output layer": 0 if c.shared else V * D,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def flops_per_token(config: TransformerConfig) -> float:
    """Training FLOPs per token of a source and a target of `context` tokens each.

    Counted as for GPT (`lmjax.models.costs`): every weight of a product takes 6 FLOPs for each of `context` tokens,
    those of the source or those of the target. A query takes 12 D FLOPs for each key with a computed score.
    """
    c = resolve(config)
    weights = c.layers * (12 * c.width**2 + 4 * c.width * c.mlp_width) + c.vocab_size * c.width
    keys = 2 * c.context + _causal_keys(c)
    return (6.0 * weights + 12.0 * c.layers * c.width * keys) / 2


def _causal_keys(config: TransformerConfig) -> float:
    """The average number of keys with a computed score in the decoder's self-attention."""
    T = config.context
    return sum((end - start) * keys_seen for start, end, keys_seen in query_blocks(T, T, True)) / T


def activation_bytes(config: TransformerConfig) -> float:
    """An estimate of the bytes per token that the backward pass keeps for a pair of texts.

    It counts, without logits, the inputs of norms and of the nonlinearity in float32, and the inputs of products.
    """
    c = resolve(config)
    D, M, narrow = c.width, c.mlp_width, 2 if c.dtype == "bfloat16" else 4
    # Attention: input, queries, keys, values, output (also kept in float32), maximum and sum of the weights.
    encoder = 4 * (3 * D + M) + narrow * (6 * D + M) + 8 * c.heads
    decoder = 4 * (5 * D + M) + narrow * (11 * D + M) + 16 * c.heads
    scores = 12 * c.heads * c.context  # and their gradients, of the layer being computed
    return (c.layers * (encoder + decoder) + decoder + scores) / 2


FAMILY = Family(
    module=Transformer,
    axes=LOGICAL_AXES,
    check=check,
    parameters=parameters,
    flops_per_token=flops_per_token,
    activation_bytes=activation_bytes,
    resolve=resolve,
    predicted=lambda config: 0.5,  # logits exist for the target only
    mesh_axes=("tensor",),
    sequences=2,
)
