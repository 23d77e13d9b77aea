"""Sampling of the next token from its logits."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import UserError
from lmjax.system import seeds

_LARGEST = 2**31 - 1  # of an integer on a device
_COLDEST, _HOTTEST = 1e-6, 1e30  # of a temperature: logits divided by less or more leave the range of float32


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value <= _LARGEST)


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens": (_whole, f"in [0, {_LARGEST}], an integer"),
    "temperature": (lambda x: x == 0 or _COLDEST <= x <= _HOTTEST, f"0 or in [{_COLDEST:g}, {_HOTTEST:g}]"),
    "top_k": (_whole, f"in [0, {_LARGEST}], an integer"),
    "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "repetition_penalty": (lambda x: 1 / _HOTTEST <= x <= _HOTTEST, "above 0 and finite"),
}


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
        for name, (fits, rule) in _RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
            if not number or not fits(value):
                raise UserError(f"{name}={str(value)[:40]} is out of range: {name} {rule}")
        seeds.check(self.seed)
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise UserError("stop must be a list of texts")
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
    """Choose a token id (B) for each row; -1 if its largest logit is not finite.

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
    finite_B = jnp.isfinite(jnp.max(logits_BV, axis=-1))  # a maximum is NaN if any logit is
    if seen_BV is not None:
        penalized_BV = jnp.where(logits_BV > 0, logits_BV / repetition_penalty, logits_BV * repetition_penalty)
        logits_BV = jnp.where(seen_BV, penalized_BV, logits_BV)
    if greedy:
        return jnp.where(finite_B, jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), -1)
    logits_BV = logits_BV / temperature
    if filtered:
        logits_BV = _filtered(logits_BV, top_k, top_p, min_p)
    return jnp.where(finite_B, jax.vmap(jax.random.categorical)(rngs_B, logits_BV).astype(jnp.int32), -1)


def _filtered(logits_BV: Array, top_k: Array | int, top_p: Array | float, min_p: Array | float) -> Array:
    """Set the logits of excluded tokens to minus infinity.

    Of tokens with equal logits, those with lower ids stay.

    A token is kept by its rank, not by its value: of ten equal tokens, top_p=0.45 keeps five.
    """
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1])
    sorted_BV = jnp.where((rank_V < top_k) | (top_k == 0), sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    kept_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p) & (p_BV >= min_p * p_BV[:, :1]) & (p_BV > 0)
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = jnp.sum(kept_BV, axis=-1, keepdims=True) - jnp.sum(above_BV, axis=-1, keepdims=True)
    return jnp.where(above_BV | (equal_BV & (jnp.cumsum(equal_BV, axis=-1) <= room_B1)), logits_BV, -jnp.inf)
