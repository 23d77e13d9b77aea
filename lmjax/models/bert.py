"""BERT, the bidirectional encoder of Devlin et al. 2019, with its two heads.

Shapes: B batch, T positions, P predicted positions, D width, M MLP width, V vocabulary.

The parameters are a plain dictionary; "L" (layers) and `scan` as in `lmjax.models.gpt`:

    leaf                                                 shape        initial value
    token_embedding/embedding                            (V, D)       normal(init_std), as every matrix
    kind_embedding/embedding       the two parts         (segments, D)
    position_embedding/embedding                         (context, D)
    embedding_norm/scale, bias                           (D)          1, 0, as every norm; every bias starts at 0
    blocks/attention/query, key, value, output/...       L kernel (D, D), bias (D)
    blocks/attention_norm/scale, bias                    L (D)
    blocks/mlp/up, down/kernel, bias                     L (D, M), (M); (M, D), (D)
    blocks/mlp_norm/scale, bias                          L (D)
    pooler/kernel, bias                                  (D, D), (D)
    masked_head/transform/kernel, bias                   (D, D), (D)
    masked_head/norm/scale, bias                         (D)
    masked_head/bias                                     (V)          the matrix is the token embedding
    next_sentence/kernel, bias     with that head        (D, 2), (2)
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import BERTConfig, MaskedConfig, UserError
from lmjax.data.batches import masking
from lmjax.models import gpt
from lmjax.models.attention.module import Attention
from lmjax.models.family import Family
from lmjax.models.gpt import unstack
from lmjax.models.layers import MLP, Dense, Embedding, Norm, activate, dropout, recomputed, weight
from lmjax.parallel import axes

# Extends gpt.LOGICAL_AXES.
LOGICAL_AXES = gpt.LOGICAL_AXES | {
    "kind_embedding/embedding": ("kinds", "embed"),
    "embedding_norm/scale": ("features",),
    "embedding_norm/bias": ("features",),
    "pooler/kernel": ("embed", "pooled"),
    "pooler/bias": ("pooled",),
    "transform/kernel": ("embed", "transformed"),
    "transform/bias": ("transformed",),
    "norm/scale": ("transformed",),
    "norm/bias": ("transformed",),
    "masked_head/bias": ("vocab",),
    "next_sentence/kernel": ("pooled", "classes"),
    "next_sentence/bias": ("classes",),
}


class Outputs(NamedTuple):
    """The outputs of BERT, float32."""

    #: Hidden states of the last layer.
    hidden_BTD: Array
    #: Pooled representation of each row.
    pooled_BD: Array
    #: Logits of the tokens at the predicted positions.
    logits_BPV: Array
    #: Logits of "the second text follows" (0) and "it does not" (1); None without this head.
    next_B2: Array | None


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    #: The resolved configuration.
    config: BERTConfig
    #: Sow the attention weights.
    capture: bool = False

    @nn.compact
    def __call__(self, x_BTD: Array, key: Array | None, real_BT: Array) -> tuple[Array, None]:
        """Compute the layer; returns (x, None) for a scan over layers."""
        c, std = self.config, self.config.init_std
        norm = partial(Norm, "layernorm", c.norm_epsilon)
        weights_key, attention_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        attention = Attention(
            heads=c.heads,
            key_heads=c.heads,
            head_dim=c.width // c.heads,
            std=std,
            output_std=std,
            dropout=c.dropout,
            causal=False,
            dtype=c.dtype,
            capture=self.capture,
            name="attention",
        )
        y_BTD = attention(x_BTD, seen_BS=real_BT, key=weights_key)
        x_BTD = norm(name="attention_norm")(x_BTD + dropout(y_BTD, c.dropout, attention_key))
        y_BTD = MLP(c.mlp_width, c.activation, std, std, dtype=c.dtype, name="mlp")(x_BTD)
        x_BTD = norm(name="mlp_norm")(x_BTD + dropout(y_BTD, c.dropout, mlp_key))
        return axes.constrain(x_BTD, "batch", "length", None), None


class MaskedHead(nn.Module):
    """Token logits from hidden states: act(W x + b), a norm, the tied output layer, a bias."""

    #: The resolved configuration.
    config: BERTConfig

    @nn.compact
    def __call__(self, x_BPD: Array, tokens: Embedding) -> Array:
        """Compute the logits (B, P, V); `tokens`: the token embedding."""
        c = self.config
        y_BPD = Dense(c.width, c.init_std, dtype=c.dtype, name="transform")(x_BPD)
        y_BPD = recomputed(partial(activate, kind=c.activation))(y_BPD)
        y_BPD = Norm("layernorm", c.norm_epsilon, name="norm")(y_BPD)
        logits_BPV = tokens.logits(y_BPD) + weight(self, "bias", nn.initializers.zeros, (c.vocab_size,))
        return axes.constrain(logits_BPV, "batch", None, "vocab")


class BERT(nn.Module):
    """Token ids to `Outputs`."""

    #: The configuration, with a known `vocab_size`.
    config: BERTConfig
    #: Sow the attention weights of every layer.
    capture: bool = False

    def setup(self) -> None:
        """Create the submodules."""
        c = resolve(self.config)
        table = partial(Embedding, width=c.width, std=c.init_std)
        dense = partial(Dense, std=c.init_std, dtype=c.dtype)
        self.token_embedding = table(c.vocab_size, dtype=c.dtype)
        self.kind_embedding = table(c.segments)
        self.position_embedding = table(c.context)
        self.embedding_norm = Norm("layernorm", c.norm_epsilon)
        block = gpt.rematerialised(Block, c.remat, c.scan)
        if c.scan:
            in_axes: Any = (0, nn.broadcast)  # keys; real_BT
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                length=c.layers,
            )
            self.blocks = scanned(c, self.capture)
        else:
            self.block = [block(c, self.capture) for _ in range(c.layers)]
        self.pooler = dense(c.width)
        self.masked_head = MaskedHead(c)
        if c.next_sentence:
            self.next_sentence = dense(2)

    def __call__(
        self,
        inputs_BT: Array,
        *,
        kinds_BT: Array,
        real_BT: Array,
        places_BP: Array | None = None,
        train: bool = False,
    ) -> Outputs:
        """Compute the outputs of all heads.

        Args:
            inputs_BT: Token ids.
            kinds_BT: See `encode`.
            real_BT: See `encode`.
            places_BP: Positions whose tokens are predicted (section 3.1); None: all.
            train: See `encode`.
        """
        hidden_BTD, pooled_BD = self.encode(inputs_BT, kinds_BT=kinds_BT, real_BT=real_BT, train=train)
        with jax.named_scope("logits"):
            x_BPD = hidden_BTD
            if places_BP is not None:
                x_BPD = jnp.take_along_axis(hidden_BTD, places_BP[..., None], axis=1)
            logits_BPV = self.masked_head(x_BPD, self.token_embedding)
        next_B2 = self.next_sentence(pooled_BD) if self.config.next_sentence else None
        return Outputs(hidden_BTD, pooled_BD, logits_BPV, next_B2)

    def encode(self, inputs_BT: Array, *, kinds_BT: Array, real_BT: Array, train: bool = False) -> tuple[Array, Array]:
        """The last hidden states (B, T, D) and the pooled state of position 0 (B, D); float32.

        With `capture` and mutable=["intermediates"], the attention weights (B, H, T, T) are stored as in GPT.

        Args:
            inputs_BT: Token ids.
            kinds_BT: 0 in the first part of a row, 1 in the second.
            real_BT: 1 for tokens, 0 for padding, to which no token attends.
            train: Apply dropout, from the "dropout" generator.

        Raises:
            UserError: There are more positions than the position embedding has.
        """
        c, T = self.config, inputs_BT.shape[1]
        if c.context < T:
            raise UserError(f"{T} tokens exceed the model.context={c.context} learned positions; shorten the input")
        embed_key, key = jax.random.split(self.make_rng("dropout")) if train and c.dropout else (None, None)
        with jax.named_scope("embed"):
            x_BTD = self.token_embedding(inputs_BT) + self.kind_embedding(kinds_BT) + self.position_embedding.first(T)
            x_BTD = dropout(self.embedding_norm(x_BTD), c.dropout, embed_key)
            x_BTD = axes.constrain(x_BTD, "batch", "length", None)
        keys = None if key is None else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(c.layers))
        if c.scan:
            x_BTD, _ = self.blocks(x_BTD, keys, real_BT)
        else:
            for i, block in enumerate(self.block):
                x_BTD, _ = block(x_BTD, None if keys is None else keys[i], real_BT)
        with jax.named_scope("pool"):
            return x_BTD, jnp.tanh(self.pooler(x_BTD[:, 0]))


# ---- Parameters -------------------------------------------------------------------------------------------------


def init_params(model: BERT, seed: int | Array) -> dict[str, Any]:
    """Initialize the parameters (table above) from a seed; scanning does not change them.

    The authors' code truncates the normal distribution at two standard deviations. lmjax does not truncate it.
    """
    check(model.config)
    return _init_params(resolve(model.config), seed)


@partial(jax.jit, static_argnums=0)
def _init_params(c: BERTConfig, seed: Array) -> dict[str, Any]:
    outer_key, blocks_key = jax.random.split(jax.random.key(seed))
    ones_11 = jnp.zeros((1, 1), jnp.int32)
    without_blocks = BERT(dataclasses.replace(c, layers=0, scan=False))
    outer: Any = without_blocks.init(outer_key, ones_11, kinds_BT=ones_11, real_BT=ones_11)["params"]

    def block(layer: Array) -> Any:
        inputs = jnp.zeros((1, 1, c.width)), None, ones_11
        return Block(c).init(jax.random.fold_in(blocks_key, layer), *inputs)["params"]

    params = outer | {"blocks": jax.vmap(block)(jnp.arange(c.layers))}
    return params if c.scan else unstack(params)


# ---- Closed forms -----------------------------------------------------------------------------------------------


def resolve(config: BERTConfig) -> BERTConfig:
    """Replace a `mlp_width` of 0 by its default value."""
    return dataclasses.replace(config, mlp_width=config.mlp_width or 4 * config.width)


def check(config: BERTConfig) -> None:
    """Check the rules between the fields of a configuration; `vocab_size` may still be 0.

    Raises:
        UserError: Two values contradict each other; the message names them.
    """
    if config.width % config.heads:
        raise UserError(
            f"model.width={config.width} does not divide among model.heads={config.heads}; change one of them"
        )


def predictions(context: int) -> int:
    """The number of positions of a row that the masked head predicts, at BERT's rate of 15 %."""
    return masking.predictions(context, MaskedConfig().rate)


