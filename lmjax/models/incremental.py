"""Going on with a text token by token, at a cost that does not grow with what was read: a state for every family.

Rows of different lengths stand flush right: row b of T places has its first token at place first_B[b]. The state of a
GPT holds keys and values, of a recurrent network its hidden state, of the NNLM the last tokens.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax import axes
from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, RNNConfig
from lmjax.models import gpt, rnn
from lmjax.models.layers import Dense, product, rounded

State = Any


def limit(config: ModelConfig) -> int | None:
    """How many tokens a state can hold; None: there is no end to it."""
    return config.context if isinstance(config, GPTConfig) else None


# ---- The products of single tokens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turned:
    """A model whose kernels (D, F) are given as (F, D): each sum of a product then reads memory in order.

    XLA for CPU multiplies a single row by bfloat16 weights at a sixth of the speed at which it multiplies four.
    """

    model: Any

    @property
    def config(self) -> ModelConfig:
        """That of the model."""
        return self.model.config

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """That of the model."""
        with nn.intercept_methods(_product):
            return self.model.apply(*arguments, **named)


def _product(usual: Any, arguments: Any, named: Any, context: Any) -> Any:
    module = context.module
    if not (isinstance(module, Dense) and context.method_name == "__call__"):
        return usual(*arguments, **named)
    (x,), own = arguments, module.variables["params"]
    x_ND = x.reshape(-1, x.shape[-1])
    rows = max(len(x_ND), 4 if module.dtype == "bfloat16" else 1)
    repeated_ND = jnp.broadcast_to(x_ND, (rows, x_ND.shape[1])) if len(x_ND) == 1 else x_ND
    y_NF = product(repeated_ND, own["kernel"], 1, module.dtype, axes.held(module.name, "kernel"))[: len(x_ND)]
    y = y_NF.reshape(*x.shape[:-1], module.features)
    return y + own["bias"] if module.bias else y


def prepared(model: Any, params: Any, rows: int) -> tuple[Any, Any]:
    """A GPT and its parameters as `extend` is fastest with so many rows; other models as they are.

    Its layers are unrolled: a scan would copy the whole cache for each token. Kernels are rounded as products read
    them, once instead of for each token, and on one CPU turned where that is faster (not several rows in float32).
    """
    config = model.config
    if not isinstance(config, GPTConfig):
        return model, params
    rounds = config.dtype == "bfloat16"
    turn = (rows == 1 or rounds) and jax.default_backend() == "cpu" and axes.current() is None
    unrolled = gpt.GPT(replace(config, scan=False))
    if config.scan or turn or rounds:
        params = _prepared(config, turn, params)
    return Turned(unrolled) if turn else unrolled, params


def prepared_state(config: ModelConfig, state: State) -> State:
    """The state of a model as `prepared` continues it."""
    return gpt.unstacked_cache(state) if isinstance(config, GPTConfig) and config.scan else state


@partial(jax.jit, static_argnums=(0, 1))
def _prepared(config: GPTConfig, turn: bool, params: Any) -> Any:
    def kernel(path: Any, leaf: Array) -> Array:
        if path[-1].key != "kernel":
            return leaf
        leaf = rounded(leaf, config.dtype)
        return leaf.T if turn else leaf

    return jax.tree_util.tree_map_with_path(kernel, gpt.unstack(params) if config.scan else params)


# ---- The state --------------------------------------------------------------------------------------------------


def read(model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
    """Logits (B, V) behind each prompt, and the state there, which has room for `size` tokens in all."""
    config, T = model.config, prompts_BT.shape[1]
    if isinstance(config, GPTConfig):
        state = gpt.begin(config, first_B, size)
        last_B1 = jnp.full((len(first_B), 1), T - 1)
        logits_B1V, state = model.apply({"params": params}, prompts_BT, cache=state, places_BN=last_B1)
        return logits_B1V[:, 0], state
    padding_BT = jnp.arange(T) < first_B[:, None]
    if isinstance(config, RNNConfig):
        state, segments_BT = rnn.begin(config, len(first_B)), jnp.where(padding_BT, 0, 1)
        logits_BTV, state = model.apply({"params": params}, prompts_BT, carry=state, segments_BT=segments_BT)
        return logits_BTV[:, -1], state
    assert isinstance(config, NNLMConfig)
    nothing, most = config.vocab_size, config.order - 1
    ids_BT = jnp.where(padding_BT, nothing, prompts_BT)
    ids_BT = jnp.pad(ids_BT, ((0, 0), (max(0, most - T), 0)), constant_values=nothing)[:, -most:]
    return model.apply({"params": params}, ids_BT)[:, -1], ids_BT


def extend(model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
    """Logits (B, V) behind one more token of each row, and the state there."""
    config, tokens_B1 = model.config, tokens_B[:, None]
    if isinstance(config, NNLMConfig):
        ids_BT = jnp.concatenate([state[:, 1:], tokens_B1], axis=1)
        return model.apply({"params": params}, ids_BT)[:, -1], ids_BT
    name = "cache" if isinstance(config, GPTConfig) else "carry"
    logits_B1V, state = model.apply({"params": params}, tokens_B1, **{name: state})
    return logits_B1V[:, 0], state
