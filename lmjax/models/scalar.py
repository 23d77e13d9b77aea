"""A pretrained decoder that maps a text to a number: a reward model, or a value function.

Shapes: B batch, T positions, D width.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import GPTConfig
from lmjax.models import registry
from lmjax.models.gpt import GPT
from lmjax.models.layers import Dense


class Calibration(nn.Module):
    """gain * x + bias, at first x."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map each number."""
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * x + self.param("bias", nn.initializers.zeros, ())


class Scalar(nn.Module):
    """Token ids to a score (B), float32, read at one position of each row.

    The parameters have the names of the pretrained model, whose output layer is absent. In addition there are
    `score/kernel` (D, 1), a vector without bias, and `calibration/gain` and `calibration/bias`, numbers that map the
    raw score to the score. The vector is normal with standard deviation 1 / sqrt(D + 1), so that raw scores begin near
    the size of 1 (Ziegler et al. 2019), or zero for a value function.
    """

    #: Configuration of the pretrained model.
    config: GPTConfig
    #: Start with a vector of zeros: every value is then 0.
    zero: bool = False

    def setup(self) -> None:
        """Create the submodules."""
        self.body = GPT(self.config)
        nn.share_scope(self, self.body)  # keeps the parameter names of the pretrained model
        self.score = Dense(1, 0.0 if self.zero else 1 / math.sqrt(self.config.width + 1), bias=False)
        self.calibration = Calibration()

    def __call__(self, inputs_BT: Array, *, last_B: Array, calibrated: bool = True, train: bool = False) -> Array:
        """Compute the score (B) of each row.

        Padding follows the text, so that no position of the text sees it.

        Args:
            inputs_BT: Token ids.
            last_B: Place of the last token of the text.
            calibrated: Apply gain and bias.
            train: Apply dropout.
        """
        x_BTD = self.body(inputs_BT, train=train, head=False)
        x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        return self._scores(x_BD, calibrated)

    def at_every_place(
        self,
        inputs_BT: Array,
        *,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        calibrated: bool = True,
    ) -> Array:
        """Compute the score (B, T) of the text up to each place.

        Args:
            inputs_BT: Token ids.
            segments_BT: Segments, as in GPT.
            positions_BT: Positions, as in GPT.
            calibrated: Apply gain and bias.
        """
        x_BTD = self.body(inputs_BT, segments_BT=segments_BT, positions_BT=positions_BT, head=False)
        return self._scores(x_BTD, calibrated)

    def _scores(self, x: Array, calibrated: bool) -> Array:
        raw, calibration = self.score(x.astype(jnp.float32))[..., 0], self.calibration
        return calibration(raw) if calibrated or self.is_initializing() else raw


def calibrated(params: Any, *, mean: float | Array, deviation: float | Array) -> Any:
    """Return parameters whose scores have mean 0 and standard deviation 1 on given texts.

    The score becomes (raw - mean) / deviation (Ziegler et al. 2019: on samples of the reference policy). No other
    parameter changes, so that the order of scores does not.

    Args:
        params: Parameters of a `Scalar`.
        mean: Mean of the raw scores of the texts.
        deviation: Their standard deviation, positive.
    """
    gain = 1 / deviation
    leaves = {"gain": jnp.float32(gain), "bias": jnp.float32(-mean * gain)}
    return {**params, "calibration": leaves}


def parameters(config: GPTConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`; without the output layer."""
    parts = {
        name: count for name, count in registry.parameters(config).items() if name not in ("output layer", "total")
    }
    parts["score"] = config.width + 2
    return parts | {"total": sum(parts.values())}
