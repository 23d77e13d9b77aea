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
from lmjax.system.seeds import random_key


@struct.dataclass
class State:
    """The training state."""

    #: Parameters of the model.
    params: Any
    #: State of the optax optimizer.
    opt_state: Any
    #: Running average of the parameters, or None.
    ema: Any
    #: int32, the number of applied updates. Random keys are derived from it and the seed, so none is stored.
    update: jax.Array
    #: Values of the last accepted updates, for the guard.
    window: Window
    #: Recurrent state with which the rows of the next batch continue, or None.
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
    """Return the state before the first update, a pure function of the arguments.

    Call it under `jit`, which removes the forward pass of the model, with `out_shardings` derived from its
    `jax.eval_shape`: then no parameter ever exists unsharded.

    Args:
        model: the model.
        optimizer: the optimizer.
        seed: seed of the parameters.
        ema: keep a running average of the parameters.
        guard: settings of the guard.
        inputs: arrays that the model accepts; default: one token id. They do not affect the shapes of parameters.
        named: named arrays that the model accepts.
        carry: recurrent state with which the first batch starts.
    """
    variables = model.init(random_key(seed), *(inputs or (jnp.zeros((1, 1), jnp.int32),)), **(named or {}))
    params = nn.unbox(variables["params"])
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(params, optimizer.init(params), average, jnp.int32(0), empty(guard), carry)


def abstract_state(state: Any) -> Any:
    """Return the shapes, dtypes and shardings of a tree of arrays, to restore a checkpoint."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(leaf, state)
