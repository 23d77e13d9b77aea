"""The feed-forward language model of Bengio et al. 2003 (section 2), set by NNLMConfig.

It computes y = b + W x + U tanh(d + H x).

Shapes: B batch, T positions, N tokens seen (order - 1), D features of a token (width), E = N D, H hidden, V vocabulary.

    leaf                        shape      initial value (s = init_std)
    token_embedding/embedding   (V + 1, D) normal(1); row V is the padding before a window
    hidden/kernel, bias         (E, H)     normal(s), 0; H and d of the paper
    direct/kernel, bias         (E, V)     normal(s), 0; W; with `direct`, and a bias only if there is no head
    head/kernel, bias           (H, V)     normal(s), 0; U and b; with hidden units
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import NNLMConfig, UserError
from lmjax.models.family import Family
from lmjax.models.layers import Dense, Embedding, dropout

# See gpt.LOGICAL_AXES.
LOGICAL_AXES = {
    "token_embedding/embedding": ("rows", "embed"),
    "hidden/kernel": ("embed", "features"),
    "hidden/bias": ("features",),
    "direct/kernel": ("embed", "rows"),
    "direct/bias": ("rows",),
    "head/kernel": ("embed", "rows"),
    "head/bias": ("rows",),
}

# ---- The model --------------------------------------------------------------------------------------------------


class NNLM(nn.Module):
    """Token ids to logits; `config.vocab_size` must be known."""

    #: The configuration.
    config: NNLMConfig

    @nn.compact
    def __call__(
        self,
        inputs_BT: Array,
        *,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Logits (B, T, V), float32, of the next token, from a position and the N - 1 before it.

        Args:
            inputs_BT: Token ids.
            segments_BT: Segments of packed documents; tokens of other segments are replaced by padding.
            positions_BT: Ignored.
            train: Apply dropout to the features and to the hidden units, from the "dropout" generator.
        """
        c = self.config
        keys = jax.random.split(self.make_rng("dropout")) if train and c.dropout else (None, None)
        dense = partial(Dense, std=c.init_std, dtype=c.dtype)
        with jax.named_scope("embed"):
            ids_BTN = context_ids(inputs_BT, c, segments_BT=segments_BT)
            features_BTND = Embedding(c.vocab_size + 1, c.width, 1.0, name="token_embedding")(ids_BTN)
            x_BTE = dropout(features_BTND.reshape(*inputs_BT.shape, -1), c.dropout, keys[0])
        direct_BTV: Array | float = 0.0
        if c.direct:
            direct_BTV = dense(c.vocab_size, bias=not c.hidden, name="direct")(x_BTE)
            if not c.hidden:
                return direct_BTV
        hidden_BTH = dropout(jnp.tanh(dense(c.hidden, name="hidden")(x_BTE)), c.dropout, keys[1])
        return direct_BTV + dense(c.vocab_size, name="head")(hidden_BTH)


def context_ids(inputs_BT: Array, config: NNLMConfig, *, segments_BT: Array | None = None) -> Array:
    """The ids (B, T, N) that each position sees: its own, then the previous, nearest first.

    V is the padding before the window, or before the position's segment.
    """
    padding, T = config.vocab_size, inputs_BT.shape[1]

    def earlier(x_BT: Array, back: int, fill: int) -> Array:
        return jnp.pad(x_BT, ((0, 0), (back, 0)), constant_values=fill)[:, :T]

    columns = []
    for back in range(config.order - 1):
        ids_BT = earlier(inputs_BT, back, padding)
        if segments_BT is not None:
            ids_BT = jnp.where(earlier(segments_BT, back, 0) == segments_BT, ids_BT, padding)
        columns.append(ids_BT)
    return jnp.stack(columns, axis=-1)


def one_hot_features(embedding_VD: Array, ids: Array) -> Array:
    """The features (..., D) of `ids` (...) as in the paper: one-hot vectors times the table.

    The result is bit-identical to the rows of the table (all other terms are zero). The model therefore looks them up.
    """
    one_hot = jax.nn.one_hot(ids, embedding_VD.shape[0], dtype=embedding_VD.dtype)
    return jnp.matmul(one_hot, embedding_VD, precision=jax.lax.Precision.HIGHEST)


# ---- Closed forms -----------------------------------------------------------------------------------------------


def check(config: NNLMConfig) -> None:
    """Check the rules between the fields of a configuration; `vocab_size` may still be 0.

    Raises:
        UserError: Two values contradict each other; the message names them.
    """
    if not config.hidden and not config.direct:
        raise UserError("model.hidden=0 disconnects the output; set model.direct=true, or model.hidden above 0")


def parameters(config: NNLMConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`."""
    c = config
    E = (c.order - 1) * c.width
    parts = {
        "token embedding": (c.vocab_size + 1) * c.width,
        "hidden": (E + 1) * c.hidden,
        "direct": c.direct * E * c.vocab_size,
        "output layer": (c.hidden + 1) * c.vocab_size,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def flops_per_token(config: NNLMConfig) -> float:
    """Training FLOPs per token: 2 forward and 4 backward for each weight of a product."""
    c = config
    E = (c.order - 1) * c.width
    return 6.0 * (E * c.hidden + c.direct * E * c.vocab_size + c.hidden * c.vocab_size)


def activation_bytes(config: NNLMConfig) -> float:
    """An estimate of the bytes per token that the backward pass keeps, without logits.

    It counts the ids, the inputs of all products, and the hidden units in float32 for the derivative of tanh.
    """
    c = config
    E = (c.order - 1) * c.width
    narrow = 2 if c.dtype == "bfloat16" else 4
    rounded_hidden = 2 if c.dtype == "bfloat16" else 0
    return 4.0 * (c.order - 1) + narrow * E + (4 + rounded_hidden) * c.hidden


FAMILY = Family(
    module=NNLM,
    axes=LOGICAL_AXES,
    check=check,
    parameters=parameters,
    flops_per_token=flops_per_token,
    activation_bytes=activation_bytes,
    fsdp_sizes=("width", "hidden"),
)
