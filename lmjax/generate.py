"""Decoding: a model continues prompts, several at once, each token at the cost of one.

Legend: B prompts, T places of a prompt, N new tokens, V vocabulary.
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
from lmjax.data.tokenizer import Tokenizer
from lmjax.models import incremental

CHUNK = 32  # tokens that are decoded before the host looks at them


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

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text."""
        end = self.tokenizer.end_of_text
        return tuple({*self.stops, *(() if end is None else (end,))})

    def ids(self, text: str) -> list[int]:
        """The ids of a text that stands at the beginning; of an empty one, what a document begins behind."""
        first = [] if self.first is None else [self.first]
        end = self.tokenizer.end_of_text
        return first + self.tokenizer.encode(text) or [0 if end is None else end]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The same settings, prompts and seed give the same text.

    temperature: divides the logits; 0 takes the most likely token. top_k: only the k most likely (0: all). top_p: of
    these the smallest set whose probability reaches p (Holtzman et al. 2020, section 3.1). min_p: only tokens at least
    so likely as this share of the likeliest (Nguyen et al. 2024). repetition_penalty: logits of tokens that the prompt
    or the text already has are divided by it, or multiplied if negative (Keskar et al. 2019, section 4.1).
    stop: texts at which a continuation ends, without them. past_end: goes on behind the end of a document.
    """

    max_tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    past_end: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        fits = self.temperature >= 0 and self.top_k >= 0 and self.max_tokens >= 0 and self.repetition_penalty > 0
        if not (fits and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise UserError(
                "temperature, top_k and max_tokens must be >= 0, top_p in (0, 1], min_p in [0, 1], "
                "repetition_penalty > 0"
            )
        if "" in self.stop:
            raise UserError("stop: an empty text would end everything that is generated")

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether nothing is drawn, and whether some tokens are excluded."""
        return self.temperature == 0, bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    @property
    def numbers(self) -> dict[str, float]:
        """What the choice of a token is a function of."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


def generate(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    *,
    sampling: Sampling,
    show: Callable[[int, str], None] | None = None,
) -> list[str]:
    """The text that continues each prompt, a text or ids (an empty text: the beginning of a document).

    show: is called with the number of a prompt and the next piece of its continuation, as soon as no later token can
    change it. UserError: a prompt that the tokenizer cannot encode.
    """
    texts, shown = [""] * len(prompts), [0] * len(prompts)
    ids = [lm.ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    held = max((len(stop) for stop in sampling.stop), default=1) - 1  # the beginning of a stop may still come

    def cut(row: int, new: list[int], ended: bool) -> bool:
        """Takes what a row has so far; whether a stop was found."""
        text = lm.tokenizer.decode(new)
        found = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        texts[row] = text[: min(found)] if found else text
        ended = ended or bool(found)
        settled = len(texts[row]) if ended else len(text.rstrip("\ufffd")) - held
        if show is not None and settled > shown[row]:
            show(row, texts[row][shown[row] : settled])
            shown[row] = settled
        return bool(found)

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
    """What continues each prompt (ids, at least one), up to an id of `ends`, chunk by chunk: all the new ids so far.

    cut: asked after each chunk with a row's number, its new ids and whether it has ended; True ends it there.
    Where a row's context is full, what follows is predicted from its later half and what comes behind; greedy decoding
    gives a row what it would alone. UserError: an empty prompt.
    """
    if not all(prompts):
        raise UserError("the prompt is empty")
    context, done = incremental.limit(model.config), 0
    new: list[list[int]] = [[] for _ in prompts]
    alive = np.full(len(prompts), sampling.max_tokens > 0)
    keys_B = _keys(sampling.seed, len(prompts))
    quick, quick_params = incremental.prepared(model, params, len(prompts)) if alive.any() else (model, params)
    starts = [max(0, len(prompt) - context) if context else 0 for prompt in prompts]
    while alive.any():
        whole = [[*prompt, *found] for prompt, found in zip(prompts, new, strict=True)]
        for row, ids in enumerate(whole):
            if not alive[row]:
                starts[row] = len(ids) - 1  # nothing follows: it shall not take the others' room
            elif context and len(ids) - starts[row] > context:
                starts[row] = len(ids) - max(1, context // 2)
        read = [ids[start:] for ids, start in zip(whole, starts, strict=True)]
        window = Window.of(read, context, sampling.max_tokens - done)
        seen_BV = _seen(whole, model.config.vocab_size) if sampling.repetition_penalty != 1 else None
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
                found = chunk[row]
                end = next((i for i, token in enumerate(found) if token in ends), None)
                new[row] += found[:end]
                ended = end is not None or done >= sampling.max_tokens
                alive[row] = not (cut(int(row), new[row], ended) or ended)
            yield new


def _seen(whole: Sequence[Sequence[int]], vocab_size: int) -> Array:
    seen_BV = np.zeros((len(whole), vocab_size), bool)
    for seen_V, ids in zip(seen_BV, whole, strict=True):
        seen_V[list(ids)] = True
    return jnp.asarray(seen_BV)


@dataclass(frozen=True)
class Window:
    """Prompts flush right in one array of a few sizes, so that another length seldom compiles again.

    first_B: where each begins. room: how many tokens can follow.
    """

    ids_BT: np.ndarray
    first_B: np.ndarray
    room: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], context: int | None, wanted: int) -> "Window":
        longest = max(map(len, prompts))
        room = wanted if context is None else min(wanted, context - longest + 1)
        T = max(16, power_of_two(longest))
        T = T if context is None or context >= T else longest
        first_B = np.array([T - len(ids) for ids in prompts], np.int32)
        ids_BT = np.stack([np.pad(np.asarray(ids, np.int32), (T - len(ids), 0)) for ids in prompts])
        return cls(ids_BT, first_B, room)

    def size(self, new: int) -> int:
        """The places of a state that holds so many new tokens.

        Of several rows few at first, since each token costs a look at all places; one row has all it may need at once:
        it costs less to look at than another size to compile.
        """
        rows, T = self.ids_BT.shape
        whole = T + max(CHUNK, power_of_two(self.room))
        return min(power_of_two(T + new), whole) if rows > 1 else whole

    def read(self, model: Any, params: Any) -> tuple[Array, Any]:
        """The logits behind the prompts, and the model's state there."""
        return _read(model, params, self.ids_BT, self.first_B, self.size(CHUNK))


