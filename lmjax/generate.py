"""Decoding: a model continues a prompt.

Legend: B prompts, T context, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config import UserError
from lmjax.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model of the next token with its tokenizer, wherever it came from: what generation and evaluation work with.

    model: a Linen module, ids (B, T) to logits (B, T, V), whose `config` is one of `ModelConfig`. name: to be shown.
    first: the id in front of a text where the model was trained so (LLaMA's <s>); None: nothing.
    stops: further ids that end a text, beside the tokenizer's `end_of_text`.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    name: str = ""
    first: int | None = None
    stops: tuple[int, ...] = ()


def generate(
    model: Any,
    params: Any,
    *,
    prompt: list[int],
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[int]:
    """The ids that continue `prompt` (ids, at least one), `max_tokens` of them; the same seed gives the same ids.

    temperature 0 takes the most likely token. top_k keeps the k most likely (0: all), top_p the smallest set of
    tokens whose probability reaches p (Holtzman et al. 2020, section 3.1). Once the context is full the window slides.
    UserError: a setting out of range, or an empty prompt.
    """
    if not prompt:
        raise UserError("the prompt is empty")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_tokens < 0:
        raise UserError("temperature and top_k must be >= 0, top_p in (0, 1], max_tokens >= 0")
    context = model.config.context
    kept = prompt[-context:]
    window_T = np.zeros(context, np.int32)
    window_T[: len(kept)] = kept
    output_N = np.zeros(_round_up(max_tokens), np.int32)
    settings = {"temperature": temperature, "top_k": top_k or model.config.vocab_size, "top_p": top_p}
    output_N = _decode(model, params, window_T, output_N, len(kept), max_tokens, seed, settings)
    return np.asarray(output_N)[:max_tokens].tolist()


def _round_up(count: int) -> int:
    """A few sizes of output, so that a different max_tokens seldom compiles again."""
    return max(64, 1 << (count - 1).bit_length())


@partial(jax.jit, static_argnums=0)
def _decode(
    model: Any,
    params: Any,
    window_T: jax.Array,
    output_N: jax.Array,
    length: jax.Array,
    count: jax.Array,
    seed: jax.Array,
    settings: dict[str, jax.Array],
) -> jax.Array:
    context = window_T.shape[0]

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        window_T, output_N, length = carry
        logits_V = model.apply({"params": params}, window_T[None])[0, length - 1]
        token = sample(logits_V, jax.random.fold_in(jax.random.key(seed), i), **settings)
        full = length == context
        window_T = jnp.where(full, jnp.roll(window_T, -1), window_T)
        window_T = window_T.at[jnp.where(full, context - 1, length)].set(token)
        return window_T, output_N.at[i].set(token), jnp.minimum(length + 1, context)

    return jax.lax.fori_loop(0, count, body, (window_T, output_N, length))[1]


def sample(
    logits_V: jax.Array, rng: jax.Array, *, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """One token id from logits, as `generate` describes; every setting may be traced."""
    sorted_V = jnp.sort(logits_V / jnp.where(temperature > 0, temperature, 1.0))[::-1]
    before_V = jnp.cumsum(jax.nn.softmax(sorted_V)) - jax.nn.softmax(sorted_V)
    kept_V = (jnp.arange(sorted_V.size) < top_k) & (before_V < top_p)
    threshold = jnp.min(jnp.where(kept_V, sorted_V, jnp.inf))
    scaled_V = logits_V / jnp.where(temperature > 0, temperature, 1.0)
    drawn = jax.random.categorical(rng, jnp.where(scaled_V >= threshold, scaled_V, -jnp.inf))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_V)).astype(jnp.int32)
