"""Checks of a user's model: its inputs, its outputs, and that it is causal."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.config import CustomModelConfig, UserError
from lmjax.config.errors import one_line

#: Positions of the probe.
LENGTH = 16
#: Parameters up to which logits are computed to see that the model is causal.
SMALL = 2**25


def check_language_model(config: CustomModelConfig, model: nn.Module) -> None:
    """Check that a model maps token ids (B, T) to causal logits (B, T, V).

    Shapes are derived without a computation. Causality is computed for a row of 16 tokens, if the model is small.

    Raises:
        UserError: It does not, or it raises an error; the message names the family.
    """
    name = f"model.family={config.family} ({type(model).__name__})"
    ids_BT = jnp.zeros((1, min(LENGTH, config.context)), jnp.int32)
    key = jax.random.key(0)

    def forward(params: Any, ids_BT: Any, **settings: Any) -> Any:
        return model.apply({"params": params}, ids_BT, **settings)

    try:
        variables = jax.eval_shape(model.init, key, ids_BT[:, :1])
        params = _parameters(name, variables)
        logits = jax.eval_shape(forward, params, ids_BT)
        jax.eval_shape(lambda *arrays: forward(*arrays, train=True, rngs={"dropout": key}), params, ids_BT)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} fails on token ids {ids_BT.shape}: {type(error).__name__}: {one_line(error)}; it is called as "
            "model(ids_BT) and as model(ids_BT, train=True)"
        ) from error
    expected = (*ids_BT.shape, config.vocab_size)
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if shape != expected or dtype != jnp.float32:
        what = type(logits).__name__ if shape is None else f"{dtype} of shape {shape}"
        raise UserError(f"{name} returns {what}; it must return float32 logits of shape (B, T, V), here {expected}")
    if sum(leaf.size for leaf in jax.tree.leaves(params)) <= SMALL and ids_BT.size > 1:
        _check_causal(name, model, forward, ids_BT)


def _parameters(name: str, variables: Any) -> Any:
    """The shapes of the parameters; raise UserError if the model has none, or other state."""
    others = [collection for collection in variables if collection != "params"]
    if others:
        raise UserError(f"{name} has variables in '{others[0]}'; only parameters ('params') are trained and saved")
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("params", {}))
    if not leaves:
        raise UserError(f"{name} has no parameters")
    for path, leaf in leaves:
        if leaf.dtype != jnp.float32:
            where = jax.tree_util.keystr(path)
            raise UserError(f"{name}: the parameter {where} is {leaf.dtype}; parameters must be float32")
    return variables["params"]


def _check_causal(name: str, model: nn.Module, forward: Any, ids_BT: Any) -> None:
    """Raise UserError if another last token changes logits before it, by more than rounding."""

    @jax.jit
    def difference(key: Any) -> Any:
        params = model.init(key, ids_BT[:, :1])["params"]
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        leaves = [
            leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, jax.tree.leaves(params), strict=True)
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)  # an initial zero would hide a dependence
        first, second = (forward(params, ids)[:, :-1] for ids in (ids_BT, ids_BT.at[:, -1].set(1)))
        return jnp.max(jnp.abs(first - second)), jnp.max(jnp.abs(first))

    changed, size = map(float, difference(jax.random.key(0)))
    if changed > 1e-4 * size:
        raise UserError(
            f"{name}: the last token of a row changes logits before it (by {changed:.2g}); position t must not see "
            "later positions, or the loss is not that of a prediction"
        )
