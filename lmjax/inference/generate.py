"""Text generation: batched, cached decoding of prompts.

Legend: B prompts, T positions of a prompt, N new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import UserError
from lmjax.inference import incremental
from lmjax.inference.continuation import Continuation
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling, choose
from lmjax.system.seeds import random_key

CHUNK = 32  # tokens that the device decodes before the host reads them


class NotFinite(UserError):
    """Logits that are not finite numbers, from which no token can be chosen."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite numbers; its weights are damaged or exceed its dtype")


def generate(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    *,
    sampling: Sampling,
    show: Callable[[int, str], None] | None = None,
    alone: bool = False,
) -> list[str]:
    """Generate the text that continues each prompt.

    Args:
        lm: The model.
        prompts: Texts or token ids; an empty text is the beginning of a document.
        sampling: The sampling settings.
        show: Called with the index of a prompt and the next part of its continuation, as soon as no later token can
            change it.
        alone: Decode each continuation as a text of its own, without special tokens.

    Raises:
        UserError: The tokenizer cannot encode a prompt, or the model has no row for an id.
        NotFinite: The logits of a prompt are not finite.
    """
    texts, shown = [""] * len(prompts), [0] * len(prompts)
    ids = [lm.ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    continuations = [Continuation(lm.tokenizer, prompt, alone=alone) for prompt in ids]
    withheld = (
        max((len(stop) for stop in sampling.stop), default=1) - 1
    )  # a stop may have started at the end of the text

    def cut(row: int, new: list[int], ended: bool) -> bool:
        """Update the text of a row and return whether it contains a stop."""
        text = continuations[row].text(new)
        stops = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        texts[row] = text[: min(stops)] if stops else text
        ended = ended or bool(stops)
        if show is not None:
            settled = len(texts[row]) if ended else continuations[row].final(new, text) - withheld
            if settled > shown[row]:
                show(row, texts[row][shown[row] : settled])
                shown[row] = settled
        return bool(stops)

    ends = () if sampling.past_end else lm.ends
    for _ in continue_ids(lm.model, lm.params, ids, sampling=sampling, ends=ends, cut=cut):
        pass
    return texts


def continue_ids(
    model: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    ends: Sequence[int] = (),
    cut: Callable[[int, list[int], bool], bool] = lambda row, new, ended: False,
) -> Iterator[list[list[int]]]:
    """Continue prompts chunk by chunk; yields all new ids of each row after every chunk.

    When the context of a row is full, decoding continues from the second half of the context. Greedy decoding gives
    each row the same ids as decoding it alone.

    Args:
        model: The model.
        params: Its parameters.
        prompts: Token ids, at least one in each prompt.
        sampling: The sampling settings.
        ends: Ids that end a continuation; they are not part of it.
        cut: Called after each chunk with a row's index, its new ids and whether it has ended; True ends the row.

    Raises:
        UserError: A prompt is empty, or has an id that the model does not know.
        NotFinite: The logits of a row are not finite.
    """
    _check(prompts, model.config.vocab_size)
    context, done = incremental.limit(model.config), 0
    new: list[list[int]] = [[] for _ in prompts]
    alive = np.full(len(prompts), sampling.max_tokens > 0)
    keys_B = _keys(random_key(sampling.seed), len(prompts))
    quick, quick_params = incremental.prepared(model, params, len(prompts)) if alive.any() else (model, params)
    starts = [max(0, len(prompt) - context) if context else 0 for prompt in prompts]
    while alive.any():
        texts = [[*prompt, *continuation] for prompt, continuation in zip(prompts, new, strict=True)]
        for row, ids in enumerate(texts):
            if not alive[row]:
                starts[row] = len(ids) - 1  # an ended row must not shorten the room of the others
            elif context and len(ids) - starts[row] > context:
                starts[row] = len(ids) - max(1, context // 2)
        read = [ids[start:] for ids, start in zip(texts, starts, strict=True)]
        window = Window.of(read, context, sampling.max_tokens - done)
        seen_BV = _seen(texts, model.config.vocab_size) if sampling.repetition_penalty != 1 else None
        rows = Rows(*window.read(model, params), seen_BV, keys_B, jnp.int32(done))
        left = window.room
        while left > 0 and alive.any():
            count = min(CHUNK, left)
            size = window.size(window.room - left + CHUNK)
            rows = rows._replace(state=incremental.grown(model.config, rows.state, size))
            settings = tuple(ends), sampling.kind, sampling.numbers
            rows, chunk_BN = _decoder(jax.default_backend())(quick, quick_params, rows, alive, count, *settings)
            left, done, keys_B = left - count, done + count, rows.keys_B
            chunk = np.asarray(chunk_BN)[:, :count].tolist()
            for row in np.flatnonzero(alive):
                tokens, ended = _before_end(chunk[row], ends)
                new[row] += tokens
                ended = ended or done >= sampling.max_tokens
                alive[row] = not (cut(int(row), new[row], ended) or ended)
            yield new


def _before_end(tokens: list[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """The tokens before the first one that ends a text, and whether there is one."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    if -1 in tokens[:end]:
        raise NotFinite()
    return tokens[:end], end is not None


def unread(lm: LanguageModel, prompt: Sequence[int]) -> int:
    """Count the first ids of a prompt that `generate` leaves out: they exceed the context."""
    context = incremental.limit(lm.model.config)
    return max(0, len(prompt) - context) if context else 0


def _check(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    for prompt in prompts:
        if not prompt:
            raise UserError("the prompt is empty")
        wrong = next((i for i in (min(prompt), max(prompt)) if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise UserError(f"the prompt has the token id {wrong}; the model has the ids 0 to {vocab_size - 1}")


def _seen(texts: Sequence[Sequence[int]], vocab_size: int) -> Array:
    seen_BV = np.zeros((len(texts), vocab_size), bool)
    for seen_V, ids in zip(seen_BV, texts, strict=True):
        seen_V[list(ids)] = True
    return jnp.asarray(seen_BV)


@dataclass(frozen=True)
class Window:
    """Prompts as one right-aligned array of few possible lengths, which limits recompilation."""

    #: Ids, padded on the left.
    ids_BT: np.ndarray
    #: Position of the first token of each prompt.
    first_B: np.ndarray
    #: Number of tokens that can follow.
    room: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], context: int | None, max_tokens: int) -> "Window":
        """Align prompts for up to `max_tokens` new tokens within `context` positions."""
        longest = max(map(len, prompts))
        room = max_tokens if context is None else min(max_tokens, context - longest + 1)
        T = max(16, power_of_two(longest))
        T = T if context is None or context >= T else longest
        first_B = np.array([T - len(ids) for ids in prompts], np.int32)
        ids_BT = np.stack([np.pad(np.asarray(ids, np.int32), (T - len(ids), 0)) for ids in prompts])
        return cls(ids_BT, first_B, room)

    def size(self, new: int) -> int:
        """Return the number of positions of a state that holds `new` new tokens.

        With several rows the state grows on demand, since every token reads all positions. A single row has its
        final size from the start: reading it costs less than compiling another size.
        """
        rows, T = self.ids_BT.shape
        largest = T + max(CHUNK, power_of_two(self.room))
        return min(power_of_two(T + new), largest) if rows > 1 else largest

    def read(self, model: Any, params: Any) -> tuple[Array, Any]:
        """Read the prompts: the logits after them, and the state of the model."""
        return _read(model, params, self.ids_BT, self.first_B, self.size(CHUNK))


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`.

    It limits the number of array sizes.
    """
    return 1 << max(0, count - 1).bit_length()


# ---- On the devices ---------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """State of the rows that are being decoded."""

    #: Logits of the next token.
    logits_BV: Array
    #: State of the model.
    state: Any
    #: Which tokens the text already contains; only with a repetition penalty.
    seen_BV: Array | None
    #: Random key of each row.
    keys_B: Array
    #: Number of tokens decoded so far.
    step: Array


@partial(jax.jit, static_argnums=(0, 4))
def _read(model: Any, params: Any, ids_BT: Array, first_B: Array, size: int) -> tuple[Array, Any]:
    logits_BV, state = incremental.read(model, params, ids_BT, first_B=first_B, size=size)
    return logits_BV, incremental.prepared_state(model.config, state)


@partial(jax.jit, static_argnums=1)
def _keys(key: Array, count: int) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


@cache
def _decoder(backend: str) -> Any:
    """Compile `_decode`.

    On CPU it uses the widest vectors: its loops are bound by memory, not by the clock rate.
    """
    options: Any = {"xla_cpu_prefer_vector_width": 512} if backend == "cpu" else None
    return jax.jit(_decode, static_argnums=(0, 5, 6), donate_argnums=2, compiler_options=options)


def _decode(
    model: Any,
    params: Any,
    rows: Rows,
    alive_B: Array,
    count: Array,
    ends: tuple[int, ...],
    kind: tuple[bool, bool],
    numbers: dict[str, Array],
) -> tuple[Rows, Array]:
    """Decode `count` tokens (B, CHUNK) of all rows; stops early when all live rows have ended."""

    def unfinished(carry: tuple[Rows, Array, Array, Array]) -> Array:
        i, alive_B = carry[1], carry[3]
        return (i < count) & alive_B.any()

    def step(carry: tuple[Rows, Array, Array, Array]) -> tuple[Rows, Array, Array, Array]:
        (logits_BV, state, seen_BV, keys_B, done), i, chunk_BN, alive_B = carry
        tokens_B = choose(logits_BV, rngs_NB[i], seen_BV, kind=kind, **numbers)
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        alive_B &= ~jnp.isin(tokens_B, jnp.array(ends, jnp.int32))
        logits_BV, state = incremental.extend(model, params, tokens_B, state)
        rows = Rows(logits_BV, state, seen_BV, keys_B, done + 1)
        return rows, i + 1, chunk_BN.at[:, i].set(tokens_B), alive_B

    def folded(step: Array) -> Array:
        return jax.vmap(partial(jax.random.fold_in, data=step))(rows.keys_B)

    rngs_NB = jax.vmap(folded)(rows.step + jnp.arange(CHUNK))
    chunk_BN = jnp.zeros((len(alive_B), CHUNK), jnp.int32)
    rows, _, chunk_BN, _ = jax.lax.while_loop(unfinished, step, (rows, jnp.int32(0), chunk_BN, alive_B))
    return rows, chunk_BN
