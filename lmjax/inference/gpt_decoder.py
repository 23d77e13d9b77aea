"""Incremental decoding of a GPT: cached keys and values, fast products of single tokens."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lmjax.config import GPTConfig
from lmjax.inference import one_row
from lmjax.inference.decoders import Decoder, State
from lmjax.models import gpt
from lmjax.models.attention.module import Attention
from lmjax.models.layers import Dense, product, rounded
from lmjax.parallel import axes


class GPTDecoder(Decoder):
    """The state holds keys and values, at most those of the context."""

    def limit(self, config: GPTConfig) -> int | None:
        """Return the context."""
        return config.context

    def prepared(self, model: Any, params: Any, rows: int) -> tuple[Any, Any]:
        """Convert the model and its parameters to the fastest form for `extend` with `rows` rows.

        Layers are unrolled: a scan would copy the complete cache for each token. Kernels are rounded to the dtype of
        products once instead of for each token. Without a mesh the kernels of queries, keys and values are merged. On
        a CPU the kernels of a large model are laid out for a single row if there is one row.
        """
        config = model.config
        unrolled, unsharded = gpt.GPT(replace(config, scan=False)), axes.current() is None
        large = sum(leaf.size for leaf in jax.tree.leaves(params)) >= LARGE
        alone = unsharded and rows == 1 and large and jax.default_backend() == "cpu"
        if config.scan or unsharded or config.dtype == "bfloat16":
            params = _prepared(config, unsharded, alone, params)
        return Prepared(unrolled, alone) if unsharded else unrolled, params

    def prepared_state(self, config: GPTConfig, state: State) -> State:
        """Unstack the cache of a scanned model."""
        return gpt.unstacked_cache(state) if config.scan else state

    def grown(self, config: GPTConfig, state: State, size: int) -> State:
        """Enlarge a cache of `prepared_state` to `size` tokens in total."""
        return _grown(state, size) if state["layers"][0]["keys"].shape[1] < size else state

    def read(self, model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
        """Read prompts into a cache for `size` tokens."""
        state, last = gpt.begin(model.config, first_B, size), prompts_BT.shape[1] - 1
        last_B1 = jnp.full((len(first_B), 1), last)
        logits_B1V, state = model.apply({"params": params}, prompts_BT, cache=state, places_BN=last_B1)
        return logits_B1V[:, 0], state

    def extend(self, model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
        """Read one more token of each row."""
        logits_B1V, state = model.apply({"params": params}, tokens_B[:, None], cache=state)
        return logits_B1V[:, 0], state


# ---- The products of single tokens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A GPT that computes with the parameters of `GPTDecoder.prepared`."""

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
