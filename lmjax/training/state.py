"""The training state: everything an update changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from lmjax.config import GuardConfig
from lmjax.guard.detector import Window, empty


@struct.dataclass
class State:
    """The training state.

    update: int32, the number of applied updates. With the seed it also replaces the state of a random generator: keys
        are derived from the two, never stored.
    params, ema: pytrees of the model's parameters and of their running average (or None). opt_state: of optax.
    window: values of accepted updates, for the guard. carry: the recurrent state with which the rows of the next batch
        continue, or None.
    """

    params: Any
    opt_state: Any
    ema: Any
    update: jax.Array
    window: Window
    carry: Any = None


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool = False,
    guard: GuardConfig,
    inputs: Sequence[Any] = (),
    named: Mapping[str, Any] | None = None,
    carry: Any = None,
) -> State:
    """The state before the first update, a pure function of its arguments.

    `inputs` and `named` are arrays that the model can be called with (default: one token id); no parameter's shape
    depends on theirs in a language model. Call it under `jit`, where the model's forward pass is never computed, with
    `out_shardings` made from `jax.eval_shape` of it: then no parameter ever exists unsharded.
    """
    variables = model.init(jax.random.key(seed), *(inputs or (jnp.zeros((1, 1), jnp.int32),)), **(named or {}))
    params = nn.unbox(variables["params"])
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(params, optimizer.init(params), average, jnp.int32(0), empty(guard), carry)


def abstract_state(state: Any) -> Any:
    """The shapes, dtypes and shardings of a tree of arrays: what restoring a checkpoint needs."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(leaf, state)
