"""Rows for BERT: masked tokens and the next sentence (Devlin et al. 2019, section 3.1).

Shapes: B rows, T positions (the context), P = predictions(context) places of a row that are predicted at most.

A row is [CLS] A [SEP] B [SEP], padded with [PAD]. A sample id gives a position on its source's ring
(`windows.begin_window`). If B follows A, both are the tokens of that position's document from there on, moved back
towards the document's start if too few follow, and divided in their middle half. Otherwise, B has the length that the
following text would have, and comes from another document: the document around a position drawn uniformly from the
source. Tokens that end documents in the stream belong to no document.

All random choices of a row depend only on (seed, sample id), not on its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmjax.config import MaskedConfig, UserError
from lmjax.data.batches import windows
from lmjax.data.batches.windows import Batch
from lmjax.data.order.order import Order

if TYPE_CHECKING:
    from lmjax.data.store.store import Tokens
    from lmjax.data.tokenizer import Tokenizer

SHORTEST = 5  # the shortest context: [CLS] a [SEP] b [SEP]
_VALIDATION = 1 << 63  # marks the validation split's numbers, which no sample id reaches


@dataclass(frozen=True, eq=False)
class Facts:
    """The properties of a tokenizer that masking needs."""

    #: Id of [CLS].
    cls: int
    #: Id of [SEP].
    sep: int
    #: Id of [MASK].
    mask: int
    #: Id of [PAD].
    pad: int
    #: Id that ends a document in the stream; it may equal `sep`.
    end_of_text: int | None
    #: Whether each id continues a word.
    continues_V: np.ndarray
    #: Ids that represent text; random tokens are drawn from them.
    plain_V: np.ndarray


def facts(tokenizer: "Tokenizer") -> Facts:
    """Return the facts of a tokenizer.

    Raises:
        UserError: The tokenizer lacks [CLS], [SEP], [MASK] or [PAD].
    """
    named = {name: getattr(tokenizer, name) for name in ("cls", "sep", "mask", "pad")}
    lacking = [f"[{name.upper()}]" for name, id in named.items() if id is None]
    if lacking:
        raise UserError(
            f"objective.family=masked needs a tokenizer with {', '.join(lacking)}: set data.tokenizer.kind=wordpiece, "
            "or load a BERT vocabulary"
        )
    plain_V = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
    if not len(plain_V):
        raise UserError("the tokenizer has special tokens only; raise data.tokenizer.vocab_size")
    return Facts(**named, end_of_text=tokenizer.end_of_text, continues_V=tokenizer.continues, plain_V=plain_V)


def predictions(context: int, rate: float = MaskedConfig.rate) -> int:
    """Return P, the number of slots for predictions in a row.

    It is at least the number of masked tokens.
    """
    return int(rate * context) + 1


def masked(
    sources: Sequence["Tokens"],
    ids: Any,
    *,
    order: Order,
    context: int,
    tokenizer_facts: Facts,
    config: MaskedConfig,
    seed: int,
) -> Batch:
    """Build the rows of these samples, in the order of `ids`.

    Special tokens, including [UNK], are never predicted. With `whole_word`, complete words are chosen while they fit
    into the number of predictions that the rate gives; if no word fits, the beginning of a word. The B of a document
    of one token always comes from another document. In a source of one document, B always follows.

    Returns:
        int32 `inputs_BT`, `kinds_BT` (1 in the second part), `real_BT` (0: padding), `places_BP`, `targets_BP` (the
        original tokens there) and `next_B` (0: B follows A, 1: it does not); float32 `weights_BP` (0: unused slot).

    Raises:
        UserError: The source has only end marks and no tokens.
    """
    ids_B = np.asarray(ids, np.int64).ravel()
    source_B, start_B = windows.begin_window(sources, ids_B, order=order, context=context)
    texts = [_Documents(tokens, tokenizer_facts.end_of_text) for tokens in sources]
    rows = _Rows(len(ids_B), context, tokenizer_facts, config)
    for row, (id, source, place) in enumerate(zip(ids_B.tolist(), source_B.tolist(), start_B.tolist(), strict=True)):
        rows.fill(row, texts[source], place, generator(seed, id))
    return rows.batch


def validation(
    tokens: "Tokens",
    *,
    context: int,
    microbatch: int,
    tokenizer_facts: Facts,
    config: MaskedConfig,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield one row for every `context` tokens of the split, in batches as in `masked`.

    All random choices depend only on the row's number and `seed`. `rows_B` float32 is 1 for a row of the split and 0
    for a row that fills the last batch. Such a row repeats the batch's first row with weights of 0.
    """
    text = _Documents(tokens, tokenizer_facts.end_of_text)
    starts = range(0, len(tokens.ids), context)
    for first in range(0, len(starts), microbatch):
        rows = _Rows(microbatch, context, tokenizer_facts, config)
        used = min(microbatch, len(starts) - first)
        for row in range(used):
            rows.fill(row, text, starts[first + row], generator(seed, first + row + _VALIDATION))
        for array in rows.batch.values():
            array[used:] = array[0]
        rows.batch["weights_BP"][used:] = 0
        yield rows.batch | {"rows_B": (np.arange(microbatch) < used).astype(np.float32)}