def power_of_two(count: int) -> int:
    """The smallest that is not less: a few sizes of arrays serve all."""
    return 1 << max(0, count - 1).bit_length()


# ---- On the devices ---------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Texts on their way: the logits of the next token, the model's state, which tokens there were, keys, steps."""

    logits_BV: Array
    state: Any
    seen_BV: Array | None
    keys_B: Array
    step: Array


@partial(jax.jit, static_argnums=(0, 4))
def _read(model: Any, params: Any, ids_BT: Array, first_B: Array, size: int) -> tuple[Array, Any]:
    logits_BV, state = incremental.read(model, params, ids_BT, first_B=first_B, size=size)
    return logits_BV, incremental.prepared_state(model.config, state)


@partial(jax.jit, static_argnums=1)
def _keys(seed: Array, count: int) -> Array:
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))


@cache
def _decoder(backend: str) -> Any:
    """`_decode`, compiled. For CPU with the widest vectors: its loops wait for memory, not for a cooler clock."""
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
    """The next `count` tokens (B, CHUNK) of all rows, or fewer once every row that is alive has met an end."""

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
    """A token id (B) for each row of logits, as `Sampling` says; kind: whether greedy, whether some are excluded."""
    greedy, filtered = kind
    if seen_BV is not None:
        less_BV = jnp.where(logits_BV > 0, logits_BV / repetition_penalty, logits_BV * repetition_penalty)
        logits_BV = jnp.where(seen_BV, less_BV, logits_BV)
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
