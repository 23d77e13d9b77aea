"""Model families by name, and functions of their records: shardings, sizes and memory."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.config import (
    CustomModelConfig,
    GPTConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    RNNConfig,
    UserError,
    extensions,
)
from lmjax.config.ranges import check_ranges
from lmjax.models import costs, counting
from lmjax.models.family import Family
from lmjax.optim.optimizer import make_optimizer
from lmjax.parallel import axes

# Layers that other objectives than language modelling add to a model.
_ADDED = {
    "classifier/kernel": ("embed", "classes"),
    "classifier/bias": ("classes",),
    "score/kernel": ("embed", "classes"),
    "calibration/gain": (),
    "calibration/bias": (),
}


def family(config: ModelConfig) -> Family:
    """The record of a configuration's family; imports only the module of that family."""
    match config.family:
        case "gpt":
            from lmjax.models.gpt import FAMILY
        case "nnlm":
            from lmjax.models.nnlm import FAMILY
        case "rnn":
            from lmjax.models.rnn import FAMILY
        case "transformer":
            from lmjax.models.transformer import FAMILY
        case "bert":
            from lmjax.models.bert import FAMILY
        case _:
            return _registered(config)
    return FAMILY


def _registered(config: ModelConfig) -> Family:
    """The record of a user's family."""
    extension = extensions.get("model.family", config.family)
    if extension is None:
        raise UserError(f"model.family: '{config.family}' is unknown; import the file that registers it")
    record = extension[1]
    if not isinstance(record, Family):
        raise UserError(f"register_family '{config.family}': give a Family record, not {type(record).__name__}")
    return record


def build(config: ModelConfig) -> nn.Module:
    """Build the model of a configuration whose vocabulary is known.

    Raises:
        UserError: A user's module has no field `config`.
    """
    model = family(config).module(config)
    if not hasattr(model, "config"):
        raise UserError(
            f"model.family={config.family}: {type(model).__name__} needs the field `config: {type(config).__name__}`"
        )
    return model