def generator(seed: int, number: int) -> np.random.Generator:
    """Return the random generator of one row.

    Philox (Salmon et al. 2011) is counter-based, so every key is a stream of its own.
    """
    return np.random.Generator(np.random.Philox(key=np.asarray([seed % 2**64, number], np.uint64)))


# ---- The text of a row ------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """A half-open range of positions of a stream."""

    #: First position.
    first: int
    #: Position after the last.
    end: int


class _Documents:
    """The documents of a stream, without the tokens that end them."""

    def __init__(self, tokens: "Tokens", end_of_text: int | None) -> None:
        self.ids, self.starts, self.end_of_text = np.asarray(tokens.ids), np.asarray(tokens.starts), end_of_text
        self.checked = tokens.checked
        if not len(self.starts) or self.starts[0]:  # the tokens before the first start are the end of a document
            self.starts = np.concatenate([[0], self.starts])

    def around(self, place: int) -> _Span:
        """Return the document of a position; if it is empty, the next document with tokens.

        The token that ends a document is a position of that document.

        Raises:
            UserError: No document has a token.
        """
        documents = len(self.starts)
        document = int(self.starts.searchsorted(place, side="right")) - 1
        for i in range(document, document + documents):
            first = int(self.starts[i % documents])
            end = int(self.starts[i % documents + 1]) if (i + 1) % documents else len(self.ids)
            end -= end > first and int(self.ids[end - 1]) == self.end_of_text
            if end > first:
                return _Span(first, end)
        raise UserError("the text has only end_of_text tokens; add text")

    def other(self, current: _Span, random: np.random.Generator) -> tuple[_Span, int]:
        """Draw another document and a position in it; `current` if there is no other document."""
        size = len(self.ids)
        for place in random.integers(size, size=16).tolist():
            if (span := self.around(place)) != current:
                return span, place
        # One document is nearly all of the stream: take the next document.
        following = int(self.starts.searchsorted(current.first, side="right"))
        span = self.around(int(self.starts[following % len(self.starts)]))
        return span, span.first

    def tokens(self, span: _Span, place: int, length: int) -> np.ndarray:
        """Return at most `length` tokens of a document from a position; move back if fewer follow."""
        first = max(span.first, min(place, span.end - length))
        return self.checked(self.ids[first : min(first + length, span.end)])


# ---- Rows -------------------------------------------------------------------------------------------------------


