"""Baselines without a training run: a byte unigram and an interpolated Kneser-Ney n-gram."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 20
_FALLBACK = (0.5, 1.0, 1.5)


def unigram_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Bits per byte of `held_out` under the add-one smoothed byte frequencies of `train`."""
    train_counts, counts = (np.bincount(np.frombuffer(text, np.uint8), minlength=256) for text in (train, held_out))
    assert counts.any()
    return float(-counts @ np.log2((train_counts + 1) / (train_counts.sum() + 256)) / counts.sum())


def kneser_ney(
    train: Sequence[np.ndarray] | np.ndarray,
    held_out: np.ndarray,
    *,
    vocab_size: int,
    order: int = 5,
    end_of_text: int | None = None,
) -> float:
    """Nats of all tokens of `held_out` except the first, under `KneserNey` fitted to `train`."""
    streams = [train] if isinstance(train, np.ndarray) else train
    model = KneserNey.fit(streams, vocab_size=vocab_size, order=order, end_of_text=end_of_text)
    return float(model.nats(held_out).sum())


@dataclass(frozen=True)
class _Level:
    """All n-grams of one length n.

    The id of an n-gram is its rank in `ngrams`. An entry is (oldest token) * (number of shorter n-grams) + (id of the
    n-gram without its oldest token). Contexts are encoded in the same way.
    """

    #: Sorted keys of the n-grams.
    ngrams: np.ndarray
    #: Discounted count of each n-gram divided by the count of its context.
    shares: np.ndarray
    #: Sorted keys of the contexts.
    contexts: np.ndarray
    #: Weight of the shorter n-grams for each context.
    rests: np.ndarray


@dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3).

    The shortest order is interpolated with 1/vocabulary. Discounts are the closed forms of the counts of counts; if
    those do not exist (small data) they are 0.5, 1, 1.5.
    """

    #: Sorted token ids of the training streams.
    vocabulary: np.ndarray
    #: N-grams by length, from 1.
    levels: tuple[_Level, ...]
    #: Size of the vocabulary of the uniform distribution.
    vocab_size: int
    #: Id that precedes every document; earlier tokens are replaced by a padding symbol. None: contexts cross documents.
    end_of_text: int | None

    @staticmethod
    def fit(
        streams: Sequence[np.ndarray], *, vocab_size: int, order: int = 5, end_of_text: int | None = None
    ) -> "KneserNey":
        """Fit streams of token ids (1-D, unsigned); their first tokens serve as context only."""
        assert order >= 1
        vocabulary = np.unique(np.concatenate([np.unique(stream) for stream in streams]))
        assert vocabulary[-1] < vocab_size, "token ids outside the vocabulary"
        parts = [_History(stream, vocabulary, end_of_text) for stream in streams]

        ids = np.concatenate([part.token(0) for part in parts])
        ngrams, counts = (
            [np.arange(len(vocabulary), dtype=np.uint64)],
            np.bincount(ids, minlength=len(vocabulary)),
        )
        for n in range(1, order):
            older = np.concatenate([part.token(n) for part in parts])
            keys, ids, counts = np.unique(_key(older, ids, len(ngrams[-1])), return_inverse=True, return_counts=True)
            ngrams.append(keys)
        del ids

        all_counts = [counts]  # longest n-grams: occurrences; shorter n-grams: number of distinct preceding tokens
        for shorter, longer in zip(ngrams[-2::-1], ngrams[:0:-1], strict=True):
            suffix = (longer % np.uint64(len(shorter))).astype(np.int64)
            all_counts.insert(0, np.bincount(suffix, minlength=len(shorter)))

        levels, context, contexts = [], np.zeros(len(vocabulary), np.int64), np.zeros(1, np.uint64)
        for n, (keys, counts) in enumerate(zip(ngrams, all_counts, strict=True)):
            if n:
                older, suffix = np.divmod(keys, np.uint64(len(ngrams[n - 1])))
                keys_of_context = _key(older, context[suffix.astype(np.int64)], len(contexts))
                contexts, context = np.unique(keys_of_context, return_inverse=True)
            discount = _discounts(counts)[np.minimum(counts, 3)]
            total = np.bincount(context, counts)
            levels.append(
                _Level(
                    keys,
                    (counts - discount) / total[context],
                    contexts,
                    np.bincount(context, discount) / total,
                )
            )
        return KneserNey(vocabulary, tuple(levels), vocab_size, end_of_text)

    def nats(self, stream: np.ndarray) -> np.ndarray:
        """-ln probability of every token of the stream except the first, float64."""
        history = _History(stream, self.vocabulary, self.end_of_text)
        result = np.empty(len(stream) - 1)
        for at in range(0, len(result), _CHUNK):
            part = slice(at, at + _CHUNK)
            result[part] = -np.log(self._probability([history.token(n, part) for n in range(len(self.levels))]))
        return result

    def probability(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """P(token | context) of each row.

        Args:
            contexts: (N, order - 1), oldest first; -1 for padding.
            tokens: (N,).
        """
        columns = [_rank(np.asarray(tokens), self.vocabulary)]
        for column in np.asarray(contexts).T[::-1]:
            columns.append(np.where(column == -1, len(self.vocabulary), _rank(column, self.vocabulary)))
        return self._probability(columns)

    def _probability(self, columns: list[np.ndarray]) -> np.ndarray:
        """P(token | context); columns: ranks of the tokens, their predecessors, ...; -1: unknown."""
        probability, ids, contexts = np.full(len(columns[0]), 1 / self.vocab_size), columns[0], columns[0] * 0
        for n, level in enumerate(self.levels):
            if n:
                shorter = self.levels[n - 1]
                ids = _find(level.ngrams, columns[n], ids, len(shorter.ngrams))
                contexts = _find(level.contexts, columns[n], contexts, len(shorter.contexts))
            share = np.where(ids >= 0, level.shares[ids], 0)
            probability = share + np.where(contexts >= 0, level.rests[contexts], 1) * probability
        return probability


class _History:
    """A stream as ranks in the vocabulary, with the token n positions before each token."""

    def __init__(self, stream: np.ndarray, vocabulary: np.ndarray, end_of_text: int | None):
        self.ranks = _rank(np.asarray(stream), vocabulary)
        self.padding = len(vocabulary)
        place = np.arange(len(stream) - 1)
        ends = np.zeros(len(place), bool) if end_of_text is None else np.asarray(stream[:-1]) == end_of_text
        self.earliest = np.maximum.accumulate(np.where(ends, place, 0))  # first position of each context

    def token(self, n: int, part: slice = slice(None)) -> np.ndarray:
        place = np.arange(1, len(self.ranks))[part]
        if n == 0:
            return self.ranks[place]
        return np.where(place - n >= self.earliest[part], self.ranks[place - n], self.padding)


def _rank(tokens: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """The rank of each token in the sorted vocabulary; -1: absent."""
    place = np.minimum(np.searchsorted(vocabulary, tokens), len(vocabulary) - 1)
    return np.where(vocabulary[place] == tokens, place, -1)


def _key(older: np.ndarray, shorter: np.ndarray, size: int) -> np.ndarray:
    return older.astype(np.uint64) * np.uint64(size) + shorter.astype(np.uint64)


def _find(keys: np.ndarray, older: np.ndarray, shorter: np.ndarray, size: int) -> np.ndarray:
    """The id of each (older token, shorter n-gram or context); -1: absent."""
    key = _key(np.maximum(older, 0), np.maximum(shorter, 0), size)
    ascending, place = np.argsort(key), np.empty(len(key), np.int64)  # sorted queries use the CPU cache better
    place[ascending] = np.minimum(np.searchsorted(keys, key[ascending]), len(keys) - 1)
    return np.where((older >= 0) & (shorter >= 0) & (keys[place] == key), place, -1)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """The discounts of counts of 0, 1, 2, and 3 or more (Chen and Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    discounts = _FALLBACK
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= discount <= k for k, discount in enumerate(estimated, 1)):
            discounts = estimated
    return np.array([0.0, *discounts])
