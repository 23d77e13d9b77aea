"""The record that describes a model family to the rest of lmjax.

`Family(module=Model)` is complete: lmjax then counts the sizes from the model's program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import linen as nn


def _same(config: Any) -> Any:
    return config


def _no_rules(config: Any) -> None:
    """Accept every combination of values."""


def _all_positions(config: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Family:
    """A model family: its module, shardings and closed forms, as functions of a configuration."""

    #: The Linen module class; called with the configuration alone.
    module: Callable[[Any], nn.Module]
    #: "parent/leaf" of each parameter -> one logical name for each of its axes (`lmjax.parallel.axes`). A user's family
    #: may leave parameters out; every device then has a copy of them.
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The number of parameters of each part, and their `total`.
    parameters: Callable[[Any], dict[str, int]] | None = None
    #: Training FLOPs for each token of a sample: the matrix products of the forward and the backward pass.
    flops_per_token: Callable[[Any], float] | None = None
    #: Bytes that the backward pass keeps for each position.
    activation_bytes: Callable[[Any], float] | None = None
    #: A `lmjax.inference.decoders.Decoder` (None: generation computes all tokens of the context for each new one).
    decoder: Any = None
    #: A copy of the configuration with reduced sizes, for `lmjax rehearse` (None: the sizes stay).
    shrink: Callable[[Any], Any] | None = None
    #: Raise UserError if values of the configuration contradict each other; `vocab_size` may still be 0. The range of
    #: each field is checked before (`lmjax.config.ranges`).
    check: Callable[[Any], None] = _no_rules
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
