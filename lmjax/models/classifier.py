"""A pretrained encoder or decoder with a classification layer.

Shapes: B batch, T positions, D width, C classes.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import BERTConfig, GPTConfig, ModelConfig
from lmjax.models import registry
from lmjax.models.bert import BERT
from lmjax.models.gpt import GPT
from lmjax.models.layers import Dense, dropout


class Classifier(nn.Module):
    """Token ids to logits of classes (B, C), float32.

    On BERT the layer reads the pooler's output for [CLS] (Devlin et al. 2019, section 4.1), on GPT the features of the
    last token (Radford et al. 2018, section 3.2). The parameters have the names of the pretrained model. In addition
    there are `classifier/kernel` (D, C), normal(init_std), and `classifier/bias` (C), 0. Unused heads are absent.
    """

    #: Configuration of the pretrained model.
    config: ModelConfig
    #: Number of classes C.
    classes: int

    def setup(self) -> None:
        """Create the submodules and parameters."""
        c: Any = self.config
        assert isinstance(c, BERTConfig | GPTConfig)
        self.encoder: Any = BERT(c) if isinstance(c, BERTConfig) else GPT(c)
        nn.share_scope(self, self.encoder)  # keeps the parameter names of the pretrained model
        self.classifier = Dense(self.classes, c.init_std)

    def __call__(self, inputs_BT: Array, *, kinds_BT: Array, real_BT: Array, train: bool = False) -> Array:
        """Compute the logits (B, C).

        Args:
            inputs_BT: Token ids.
            kinds_BT: 0 in the first text, 1 in the second (BERT).
            real_BT: 1 for tokens, 0 for the padding after them.
            train: Apply dropout.
        """
        c: Any = self.config
        if isinstance(c, BERTConfig):
            real_BT = real_BT.astype(jnp.int32)
            _, x_BD = self.encoder.encode(inputs_BT, kinds_BT=kinds_BT, real_BT=real_BT, train=train)
        else:
            x_BTD = self.encoder(inputs_BT, train=train, head=False)
            last_B = jnp.maximum(jnp.sum(real_BT > 0, axis=-1) - 1, 0)
            x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        x_BD = dropout(x_BD, c.dropout, self.make_rng("dropout") if train and c.dropout else None)
        return self.classifier(x_BD)


def parameters(config: ModelConfig, classes: int) -> dict[str, int]:
    """The number of parameters of each part, and their `total`; without the pretrained heads."""
    heads = ("masked head", "next sentence head", "output layer", "total")
    parts = {name: count for name, count in registry.parameters(config).items() if name not in heads}
    parts["classifier"] = (config.width + 1) * classes
    return parts | {"total": sum(parts.values())}
