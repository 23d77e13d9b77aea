"""The record that describes a model family to the rest of lmjax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import linen as nn


def _same(config: Any) -> Any:
    return config


def _all_positions(config: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Family:
    """A model family: its module, shardings and closed forms, as functions of a configuration."""

    #: The Linen module class; called with the configuration alone.
    module: Callable[[Any], nn.Module]
    #: "parent/leaf" of each parameter -> one logical name for each of its axes (`lmjax.parallel.axes`).
    axes: Mapping[str, tuple[str, ...]]
    #: Raise UserError if no model can be built; `vocab_size` may still be 0.
    check: Callable[[Any], None]
    #: The number of parameters of each part, and their `total`.
    parameters: Callable[[Any], dict[str, int]]
    #: Training FLOPs for each token of a sample: the matrix products of the forward and the backward pass.
    flops_per_token: Callable[[Any], float]
    #: Bytes that the backward pass keeps for each position.
    activation_bytes: Callable[[Any], float]
    #: Fill in the sizes that default to others.
    resolve: Callable[[Any], Any] = _same
    #: The share of positions that have logits.
    predicted: Callable[[Any], float] = _all_positions
    #: Axes of a mesh that the family supports, besides `data` and `fsdp`.
    mesh_axes: tuple[str, ...] = ()
    #: Sizes that an `fsdp` axis must divide.
    fsdp_sizes: tuple[str, ...] = ("width",)
    #: Sequences of `context` tokens in a sample: 2 for source and target.
    sequences: int = 1
