"""Going on with a text token by token, at a cost that does not grow with what was read: a state for every family.

Rows of different lengths stand flush right: row b of T places has its first token at place first_B[b]. The state of a
GPT holds keys and values, of a recurrent network its hidden state, of the NNLM the last tokens.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, RNNConfig
from lmjax.models import gpt, rnn

State = Any


def limit(config: ModelConfig) -> int | None:
    """How many tokens a state can hold; None: there is no end to it."""
    return config.context if isinstance(config, GPTConfig) else None


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
