"""Sampling of the next token from its logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from lmjax.config import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. The same settings, prompts and seed give the same text."""

    #: Maximum number of new tokens.
    max_tokens: int = 200
    #: Divides the logits; 0 takes the most likely token.
    temperature: float = 1.0
    #: Keep only the k most likely tokens (0: all).
    top_k: int = 0
    #: Keep the smallest set of these whose probability reaches p (Holtzman et al. 2020, section 3.1).
    top_p: float = 1.0
    #: Keep only tokens with at least this share of the largest probability (Nguyen et al. 2024).
    min_p: float = 0.0
    #: Logits of tokens in the prompt or the text are divided by it, or multiplied if negative (Keskar et al. 2019,
    #: section 4.1).
    repetition_penalty: float = 1.0
    #: Texts that end a continuation; they are not part of it.
    stop: tuple[str, ...] = ()
    #: Continue after the end of a document.
    past_end: bool = False
    #: Seed of the random keys.
    seed: int = 0

    def __post_init__(self) -> None:
        fits = self.temperature >= 0 and self.top_k >= 0 and self.max_tokens >= 0 and self.repetition_penalty > 0
        if not (fits and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise UserError(
                "temperature, top_k and max_tokens must be >= 0, top_p in (0, 1], min_p in [0, 1], "
                "repetition_penalty > 0"
            )
        if "" in self.stop:
            raise UserError("stop: an empty text would end every continuation at once; remove it")

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether decoding is greedy, and whether tokens are filtered."""
        return self.temperature == 0, bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    @property
    def numbers(self) -> dict[str, float]:
        """The numeric settings that `choose` takes."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


def choose(
    logits_BV: Array,
    rngs_B: Array,
    seen_BV: Array | None = None,
    *,
    kind: tuple[bool, bool],
    temperature: Array | float = 1.0,
    top_k: Array | int = 0,
    top_p: Array | float = 1.0,
    min_p: Array | float = 0.0,
    repetition_penalty: Array | float = 1.0,
) -> Array:
    """Choose a token id (B) for each row of logits.

    Args:
        logits_BV: The logits.
        rngs_B: Random key of each row.
        seen_BV: Tokens that the prompt or the text contains; None: no repetition penalty.
        kind: Whether decoding is greedy, and whether tokens are filtered (`Sampling.kind`).
        temperature: See `Sampling`.
        top_k: See `Sampling`.
        top_p: See `Sampling`.
        min_p: See `Sampling`.
        repetition_penalty: See `Sampling`.
    """
    greedy, filtered = kind
    if seen_BV is not None:
        penalized_BV = jnp.where(logits_BV > 0, logits_BV / repetition_penalty, logits_BV * repetition_penalty)
        logits_BV = jnp.where(seen_BV, penalized_BV, logits_BV)
    if greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if filtered:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        rank_V = jnp.arange(logits_BV.shape[-1])
        sorted_BV = jnp.where((rank_V < top_k) | (top_k == 0), sorted_BV, -jnp.inf)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        kept_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p) & (p_BV >= min_p * p_BV[:, :1]) & (p_BV > 0)
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(rngs_B, logits_BV).astype(jnp.int32)
