"""The optimizers: AdamW, Adam, Lion, Adafactor and Muon as optax transformations.

The optimizer holds no learning rate. The rate of every update is a table computed before the first update
(`lmjax.optim.learning_rate`). The update multiplies the optimizer's direction by minus the rate of its batch.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import optax

from lmjax.config import OptimizerConfig, UserError, extensions
from lmjax.config.errors import one_line
from lmjax.config.ranges import check_ranges
from lmjax.pytrees import path_name


def decay_mask(params: Any) -> Any:
    """Select the leaves that weight decay shrinks: those named `kernel`, stacked or not.

    Biases, norm scales, embeddings and positions have other names and do not decay.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Build the transformation of gradients to the direction of the update.

    The updated parameters are `params - learning_rate * direction`.

    Order: clip by global norm, precondition, add decoupled weight decay (Loshchilov and Hutter 2019) under
    `decay_mask`. `adam` has no decay. `adafactor` scales by the parameters' RMS and clips each leaf's update
    RMS at 1 (Shazeer and Stern 2018, algorithm 4); it ignores the betas. `muon` is Jordan's (2024) on the matrices of
    the blocks, and AdamW on all other parameters. `freeze` excludes parameters from the update and from the norm.

    Raises:
        UserError: A setting is out of range; or, at `init`, a pattern of `freeze` matches no parameter.
    """
    check_ranges(config, "optimizer")
    if config.freeze:
        moving = make_optimizer(dataclasses.replace(config, freeze=()))
        return optax.partition({"moving": moving, "frozen": optax.set_to_zero()}, partial(_frozen, config.freeze))
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    match config.name:
        case "adamw":
            return optax.chain(clip, adam, decay)
        case "adam":
            return optax.chain(clip, adam)
        case "lion":
            return optax.chain(clip, optax.scale_by_lion(config.beta1, config.beta2), decay)
        case "adafactor":
            rms = (
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
            return optax.chain(clip, *rms, decay)
        case "muon":
            muon = optax.chain(
                _scale_by_muon(config.muon_momentum), decay, optax.scale(config.muon_learning_rate_ratio)
            )
            return optax.chain(clip, optax.partition({"muon": muon, "adamw": optax.chain(adam, decay)}, _muon_labels))
        case _:
            extensions.check_name("optimizer.name", config.name, extensions.OWN_OPTIMIZERS)
            return optax.chain(clip, _registered(config))


def _registered(config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation of a user's function."""
    try:
        made = extensions.get("optimizer.name", config.name)(config)
    except Exception as error:
        raise UserError(f"optimizer.name={config.name}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"optimizer.name={config.name}: the registered function must return an optax.GradientTransformation, not "
            f"{type(made).__name__}"
        )
    return made


def _frozen(patterns: Sequence[str], params: Any) -> Any:
    """For each leaf, whether it is `frozen` or `moving`."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"optimizer.freeze: no parameter matches '{pattern}'; parameters: {', '.join(names)}")

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        return "frozen" if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) else "moving"

    return jax.tree_util.tree_map_with_path(label, params)


def _is_matrix(path: tuple[Any, ...]) -> bool:
    return path_name(path[-1:]) == "kernel"


# ---- Muon --------------------------------------------------------------------------------------------------

STACKED = "blocks"  # under this name `nn.scan` stacks the layers along a first axis
HEAD = "head"  # the output matrix, which AdamW trains instead of Muon
MERGED_INPUTS = ("output",)  # modules whose kernel contracts all axes except the last: (heads, head_dim, width)


def _rows_and_columns(path: tuple[Any, ...], ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a kernel that form the rows and columns of its matrix (per stacked layer)."""
    names = path_name(path).split("/")
    axes = tuple(range(int(STACKED in names), ndim))
    split = len(axes) - 1 if len(names) > 1 and names[-2] in MERGED_INPUTS else 1
    return axes[:split], axes[split:]


def _muon_dimensions(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers(*_rows_and_columns(path, len(leaf.shape))),
        params,
    )


def _muon_labels(params: Any) -> Any:
    def label(path: tuple[Any, ...], _: Any) -> str:
        return "muon" if _is_matrix(path) and HEAD not in path_name(path).split("/") else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised by 5 Newton-Schulz steps (Jordan 2024).

    All settings are optax's defaults. The result is scaled by 0.2 sqrt(max(rows, columns)): its RMS is that of AdamW,
    and both can share a learning rate (Liu et al. 2025, section 2.2).
    """

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        sizes = [math.prod(update.shape[axis] for axis in axes) for axes in _rows_and_columns(path, update.ndim)]
        return update * (0.2 * math.sqrt(max(sizes)))

    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_muon_dimensions),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
    )
