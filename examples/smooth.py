"""An objective: next-token prediction with label smoothing (Szegedy et al. 2016, section 7).

    python train.py quickstart 'extensions=[examples/smooth.py]' objective.family=smooth objective.smoothing=0.05

Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

import lmjax
from lmjax.config import CustomObjectiveConfig
from lmjax.config.ranges import share
from lmjax.objectives.causal import Causal
from lmjax.objectives.losses import apply
from lmjax.objectives.objective import Loss


@dataclass(frozen=True)
class SmoothConfig(CustomObjectiveConfig):
    """Next-token prediction with label smoothing."""

    #: Selects this objective: `objective.family=smooth`.
    family: Literal["smooth"] = "smooth"
    #: Share of the probability that is spread over the complete vocabulary.
    smoothing: Annotated[float, share()] = 0.1


@dataclass(frozen=True, eq=False)
class Smooth(Causal):
    """The samples, validation metrics and generation are those of `Causal`; only the training loss differs."""

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Sums of the loss and of the weights; without smoothing when measuring."""
        if not train:
            return super().loss(params, batch, train=False)
        smoothing = self.config.objective.smoothing
        packing = {name: batch[name] for name in ("segments_BT", "positions_BT") if name in batch}
        logits_BTV = apply(self.model, params, batch["inputs_BT"], rng=rng, train=True, **packing)
        logprobs_BTV = jax.nn.log_softmax(logits_BTV)
        target_BT = jnp.take_along_axis(logprobs_BTV, batch["targets_BT"][..., None], axis=-1)[..., 0]
        weights_BT = batch["weights_BT"]
        loss_BT = -(1 - smoothing) * target_BT - smoothing * logprobs_BTV.mean(axis=-1)
        entropy = {"cross_entropy": -jnp.sum(weights_BT * target_BT)}
        return Loss(jnp.sum(weights_BT * loss_BT), jnp.sum(weights_BT), entropy)


lmjax.register_objective(SmoothConfig, Smooth, models=("gpt", "nnlm", "conv"))