def parameters(config: BERTConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`.

    The output matrix is the token embedding.
    """
    c = resolve(config)
    D, M, L = c.width, c.mlp_width, c.layers
    parts = {
        "token embedding": c.vocab_size * D,
        "position embedding": c.context * D,
        "segment embedding": c.segments * D,
        "attention": L * 4 * (D * D + D),
        "mlp": L * (2 * D * M + M + D),
        "norms": (2 * L + 1) * 2 * D,
        "pooler": D * D + D,
        "masked head": D * D + D + 2 * D + c.vocab_size,
        "next sentence head": 2 * D + 2 if c.next_sentence else 0,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def flops_per_token(config: BERTConfig) -> float:
    """Training FLOPs per token of a full context: products of the forward and backward pass.

    A weight takes 2 FLOPs forward and 4 backward; each query attends to every key: 6 N + 12 L D T. The masked head is
    computed only at `predictions(context)` positions, the pooler and the next-sentence head once a row. Recomputation
    by `remat` is not counted.
    """
    c = resolve(config)
    D, T = c.width, c.context
    every = c.layers * (4 * D * D + 2 * D * c.mlp_width)
    masked = (D * D + c.vocab_size * D) * predictions(T) / T
    row = (D * D + 2 * D * c.next_sentence) / T
    return 6.0 * (every + masked + row) + 12.0 * c.layers * D * T


def activation_bytes(config: BERTConfig) -> float:
    """An estimate of the activation bytes per token, without logits.

    It counts what all layers keep for the backward pass, the layer being computed with its gradients, and the heads:
    the inputs of every norm, nonlinearity and product, the latter in `dtype`. Compiled programs meet it within a factor
    of 1.5.
    """
    c = resolve(config)
    D, M, narrow = c.width, c.mlp_width, 2 if c.dtype == "bfloat16" else 4
    wide = 4 * (3 * D + M)  # inputs of both norms, output of attention, input of the nonlinearity
    inputs = narrow * (6 * D + M) + 8 * c.heads  # of every product; maximum and sum of a query's weights
    scores = 12 * c.heads * c.context  # and their gradients, of the layer being computed
    saved = {"none": wide + inputs, "dots": 4 * (5 * D + M), "full": 4 * D}[c.remat]
    heads = (4 * 2 + narrow * 2) * D * predictions(c.context) / c.context
    return c.layers * saved + 2 * (wide + inputs) + scores + heads


FAMILY = Family(
    module=BERT,
    axes=LOGICAL_AXES,
    check=check,
    parameters=parameters,
    flops_per_token=flops_per_token,
    activation_bytes=activation_bytes,
    resolve=resolve,
    predicted=lambda config: predictions(config.context) / config.context,
    mesh_axes=("tensor",),
)
