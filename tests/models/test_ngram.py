import math
from collections import defaultdict

import numpy as np
import pytest

from lmjax.models.ngram import KneserNey, kneser_ney, unigram_bits_per_byte

END = 0
PAD = -1


class Textbook:
    """The recursion of Chen and Goodman 1998 word for word, on tuples and dictionaries."""

    def __init__(self, streams, *, vocab_size, order, end_of_text):
        self.order, self.vocab_size, self.end_of_text = order, vocab_size, end_of_text
        self.counts = [defaultdict(int) for _ in range(order + 1)]  # by length
        for stream in streams:
            for context, token in self.events(stream):
                self.counts[order][(*context, token)] += 1
        for n in range(order - 1, 0, -1):  # continuation counts: after how many different tokens
            for ngram in self.counts[n + 1]:
                self.counts[n][ngram[1:]] += 1
        self.discounts = [None, *map(self.discounts_of, self.counts[1:])]

    def events(self, stream):
        stream = stream.tolist()
        for t in range(1, len(stream)):
            context, done = [], False
            for back in range(1, self.order):
                done = done or t - back < 0
                context.insert(0, PAD if done else stream[t - back])
                done = done or stream[t - back] == self.end_of_text
            yield tuple(context), stream[t]

    @staticmethod
    def discounts_of(counts):
        n = [sum(c == k for c in counts.values()) for k in range(5)]
        try:
            y = n[1] / (n[1] + 2 * n[2])
            found = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        except ZeroDivisionError:
            return [0.5, 1.0, 1.5]
        return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else [0.5, 1.0, 1.5]

    def probability(self, context, token):
        n = len(context) + 1
        lower = 1 / self.vocab_size if n == 1 else self.probability(context[1:], token)
        followers = [c for ngram, c in self.counts[n].items() if ngram[:-1] == context]
        if not followers:
            return lower
        count, discounts = self.counts[n].get((*context, token), 0), self.discounts[n]
        taken = discounts[min(count, 3) - 1] if count else 0
        gamma = sum(discounts[min(c, 3) - 1] for c in followers) / sum(followers)
        return max(count - taken, 0) / sum(followers) + gamma * lower


def stream(seed, length, vocab):
    """Tokens with a strong bigram structure, so that n-grams of all lengths repeat."""
    rng = np.random.default_rng(seed)
    ids = np.cumsum(rng.integers(0, 3, length)) % vocab
    return np.where(rng.random(length) < 0.1, rng.integers(0, vocab, length), ids).astype(np.uint16)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("end_of_text", [None, END])
def test_equals_the_textbook_recursion(order, end_of_text):
    """To 1e-9 in every probability: the two add the same terms in another order. Tokens 12 to 14 are never seen."""
    settings = {"vocab_size": 15, "order": order, "end_of_text": end_of_text}
    streams, held_out = [stream(1, 250, 12), stream(2, 150, 9)], stream(3, 80, 15)
    slow, fast = Textbook(streams, **settings), KneserNey.fit(streams, **settings)
    expected = [-math.log(slow.probability(*event)) for event in slow.events(held_out)]
    np.testing.assert_allclose(fast.nats(held_out), expected, rtol=1e-9)
    total = kneser_ney(streams, held_out, **settings)
    assert total == pytest.approx(sum(expected), rel=1e-9)
    contexts, tokens = zip(*slow.events(held_out), strict=True)
    np.testing.assert_allclose(
        fast.probability(np.reshape(contexts, (len(tokens), order - 1)), tokens),
        np.exp(-np.asarray(expected)),
        rtol=1e-9,
    )


def test_both_forms_of_the_discounts_were_compared():
    """The data of the test above use the closed form at some orders and the fallback at others."""
    slow = Textbook([stream(1, 250, 12), stream(2, 150, 9)], vocab_size=15, order=5, end_of_text=None)
    fallbacks = [discounts == [0.5, 1.0, 1.5] for discounts in slow.discounts[1:]]
    assert any(fallbacks)
    assert not all(fallbacks)


@pytest.mark.parametrize("end_of_text", [None, END])
def test_probabilities_sum_to_one(end_of_text):
    """After seen, unseen and padded contexts; float64 sums of 40 terms (1e-12)."""
    model = KneserNey.fit([stream(0, 3000, 30)], vocab_size=40, end_of_text=end_of_text)
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 40, (60, 4))
    contexts[:20] = np.lib.stride_tricks.sliding_window_view(stream(0, 3000, 30), 4)[:20]
    contexts[20:30, :2] = PAD
    for context in contexts:
        probability = model.probability(np.tile(context, (40, 1)), np.arange(40))
        assert probability.sum() == pytest.approx(1, abs=1e-12)
        assert (probability > 0).all()


def test_documents_do_not_see_each_other():
    """With end_of_text, another document in front changes nothing; without it, contexts run through."""
    train = stream(5, 2000, 8)
    end = int(np.flatnonzero(train == END)[10])
    one, two = train[end - 3 : end + 5], np.r_[[7, 7, 7], train[end : end + 5]]
    apart = KneserNey.fit([train], vocab_size=20, end_of_text=END)
    np.testing.assert_array_equal(apart.nats(one)[3:], apart.nats(two)[3:])
    through = KneserNey.fit([train], vocab_size=20)
    assert (through.nats(one)[3:] != through.nats(two)[3:]).any()


def test_large_vocabulary_and_unknown_tokens():
    train = np.array([4_000_000_000, 5, 4_000_000_000, 6, 4_000_000_000, 5], np.uint32)
    held_out = np.array([5, 4_000_000_000, 77, 4_294_967_295, 4_000_000_000, 5], np.uint32)
    model = KneserNey.fit([train], vocab_size=2**32)
    assert np.isfinite(model.nats(held_out)).all()
    assert model.nats(held_out)[0] < 1 < model.nats(held_out)[2]
    assert kneser_ney(train, held_out, vocab_size=2**32) == pytest.approx(model.nats(held_out).sum())


def test_context_helps_on_structured_text():
    text = np.frombuffer(b"the cat sat on the mat. the dog sat on the log. " * 40, np.uint8)
    nats = [kneser_ney(text[:1500], text[1500:], vocab_size=256, order=n) / 419 for n in (1, 2, 3, 5)]
    assert nats == sorted(nats, reverse=True)
    assert nats[-1] < 0.2 < 2 < nats[0]


def test_token_outside_the_vocabulary_is_our_own_mistake():
    with pytest.raises(AssertionError, match="outside the vocabulary"):
        KneserNey.fit([np.array([1, 9])], vocab_size=9)


def test_unigram():
    """Worked by hand: 3 of a, 1 of b; add one: 4/260 and 2/260, an unseen byte 1/260."""
    expected = -(2 * math.log2(4 / 260) + math.log2(2 / 260) + math.log2(1 / 260)) / 4
    assert unigram_bits_per_byte(b"aaab", b"aabz") == pytest.approx(expected, rel=1e-12)
    assert unigram_bits_per_byte(b"", b"anything") == pytest.approx(8)
