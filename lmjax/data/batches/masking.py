"""Rows for BERT: masked tokens and the next sentence (Devlin et al. 2019, section 3.1).

Shapes: B rows, T positions (the context), P = predictions(context) places of a row that are predicted at most.

A row is [CLS] A [SEP] B [SEP], padded with [PAD]. A sample id gives a place of its source's ring (`examples.begin`).
A and a B that really follows are the tokens of that place's document from there on, moved back towards the
document's start where too few follow, and cut in their middle half. Any other B is as long as that one would be and
comes from another document, the one around a place drawn uniformly from the source. Marks that end documents in the
stream are part of no document.

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
    """The properties of a tokenizer that masking needs.

    continues_V: the pieces that continue a word. plain_V: the ids that stand for text, of which random tokens are
    drawn. end_of_text: the mark of a document's end in the stream; it may be `sep`.
    """

    cls: int
    sep: int
    mask: int
    pad: int
    end_of_text: int | None
    continues_V: np.ndarray
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
    """Return P, the number of places for predictions in a row; never fewer than the masked tokens."""
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

    Returns int32 `inputs_BT`, `kinds_BT` (1 in the second part), `real_BT` (0: padding), `places_BP`, `targets_BP`
    (the tokens that stood there), `next_B` (0: B really follows, 1: it does not), and float32 `weights_BP` (0: place
    not used). Special tokens are never predicted, [UNK] neither. Whole words are chosen as long as they fit into the
    number of places that the rate gives; if none fits, the beginning of one. A document of one token always gets
    another's B; in a source of one document B always follows.

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
    """Yield a row from the start of every `context` tokens of the split, batched as in `masked`.

    Whatever is drawn is a function of the row's number and `seed`. `rows_B` float32 is 1, and 0 for the rows that
    fill the last batch, which repeat its first row with weights of 0.
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
    """Return the generator of one row (Philox, Salmon et al. 2011: counter-based, so that every key is a stream)."""
    return np.random.Generator(np.random.Philox(key=np.asarray([seed % 2**64, number], np.uint64)))


# ---- Where the text of a row comes from -------------------------------------------------------------------------


class _Span(NamedTuple):
    """Places first to end - 1 of a stream."""

    first: int
    end: int


class _Documents:
    """The documents of a stream without the marks at their ends."""

    def __init__(self, tokens: "Tokens", end_of_text: int | None) -> None:
        self.ids, self.starts, self.end_of_text = np.asarray(tokens.ids), np.asarray(tokens.starts), end_of_text
        if not len(self.starts) or self.starts[0]:  # what stands before the first start is a document's rest
            self.starts = np.concatenate([[0], self.starts])

    def around(self, place: int) -> _Span:
        """The document that a place, or the mark behind it, belongs to; if it has no tokens, the next that has some.

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
        raise UserError("the text has no tokens but marks of ends; add text")

    def other(self, mine: _Span, random: np.random.Generator) -> tuple[_Span, int]:
        """Another document and the place in it that was drawn; `mine` if there is no other."""
        size = len(self.ids)
        for place in random.integers(size, size=16).tolist():
            if (span := self.around(place)) != mine:
                return span, place
        # One document is nearly all of the stream: take the next document.
        behind = int(self.starts.searchsorted(mine.first, side="right"))
        span = self.around(int(self.starts[behind % len(self.starts)]))
        return span, span.first

    def tokens(self, span: _Span, place: int, length: int) -> np.ndarray:
        """At most `length` tokens of a document from a place on, moved back where fewer follow."""
        first = max(span.first, min(place, span.end - length))
        return self.ids[first : min(first + length, span.end)]


# ---- Rows -------------------------------------------------------------------------------------------------------


class _Rows:
    """The arrays of a batch, filled row by row."""

    def __init__(self, count: int, context: int, tokenizer_facts: Facts, config: MaskedConfig) -> None:
        if context < SHORTEST:
            raise UserError(f"model.context={context} must be at least {SHORTEST}: [CLS] and [SEP] take three tokens")
        self.room, self.facts, self.config = context - 3, tokenizer_facts, config
        self.is_plain_V = np.zeros(len(tokenizer_facts.continues_V), bool)
        self.is_plain_V[tokenizer_facts.plain_V] = True
        whole, some = (count, context), (count, predictions(context, config.rate))
        self.batch: Batch = {
            "inputs_BT": np.full(whole, tokenizer_facts.pad, np.int32),
            "kinds_BT": np.zeros(whole, np.int32),
            "real_BT": np.zeros(whole, np.int32),
            "places_BP": np.zeros(some, np.int32),
            "targets_BP": np.zeros(some, np.int32),
            "weights_BP": np.zeros(some, np.float32),
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
        """(A, B, whether B is from another document)."""
        length = int(random.integers(2, self.room + 1)) if random.random() < self.config.short else self.room
        mine = text.around(place)
        tokens = text.tokens(mine, place, length)
        n = len(tokens)
        cut = int(random.integers(max(1, n // 4), 3 * n // 4 + 1)) if n > 1 else 1
        if n == 1 or random.random() >= self.config.next_sentence:
            other, there = text.other(mine, random)
            if other != mine:
                return tokens[:cut], text.tokens(other, there, max(1, n - cut)), True
        return tokens[:cut], tokens[cut:], False

    def _choose(self, inputs_T: np.ndarray, text: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Choose the places to predict, in order."""
        if not len(text):
            return text
        count = max(1, int(self.config.rate * len(text) + 0.5))
        if not self.config.whole_word:
            return np.sort(random.permutation(text)[:count])
        # A word begins behind a gap too: the pieces on both sides of a [SEP] are never one word.
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