def logical_axes(config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
    """The logical axes of every parameter, with those of classifiers and scores.

    See `lmjax.parallel.axes`.
    """
    replicated = {axes.OTHERS: ()} if isinstance(config, CustomModelConfig) else {}
    return {**family(config).axes, **_ADDED, **replicated}


def check_mesh(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Check that the mesh fits the model.

    Raises:
        UserError: The family does not support an axis of the mesh, or an axis does not divide a size of the model.
    """
    record = family(config)
    c: Any = record.resolve(config)
    for axis in ("tensor", "sequence"):
        if sizes.get(axis, 1) > 1 and axis not in record.mesh_axes:
            supported = {"tensor": "gpt, bert, transformer", "sequence": "gpt"}[axis]
            raise UserError(
                f"parallel.mesh.{axis}={sizes[axis]}: model.family={config.family} does not support this axis; "
                f"supported: {supported}"
            )
    keys = {
        "fsdp": record.fsdp_sizes,
        "tensor": ("heads", "key_heads", "mlp_width", "vocab_size"),
        "sequence": ("context",),
    }
    for axis, names in keys.items():
        count = sizes.get(axis, 1)
        for name in names:
            size = getattr(c, name, 0)
            if size % count:
                raise UserError(
                    f"model.{name}={size} does not divide among parallel.mesh.{axis}={count}; "
                    f"{-(-size // count) * count} would"
                )


def check(config: ModelConfig) -> None:
    """Check that a model can be built from the configuration; `vocab_size` may still be 0.

    Raises:
        UserError: A setting is out of range; the message names it.
    """
    check_ranges(config, "model")
    family(config).check(config)


def check_packing(config: ModelConfig, packed: bool) -> None:
    """Check that a user's model can restrict itself to the documents of packed rows.

    Raises:
        UserError: It cannot.
    """
    if packed and isinstance(config, CustomModelConfig):
        parameters = inspect.signature(family(config).module.__call__).parameters
        if "segments_BT" not in parameters or "positions_BT" not in parameters:
            raise UserError(
                f"data.packed=true: the model of model.family={config.family} takes no segments_BT and positions_BT; "
                "add them to its __call__, or set data.packed=false"
            )


def tokens(config: ModelConfig) -> int:
    """Tokens of a complete sample: the context, for each of its sequences."""
    return config.context * family(config).sequences


def parameters(config: ModelConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`."""
    closed_form = family(config).parameters
    return closed_form(config) if closed_form else counting.parameters(build(config))


def flops_per_token(config: ModelConfig) -> float:
    """Training FLOPs per token of a sample: products of the forward and backward pass."""
    closed_form = family(config).flops_per_token
    # The backward pass computes two products, of the same size, for each one of the forward pass.
    return closed_form(config) if closed_form else 3 * _products(config).flops / config.context


def activation_bytes(config: ModelConfig) -> float:
    """Bytes that the backward pass keeps for each position; an estimate."""
    closed_form = family(config).activation_bytes
    return closed_form(config) if closed_form else _products(config).input_bytes / config.context


@cache
def _products(config: ModelConfig) -> counting.Products:
    return counting.products(build(config), config.context)


def memory(
    config: ModelConfig,
    microbatch: int,
    *,
    optimizer: OptimizerConfig | None = None,
    accumulate: bool = False,
    chunk: int = 0,
) -> dict[str, float]:
    """Bytes that an update needs on a device, by part, without sharding.

    Parameters, gradients and the optimizer's state are exact, except the state of Adafactor and Muon. Activations and
    logits are estimates of what the backward pass keeps; compiled GPTs meet them within a factor of 1.5.

    Args:
        config: The configuration of the model.
        microbatch: Number of complete samples that the device computes at once.
        optimizer: The configuration of the optimizer.
        accumulate: Whether a second gradient, the sum over microbatches, exists.
        chunk: Number of tokens whose logits are materialized at a time (0: all).
    """
    record, optimizer = family(config), optimizer or OptimizerConfig()
    sizes = parameters(config)
    count, places = sizes["total"], microbatch * tokens(config)
    parts: dict[str, float] = {
        "parameters": 4.0 * count,
        "gradients": 4.0 * count * (1 + accumulate),
        "optimizer": 4.0 * _optimizer_values(config, sizes, optimizer),
        "average": 4.0 * count * (optimizer.ema > 0),
        "activations": places * activation_bytes(config),
        "logits": min(places, chunk or places) * 8.0 * config.vocab_size * record.predicted(config),
    }
    return {name: size for name, size in parts.items() if size} | {"total": sum(parts.values())}


def _optimizer_values(config: ModelConfig, sizes: dict[str, int], optimizer: OptimizerConfig) -> float:
    """The number of float32 values in the optimizer's state."""
    match optimizer.name:
        case "lion":
            return sizes["total"]
        case "adafactor":  # one value a row and a column of each matrix
            return 2 * sizes["total"] / config.width
        case "adamw" | "adam":
            return 2 * sizes["total"]
        case "muon":  # one moment for the matrices of the blocks, Adam's two for the rest
            return 2 * sizes["total"] - sizes.get("attention", 0) - sizes.get("mlp", 0)
    return sizes["total"] * _values_per_parameter(optimizer)


def _values_per_parameter(optimizer: OptimizerConfig) -> float:
    """The number of float32 values in a registered optimizer's state for each parameter.

    It is that of a matrix of 128 x 128.
    """
    matrix = {"layer": {"kernel": jax.ShapeDtypeStruct((128, 128), jnp.float32)}}
    state = jax.eval_shape(make_optimizer(optimizer).init, matrix)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 4 / 128**2


# ---- A small copy ---------------------------------------------------------------------------------------------------

LAYERS, WIDTH, HEADS, HEAD_DIM, CONTEXT = 2, 32, 2, 32, 64  # maximum sizes


def shrink(config: ModelConfig) -> ModelConfig:
    """Copy a configuration with reduced sizes, so that the model trains in seconds."""
    config = replace(config, context=min(config.context, CONTEXT))
    record = family(config)
    if record.shrink is not None:
        return record.shrink(config)
    match config:
        case CustomModelConfig():
            return config
        case NNLMConfig():
            return replace(config, width=min(config.width, WIDTH), hidden=min(config.hidden, WIDTH))
        case RNNConfig():
            return replace(config, layers=min(config.layers, LAYERS), width=min(config.width, WIDTH))
        case GPTConfig():
            return _shrink_gpt(config)
        case _:
            heads = min(config.heads, HEADS)
            width = heads * min(config.width // config.heads, HEAD_DIM)
            mlp_width = 2 * width if config.mlp_width else 0
            return replace(config, layers=min(config.layers, LAYERS), width=width, heads=heads, mlp_width=mlp_width)


def _shrink_gpt(config: GPTConfig) -> GPTConfig:
    """At most 2 key heads, 2 heads for each of them, and 32 features a head."""
    resolved = costs.resolve_gpt(config)
    key_heads, head_dim = min(resolved.key_heads, HEADS), min(resolved.head_dim, HEAD_DIM)
    heads = key_heads * min(resolved.heads // resolved.key_heads, HEADS)
    width = heads * head_dim
    return replace(
        config,
        layers=min(config.layers, LAYERS),
        width=width,
        heads=heads,
        key_heads=key_heads if config.key_heads else 0,
        head_dim=head_dim if config.head_dim else 0,
        mlp_width=max(2, 2 * round(width * config.mlp_width / config.width / 2)) if config.mlp_width else 0,
    )
