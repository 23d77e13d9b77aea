"""Incremental decoding: extend a text token by token with a cached state.

Each function calls the decoder of the model's family (`lmjax.inference.decoders`).
"""

from typing import Any

from jax import Array

from lmjax.config import ModelConfig
from lmjax.inference.decoders import Decoder, NNLMDecoder, RNNDecoder, State, WindowDecoder
from lmjax.inference.gpt_decoder import GPTDecoder
from lmjax.models import registry

DECODERS: dict[str, Decoder] = {"gpt": GPTDecoder(), "rnn": RNNDecoder(), "nnlm": NNLMDecoder()}
_WINDOW = WindowDecoder()


def decoder(config: ModelConfig) -> Decoder:
    """Return the decoder of a family; a user's family may have none of its own."""
    return DECODERS.get(config.family) or registry.family(config).decoder or _WINDOW


def limit(config: ModelConfig) -> int | None:
    """Return the maximum number of tokens of a state; None: unlimited."""
    return decoder(config).limit(config)


def prepared(model: Any, params: Any, rows: int) -> tuple[Any, Any]:
    """Convert a model and its parameters to the fastest form for `extend` with `rows` rows."""
    return decoder(model.config).prepared(model, params, rows)


def prepared_state(config: ModelConfig, state: State) -> State:
    """Convert the state of a model to the form that the model of `prepared` reads."""
    return decoder(config).prepared_state(config, state)


def grown(config: ModelConfig, state: State, size: int) -> State:
    """Enlarge a state of `prepared_state` to `size` tokens in total, if its size is limited."""
    return decoder(config).grown(config, state, size)


def read(model: Any, params: Any, prompts_BT: Array, *, first_B: Array, size: int) -> tuple[Array, State]:
    """Read prompts: logits (B, V) after each, and a state with room for `size` tokens.

    Row b of T positions has its first token at position first_B[b].
    """
    return decoder(model.config).read(model, params, prompts_BT, first_B=first_B, size=size)


def extend(model: Any, params: Any, tokens_B: Array, state: State) -> tuple[Array, State]:
    """Read one more token of each row: logits (B, V) after it, and the next state."""
    return decoder(model.config).extend(model, params, tokens_B, state)
