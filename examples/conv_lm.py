"""A model family in a file of its own: gated causal convolutions (Dauphin et al. 2017).

    python train.py examples/conv_lm.py

Shapes: B batch, T positions, D width, K kernel, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

import lmjax
from lmjax.config import Config, CustomModelConfig, presets
from lmjax.models.family import Family


@dataclass(frozen=True)
class ConvConfig(CustomModelConfig):
    """Gated causal convolutions."""

    #: Selects this family: `model.family=conv`.
    family: Literal["conv"] = "conv"
    #: Number of layers.
    layers: int = 4
    #: Number of positions that a layer reads.
    kernel: int = 4


class ConvLM(nn.Module):
    """Token ids to logits; position t sees positions up to t only."""

    config: ConvConfig

    @nn.compact
    def __call__(self, inputs_BT: Array, *, train: bool = False) -> Array:
        """Logits (B, T, V) of the next token."""
        c = self.config
        x_BTD = nn.Embed(c.vocab_size, c.width, name="token_embedding")(inputs_BT)
        for layer in range(c.layers):
            y_BTD = nn.Conv(2 * c.width, (c.kernel,), padding="CAUSAL", name=f"conv_{layer}")(nn.RMSNorm()(x_BTD))
            value_BTD, gate_BTD = jnp.split(y_BTD, 2, axis=-1)
            y_BTD = nn.Dropout(c.dropout, deterministic=not train)(value_BTD * jax.nn.sigmoid(gate_BTD))
            x_BTD = x_BTD + y_BTD
        return nn.Dense(c.vocab_size, name="head")(nn.RMSNorm()(x_BTD))


lmjax.register_family(ConvConfig, Family(module=ConvLM))


def conv_lm() -> Config:
    """The quickstart with a convolutional model."""
    model = ConvConfig(width=128, context=128)
    return replace(presets.load("quickstart"), name="conv_lm", model=model)
