"""Greedy decoding and beam search with a cache, and translation.

Shapes: B rows, K beams (hypotheses of a row), N = B K, T tokens of a hypothesis, V vocabulary, C candidates.

A stepper is a function (tokens_N, place, cache) -> (logits_NV, cache). It reads the token at position `place` (from 0)
of each sequence and returns the logits of the next token. The cache is a pytree of arrays whose first axis indexes
sequences. If the stepper returns a leaf as the identical array object, the leaf is treated as equal for all beams of a
row (such as the output of an encoder) and is never reordered.

A hypothesis ends with the token `end`, or with its T-th token. Its score is the sum of its tokens' log-probabilities
(in nats, including `end`) divided by ((5 + length) / 6)^length_penalty, where the length includes `end` (Wu et al.
2016, section 7, without the coverage penalty).
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lmjax.config import UserError

Step = Callable[[Array, Array, Any], tuple[Array, Any]]


def greedy(
    step: Step, cache: Any, *, rows: int, begin: int, end: int, max_length: int, length_penalty: float | Array = 0.0
) -> tuple[Array, Array]:
    """Decode greedily: ids (B, T), padded with `end`, and scores (B).

    Ties go to the lower id. The function is traceable; it stops when all rows have ended.

    Args:
        step: The stepper.
        cache: Cache of `rows` sequences.
        rows: Number of rows B.
        begin: Id that precedes every hypothesis.
        end: Id that ends a hypothesis.
        max_length: Maximum number of tokens T of a hypothesis.
        length_penalty: Exponent of the length penalty.

    Raises:
        UserError: A setting is out of range.
    """
    _check(1, max_length)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        place, token_B, ids_BT, sum_B, length_B, live_B, cache = carry
        logits_BV, cache = step(token_B, place, cache)
        log_BV = jax.nn.log_softmax(logits_BV)
        token_B = jnp.where(live_B, jnp.argmax(log_BV, axis=-1).astype(jnp.int32), end)
        sum_B += jnp.where(live_B, jnp.max(log_BV, axis=-1), 0.0)
        ids_BT = lax.dynamic_update_slice_in_dim(ids_BT, token_B[:, None], place, axis=1)
        return place + 1, token_B, ids_BT, sum_B, length_B + live_B, live_B & (token_B != end), cache

    ids_BT, zeros_B = jnp.full((rows, max_length), end, jnp.int32), jnp.zeros(rows, jnp.int32)
    start = jnp.int32(0), zeros_B + begin, ids_BT, zeros_B.astype(jnp.float32), zeros_B, zeros_B == 0, cache
    carry = lax.while_loop(lambda carry: (carry[0] < max_length) & jnp.any(carry[5]), body, start)
    _, _, ids_BT, sum_B, length_B, _, _ = carry
    return ids_BT, sum_B / _penalty(length_B, length_penalty)


def beam_search(
    step: Step,
    cache: Any,
    *,
    rows: int,
    beams: int,
    begin: int,
    end: int,
    max_length: int,
    length_penalty: float | Array = 0.0,
) -> tuple[Array, Array]:
    """Decode by beam search, best first: ids (B, K, T), padded with `end`, and scores (B, K).

    Each step extends the `beams` most likely unfinished hypotheses of a row by every token. Finished hypotheses are
    stored separately and use none of the `beams` slots. A row is done when no unfinished hypothesis can score more than
    its worst finished hypothesis.

    Plain beam search may drop the greedy hypothesis early and end with worse hypotheses. Greedy decoding therefore runs
    too (one additional sequence a row) and its hypothesis is merged into the results: the best result never scores
    below it. One beam is greedy decoding. If fewer hypotheses exist than beams, the remaining scores are minus
    infinity. The function is traceable.

    Args:
        step: The stepper.
        cache: Cache of `rows` sequences.
        rows: Number of rows B.
        beams: Number of beams K.
        begin: Id that precedes every hypothesis.
        end: Id that ends a hypothesis.
        max_length: Maximum number of tokens T of a hypothesis.
        length_penalty: Exponent of the length penalty.

    Raises:
        UserError: A setting is out of range.
    """
    _check(beams, max_length)
    common: dict[str, Any] = {"rows": rows, "begin": begin, "end": end, "max_length": max_length}
    common["length_penalty"] = length_penalty
    ids_BT, scores_B = greedy(step, cache, **common)
    if beams == 1:
        return ids_BT[:, None], scores_B[:, None]
    ids_BKT, scores_BK = search(step, cache, beams=beams, **common)
    same_BK = jnp.all(ids_BKT == ids_BT[:, None], axis=-1)  # a duplicate, whose score may differ in its last bit
    ids_BKT, scores_BK = jnp.where(same_BK[..., None], end, ids_BKT), jnp.where(same_BK, -jnp.inf, scores_BK)
    return _best(ids_BKT, scores_BK, ids_BT[:, None], scores_B[:, None])


class _Beams(NamedTuple):
    """State of a beam search; a score or sum of minus infinity marks an empty slot."""

    #: Number of tokens of the unfinished hypotheses.
    place: Array
    #: Unfinished hypotheses.
    ids_BKT: Array
    #: Sums of their log-probabilities.
    sums_BK: Array
    #: Finished hypotheses, best first.
    done_BKT: Array
    #: Their scores.
    scores_BK: Array
    #: Cache of the model.
    cache: Any


def search(
    step: Step,
    cache: Any,
    *,
    rows: int,
    beams: int,
    begin: int,
    end: int,
    max_length: int,
    length_penalty: float | Array = 0.0,
) -> tuple[Array, Array]:
    """Plain beam search: `beam_search` without the greedy hypothesis."""

    def body(at: _Beams) -> _Beams:
        last_BK = jnp.where(at.place == 0, begin, at.ids_BKT[:, :, at.place - 1])
        logits_NV, cache = step(last_BK.reshape(-1), at.place, at.cache)
        log_BKV = jax.nn.log_softmax(logits_NV).reshape(rows, beams, -1) + at.sums_BK[..., None]
        vocabulary = log_BKV.shape[-1]
        # Only one token ends a beam: of 2 K candidates at least K continue.
        count = min(2 * beams, beams * vocabulary)
        sums_BC, which_BC = lax.top_k(log_BKV.reshape(rows, -1), count)
        parent_BC, token_BC = which_BC // vocabulary, which_BC % vocabulary
        ids_BCT = jnp.take_along_axis(at.ids_BKT, parent_BC[..., None], axis=1).at[:, :, at.place].set(token_BC)
        ended_BC = (token_BC == end) | (at.place + 1 == max_length)
        scores_BC = jnp.where(ended_BC, sums_BC / _penalty(at.place + 1, length_penalty), -jnp.inf)
        done_BKT, scores_BK = _best(at.done_BKT, at.scores_BK, ids_BCT, scores_BC)
        sums_BK, survivor_BK = lax.top_k(jnp.where(ended_BC, -jnp.inf, sums_BC), beams)
        ids_BKT = jnp.take_along_axis(ids_BCT, survivor_BK[..., None], axis=1)
        parent_BK = jnp.take_along_axis(parent_BC, survivor_BK, axis=1)
        parent_N = (jnp.arange(rows)[:, None] * beams + parent_BK).reshape(-1)
        cache = jax.tree.map(lambda old, new: new if new is old else jnp.take(new, parent_N, axis=0), at.cache, cache)
        return _Beams(at.place + 1, ids_BKT, sums_BK, done_BKT, scores_BK, cache)

    def unfinished(at: _Beams) -> Array:
        # Sums only decrease and the divisor only increases: a score is at most the sum over the largest divisor.
        bound_B = jnp.max(at.sums_BK, axis=-1) / _penalty(max_length, length_penalty)
        return (at.place < max_length) & jnp.any(bound_B > at.scores_BK[:, -1])

    ids_BKT = jnp.full((rows, beams, max_length), end, jnp.int32)
    nothing_BK = jnp.full((rows, beams), -jnp.inf)
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), cache)
    start = _Beams(jnp.int32(0), ids_BKT, nothing_BK.at[:, 0].set(0.0), ids_BKT, nothing_BK, cache)
    at = lax.while_loop(unfinished, body, start)
    return at.done_BKT, at.scores_BK


def _best(ids_BKT: Array, scores_BK: Array, ids_BCT: Array, scores_BC: Array) -> tuple[Array, Array]:
    """The K best of K and C hypotheses, best first; ties go to the first."""
    ids = jnp.concatenate([ids_BKT, ids_BCT], axis=1)
    scores_BK, which_BK = lax.top_k(jnp.concatenate([scores_BK, scores_BC], axis=1), scores_BK.shape[1])
    return jnp.take_along_axis(ids, which_BK[..., None], axis=1), scores_BK


def _penalty(length: int | Array, length_penalty: float | Array) -> Array:
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** length_penalty


def _check(beams: int, max_length: int) -> None:
    if beams < 1 or max_length < 1:
        raise UserError(f"beams={beams} and max_length={max_length} must be at least 1")


def translate(
    model: Any,
    params: Any,
    source_BS: Any,
    source_mask_BS: Any,
    *,
    begin: int,
    end: int,
    max_length: int,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> np.ndarray:
    """Translate each source by beam search: ids (B, max_length), padded with `end`.

    The ids do not include `begin`. The defaults are those of Vaswani et al. 2017, section 6.1. The function compiles
    once for each shape.

    Args:
        model: A Transformer (`lmjax.models.transformer`), or a module with its `encode`, `start` and `step`.
        params: Its parameters.
        source_BS: Ids of the sources.
        source_mask_BS: 0 at padding.
        begin: Id that precedes every hypothesis.
        end: Id that ends a hypothesis.
        max_length: Maximum number of tokens of a hypothesis.
        beams: Number of beams.
        length_penalty: Exponent of the length penalty.

    Raises:
        UserError: `beams` or `max_length` is below 1, `length_penalty` is negative or not finite, or the logits of the
            model are not finite numbers.
    """
    _check(beams, max_length)
    if not 0 <= length_penalty < inf:
        raise UserError(f"length_penalty={length_penalty} must be finite and not negative")
    sizes = begin, end, max_length, beams
    ids_BT, score_B = jax.device_get(_translate(model, params, source_BS, source_mask_BS, *sizes, length_penalty))
    wrong_B = ~np.isfinite(score_B) & np.any(source_mask_BS, axis=1)
    if wrong_B.any():
        raise UserError(
            f"the translation of source {np.flatnonzero(wrong_B)[0]} has a score that is not a finite number; the "
            "weights of the model are damaged or exceed its dtype"
        )
    return ids_BT


@partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _translate(
    model: Any,
    params: Any,
    source_BS: Array,
    source_mask_BS: Array,
    begin: int,
    end: int,
    max_length: int,
    beams: int,
    length_penalty: Array,
) -> tuple[Array, Array]:
    apply = partial(model.apply, {"params": params})
    memory_BSD = apply(source_BS, source_mask_BS=source_mask_BS, method="encode")

    def step(tokens_N: Array, place: Array, cache: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        mask_NS = cache["mask"]
        logits_NV, states = apply(tokens_N, place, cache["states"], source_mask_BS=mask_NS, method="step")
        return logits_NV, {"mask": mask_NS, "states": states}

    cache = {"mask": source_mask_BS, "states": apply(memory_BSD, max_length, method="start")}
    ids_BKT, scores_BK = beam_search(
        step,
        cache,
        rows=source_BS.shape[0],
        beams=beams,
        begin=begin,
        end=end,
        max_length=max_length,
        length_penalty=length_penalty,
    )
    return ids_BKT[:, 0], scores_BK[:, 0]
