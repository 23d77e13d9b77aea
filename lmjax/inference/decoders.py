"""Decoders: how a model family extends a text token by token."""

from abc import ABC, abstractmethod
from typing import Any

import jax.numpy as jnp
from jax import Array

from lmjax.models import rnn

State = Any


class Decoder(ABC):
    """How a family extends texts token by token with a state.

    Rows of different lengths are right-aligned: row b of T positions has its first token at position first_B[b].
    """

    def limit(self, config: Any) -> int | None:
        """Return the maximum number of tokens of a state; None: unlimited."""
        return None

    def prepared(self, model: Any, params: Any, rows: int) -> tuple[Any, Any]:
        """Convert a model and its parameters to the fastest form for `extend` with `rows` rows."""
        return model, params

    def prepared_state(self, config: Any, state: State) -> State:
        """Convert a state to the form that the model of `prepared` reads."""
        return state

    def grown(self, config: Any, state: State, size: int) -> State:
        """Enlarge a state of `prepared_state` to `size` tokens in total, if its size is limited."""
        return state

    @abstractmethod
    def read(self, model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
        """Read prompts: logits (B, V) after each, and a state with room for `size` tokens."""

    @abstractmethod
    def extend(self, model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
        """Read one more token of each row: logits (B, V) after it, and the next state."""


class RNNDecoder(Decoder):
    """The state is that of the recurrent network."""

    def read(self, model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
        """Read prompts; a segment of its own holds the padding."""
        segments_BT = jnp.where(jnp.arange(prompts_BT.shape[1]) < first_B[:, None], 0, 1)
        state = rnn.begin(model.config, len(first_B))
        logits_BTV, state = model.apply({"params": params}, prompts_BT, carry=state, segments_BT=segments_BT)
        return logits_BTV[:, -1], state

    def extend(self, model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
        """Read one more token of each row."""
        logits_B1V, state = model.apply({"params": params}, tokens_B[:, None], carry=state)
        return logits_B1V[:, 0], state


class NNLMDecoder(Decoder):
    """The state is the last tokens (B, N)."""

    def read(self, model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
        """Read prompts; the id V fills the places before a row."""
        nothing, most, T = model.config.vocab_size, model.config.order - 1, prompts_BT.shape[1]
        ids_BT = jnp.where(jnp.arange(T) < first_B[:, None], nothing, prompts_BT)
        ids_BT = jnp.pad(ids_BT, ((0, 0), (max(0, most - T), 0)), constant_values=nothing)[:, -most:]
        return model.apply({"params": params}, ids_BT)[:, -1], ids_BT

    def extend(self, model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
        """Read one more token of each row."""
        ids_BT = jnp.concatenate([state[:, 1:], tokens_B[:, None]], axis=1)
        return model.apply({"params": params}, ids_BT)[:, -1], ids_BT


class WindowDecoder(Decoder):
    """For any causal model: compute all tokens again for each new one.

    The state has the ids, left-aligned, and the lengths: a causal model sees nothing of what follows the last token.
    """

    def limit(self, config: Any) -> int | None:
        """Return the context."""
        return config.context

    def grown(self, config: Any, state: State, size: int) -> State:
        """Add columns, up to the context."""
        more = min(size, config.context) - state["ids_BT"].shape[1]
        return state | {"ids_BT": jnp.pad(state["ids_BT"], ((0, 0), (0, max(0, more))))}

    def read(self, model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
        """Read prompts."""
        T, room = prompts_BT.shape[1], max(0, min(size, model.config.context) - prompts_BT.shape[1])
        places_BT = jnp.minimum(first_B[:, None] + jnp.arange(T), T - 1)
        ids_BT = jnp.pad(jnp.take_along_axis(prompts_BT, places_BT, axis=1), ((0, 0), (0, room)))
        return self._after_last(model, params, {"ids_BT": ids_BT, "length_B": T - first_B})

    def extend(self, model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
        """Read one more token of each row."""
        rows_B = jnp.arange(len(tokens_B))
        ids_BT = state["ids_BT"].at[rows_B, state["length_B"]].set(tokens_B)
        return self._after_last(model, params, {"ids_BT": ids_BT, "length_B": state["length_B"] + 1})

    def _after_last(self, model: Any, params: Any, state: State) -> tuple[Array, State]:
        logits_BTV = model.apply({"params": params}, state["ids_BT"])
        return logits_BTV[jnp.arange(len(logits_BTV)), state["length_B"] - 1], state