class _Rows:
    """The arrays of a batch, filled row by row."""

    def __init__(self, count: int, context: int, tokenizer_facts: Facts, config: MaskedConfig) -> None:
        if context < SHORTEST:
            raise UserError(f"model.context={context} must be at least {SHORTEST}: [CLS] and [SEP] take three tokens")
        self.room, self.facts, self.config = context - 3, tokenizer_facts, config
        self.is_plain_V = np.zeros(len(tokenizer_facts.continues_V), bool)
        self.is_plain_V[tokenizer_facts.plain_V] = True
        BT, BP = (count, context), (count, predictions(context, config.rate))
        self.batch: Batch = {
            "inputs_BT": np.full(BT, tokenizer_facts.pad, np.int32),
            "kinds_BT": np.zeros(BT, np.int32),
            "real_BT": np.zeros(BT, np.int32),
            "places_BP": np.zeros(BP, np.int32),
            "targets_BP": np.zeros(BP, np.int32),
            "weights_BP": np.zeros(BP, np.float32),
            "next_B": np.zeros(count, np.int32),
        }

    def fill(self, row: int, text: _Documents, place: int, random: np.random.Generator) -> None:
        a, b, unrelated = self._pair(text, place, random)
        inputs_T = self.batch["inputs_BT"][row]
        middle, end = len(a) + 2, len(a) + len(b) + 3
        inputs_T[0], inputs_T[middle - 1], inputs_T[end - 1] = self.facts.cls, self.facts.sep, self.facts.sep
        inputs_T[1 : middle - 1], inputs_T[middle : end - 1] = a, b
        self.batch["kinds_BT"][row, middle:end] = 1
        self.batch["real_BT"][row, :end] = 1
        self.batch["next_B"][row] = unrelated

        text_T = self.is_plain_V[inputs_T[:end]]
        text_T[[0, middle - 1, end - 1]] = False
        chosen = self._choose(inputs_T, np.flatnonzero(text_T), random)
        used = slice(len(chosen))
        self.batch["places_BP"][row, used] = chosen
        self.batch["targets_BP"][row, used] = inputs_T[chosen]
        self.batch["weights_BP"][row, used] = 1
        inputs_T[chosen] = self._hide(inputs_T[chosen], random)

    def _pair(self, text: _Documents, place: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return (A, B, whether B is from another document)."""
        length = int(random.integers(2, self.room + 1)) if random.random() < self.config.short else self.room
        document = text.around(place)
        tokens = text.tokens(document, place, length)
        n = len(tokens)
        cut = int(random.integers(max(1, n // 4), 3 * n // 4 + 1)) if n > 1 else 1
        if n == 1 or random.random() >= self.config.next_sentence:
            other_document, other_place = text.other(document, random)
            if other_document != document:
                return tokens[:cut], text.tokens(other_document, other_place, max(1, n - cut)), True
        return tokens[:cut], tokens[cut:], False

    def _choose(self, inputs_T: np.ndarray, text: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Choose the places to predict, in order."""
        if not len(text):
            return text
        count = max(1, int(self.config.rate * len(text) + 0.5))
        if not self.config.whole_word:
            return np.sort(random.permutation(text)[:count])
        # A word also begins after a gap: the pieces on both sides of a [SEP] are never one word.
        begins = ~self.facts.continues_V[inputs_T[text]] | (np.diff(text, prepend=-1) > 1)
        words = np.split(text, np.flatnonzero(begins)[1:])
        chosen: list[int] = []
        order = random.permutation(len(words)).tolist()
        for word in order:
            if len(chosen) + len(words[word]) <= count:
                chosen += words[word].tolist()
        return np.sort(np.asarray(chosen or words[order[0]][:count]))

    def _hide(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the inputs that replace the predicted tokens."""
        drawn = random.random(len(tokens))
        others = random.choice(self.facts.plain_V, len(tokens))
        masks, randoms = drawn < self.config.masked, drawn < self.config.masked + self.config.random
        return np.where(masks, self.facts.mask, np.where(randoms, others, tokens))
