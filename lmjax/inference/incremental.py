"""Incremental decoding: extend a text token by token with a cached state.

Rows of different lengths are right-aligned: row b of T positions has its first token at position first_B[b]. The state
of a GPT holds keys and values, that of a recurrent network its hidden state, that of the NNLM the last tokens. A model
family that a user adds computes all tokens of its context again for each new one.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import CustomModelConfig, GPTConfig, ModelConfig, NNLMConfig, RNNConfig
from lmjax.inference import one_row
from lmjax.models import gpt, rnn
from lmjax.models.attention.module import Attention
from lmjax.models.layers import Dense, product, rounded
from lmjax.parallel import axes

State = Any


def limit(config: ModelConfig) -> int | None:
    """The maximum number of tokens of a state; None: unlimited."""
    return config.context if isinstance(config, GPTConfig | CustomModelConfig) else None


# ---- The products of single tokens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A GPT that computes with the parameters of `prepared`."""

    #: The unrolled model.
    model: gpt.GPT
    #: Kernels are laid out for a single row of a single token.
    alone: bool

    @property
    def config(self) -> GPTConfig:
        """The configuration of the model."""
        return self.model.config

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """Apply the model."""
        with nn.intercept_methods(self._call):
            return self.model.apply(*arguments, **named)

    def _call(self, usual: Any, arguments: Any, named: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if isinstance(module, Dense) and method == "__call__":
            return self._times(module.variables["params"], *arguments)
        if isinstance(module, Attention) and method == "projected":
            y_BTF = self._times(module.variables["params"][_MERGED], *arguments)
            queries, keys = module.heads * module.head_dim, module.key_heads * module.head_dim
            return jnp.split(y_BTF, (queries, queries + keys), axis=-1)
        return usual(*arguments, **named)

    def _times(self, own: Any, x: Array) -> Array:
        if self.alone:
            y = one_row.times(x.reshape(-1), own["kernel"]).reshape(*x.shape[:-1], -1)
        else:
            y = product(x, own["kernel"], 0, self.config.dtype)
        return y + own["bias"] if "bias" in own else y


_MERGED = "projections"  # of queries, keys and values
LARGE = 2**23  # parameters; single-row loops take a second longer to compile, which smaller models do not amortize


def prepared(model: Any, params: Any, rows: int) -> tuple[Any, Any]:
    """Convert a GPT and its parameters to the fastest form for `extend` with `rows` rows.

    Other models are returned unchanged. Layers are unrolled: a scan would copy the complete cache for each token.
    Kernels are rounded to the dtype of products once instead of for each token. Without a mesh the kernels of queries,
    keys and values are merged. On a CPU the kernels of a large model are laid out for a single row if there is one row.
    """
    config = model.config
    if not isinstance(config, GPTConfig):
        return model, params
    unrolled, unsharded = gpt.GPT(replace(config, scan=False)), axes.current() is None
    large = sum(leaf.size for leaf in jax.tree.leaves(params)) >= LARGE
    alone = unsharded and rows == 1 and large and jax.default_backend() == "cpu"
    if config.scan or unsharded or config.dtype == "bfloat16":
        params = _prepared(config, unsharded, alone, params)
    return Prepared(unrolled, alone) if unsharded else unrolled, params


def prepared_state(config: ModelConfig, state: State) -> State:
    """Convert the state of a model to the form that the model of `prepared` reads."""
    return gpt.unstacked_cache(state) if isinstance(config, GPTConfig) and config.scan else state


def grown(config: ModelConfig, state: State, size: int) -> State:
    """Enlarge a state of `prepared_state` to `size` tokens in total, if its size is limited."""
    if isinstance(config, CustomModelConfig):
        more = min(size, config.context) - state["ids_BT"].shape[1]
        return state | {"ids_BT": jnp.pad(state["ids_BT"], ((0, 0), (0, max(0, more))))}
    ends = limit(config) is not None
    return _grown(state, size) if ends and state["layers"][0]["keys"].shape[1] < size else state


@partial(jax.jit, static_argnums=1)
def _grown(cache: dict[str, Any], size: int) -> dict[str, Any]:
    def wider(leaf: Array) -> Array:
        return jnp.pad(leaf, ((0, 0), (0, size - leaf.shape[1]), (0, 0)))

    return cache | {"layers": jax.tree.map(wider, cache["layers"])}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prepared(config: GPTConfig, merges: bool, alone: bool, params: Any) -> Any:
    def laid_out(path: Any, leaf: Array) -> Array:
        if path[-1].key != "kernel":
            return leaf
        return one_row.laid_out(leaf, config.dtype) if alone else rounded(leaf, config.dtype)

    params = gpt.unstack(params) if config.scan else params
    if merges:
        params = {name: _merged(leaves) if name.startswith("block_") else leaves for name, leaves in params.items()}
    return jax.tree_util.tree_map_with_path(laid_out, params)


def _merged(block: Any) -> Any:
    attention = dict(block["attention"])
    parts = [attention.pop(name) for name in ("query", "key", "value")]
    merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *parts)
    return block | {"attention": attention | {_MERGED: merged}}


# ---- The state --------------------------------------------------------------------------------------------------


def read(model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
    """Read prompts: logits (B, V) after each, and a state with room for `size` tokens."""
    config, T = model.config, prompts_BT.shape[1]
    if isinstance(config, GPTConfig):
        state = gpt.begin(config, first_B, size)
        last_B1 = jnp.full((len(first_B), 1), T - 1)
        logits_B1V, state = model.apply({"params": params}, prompts_BT, cache=state, places_BN=last_B1)
        return logits_B1V[:, 0], state
    if isinstance(config, CustomModelConfig):
        # Left-aligned: a causal model sees nothing of what follows the last token of a row.
        places_BT = jnp.minimum(first_B[:, None] + jnp.arange(T), T - 1)
        room = max(0, min(size, config.context) - T)
        ids_BT = jnp.pad(jnp.take_along_axis(prompts_BT, places_BT, axis=1), ((0, 0), (0, room)))
        return _after_last(model, params, {"ids_BT": ids_BT, "length_B": T - first_B})
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
    """Read one more token of each row: logits (B, V) after it, and the next state."""
    config, tokens_B1 = model.config, tokens_B[:, None]
    if isinstance(config, NNLMConfig):
        ids_BT = jnp.concatenate([state[:, 1:], tokens_B1], axis=1)
        return model.apply({"params": params}, ids_BT)[:, -1], ids_BT
    if isinstance(config, CustomModelConfig):
        rows_B = jnp.arange(len(tokens_B))
        ids_BT = state["ids_BT"].at[rows_B, state["length_B"]].set(tokens_B)
        return _after_last(model, params, {"ids_BT": ids_BT, "length_B": state["length_B"] + 1})
    name = "cache" if isinstance(config, GPTConfig) else "carry"
    logits_B1V, state = model.apply({"params": params}, tokens_B1, **{name: state})
    return logits_B1V[:, 0], state


def _after_last(model: Any, params: Any, state: State) -> tuple[Array, State]:
    """The logits (B, V) after the last token of each row, and the state."""
    logits_BTV = model.apply({"params": params}, state["ids_BT"])
    return logits_BTV[jnp.arange(len(logits_BTV)), state["length_B"] - 1], state
