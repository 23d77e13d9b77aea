"""Rows for BERT: pure, of one document or two, with the shares of the paper, and never a special token hidden."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmjax.config import MaskedConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.batches import masking
from lmjax.data.batches.masking import Facts
from lmjax.data.order.order import Order
from lmjax.data.store.store import Tokens

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
V = 1000
FACTS = Facts(
    cls=CLS, sep=SEP, mask=MASK, pad=PAD, end_of_text=SEP, continues_V=np.arange(V) % 3 == 2, plain_V=np.arange(5, V)
)
BERT = MaskedConfig()


def corpus(lengths, *, seed=0, marked=True):
    """Documents of random tokens of these lengths; each token tells its document: document + 5 + 30 * anything."""
    rng = np.random.default_rng(seed)
    documents = [5 + d % 30 + 30 * rng.integers(0, 33, n) for d, n in enumerate(lengths)]
    documents = [np.r_[d, [SEP] * marked].astype(np.uint16) for d in documents]
    starts = np.cumsum([0] + [len(d) for d in documents[:-1]])
    return Tokens(np.concatenate(documents), starts.astype(np.int64))


def document_of(tokens):
    """Which documents (modulo 30) these tokens are from."""
    return set(((np.asarray(tokens) - 5) % 30).tolist())


def batch_of(tokens, ids, *, context=32, config=BERT, seed=3, sources=1, facts=FACTS):
    order = Order(windows=(max(1, len(tokens.ids) // context),) * sources, seed=seed)
    return masking.masked(
        [tokens] * sources, ids, order=order, context=context, tokenizer_facts=facts, config=config, seed=seed
    )


def restored(batch):
    """The rows before masking."""
    inputs_BT = batch["inputs_BT"].copy()
    row, column = np.nonzero(batch["weights_BP"])
    inputs_BT[row, batch["places_BP"][row, column]] = batch["targets_BP"][row, column]
    return inputs_BT


def parts(batch, row):
    """(A, B) of a row before masking, after a check that it is [CLS] A [SEP] B [SEP] [PAD]..., kinds and all."""
    inputs_T, kinds_T, real_T = restored(batch)[row], batch["kinds_BT"][row], batch["real_BT"][row]
    end, ends = int(real_T.sum()), np.flatnonzero(inputs_T == SEP)
    assert real_T.tolist() == [1] * end + [0] * (len(real_T) - end)
    assert (inputs_T[end:] == PAD).all()
    assert inputs_T[0] == CLS
    assert len(ends) == 2
    assert ends[1] == end - 1
    assert np.flatnonzero(kinds_T).tolist() == list(range(ends[0] + 1, end))
    return inputs_T[1 : ends[0]], inputs_T[ends[0] + 1 : end - 1]


LONG = corpus(np.random.default_rng(1).integers(1, 200, 300))
MANY = np.arange(2000)


@pytest.fixture(scope="module")
def many():
    return batch_of(LONG, MANY)


# ---- Purity -----------------------------------------------------------------------------------------------------


def test_a_row_depends_on_its_sample_and_the_seed_alone(many):
    ids = np.array([1999, 7, 512, 7])
    some = batch_of(LONG, ids)
    for name, array in some.items():
        assert array.dtype == (np.float32 if name == "weights_BP" else np.int32)
        np.testing.assert_array_equal(array, many[name][ids], err_msg=name)
    other = batch_of(LONG, MANY, seed=4)
    assert (other["inputs_BT"] != many["inputs_BT"]).any(-1).all()


def test_each_epoch_masks_a_sample_anew():
    text = corpus([40], marked=False)
    batch = batch_of(text, np.arange(20), context=40, config=dataclasses.replace(BERT, short=0.0))
    assert len({tuple(row) for row in batch["places_BP"]}) > 15


# ---- Statistics of the paper ------------------------------------------------------------------------------------


def within(share, expected, count):
    """Within five standard deviations of a binomial distribution."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_the_shares_are_those_of_the_paper(many):
    assert within(np.mean(many["next_B"]), 0.5, len(MANY))
    used = many["weights_BP"] == 1
    text = many["real_BT"].sum(-1) - 3
    np.testing.assert_array_equal(used.sum(-1), np.maximum(1, np.floor(0.15 * text + 0.5)))
    row, _ = np.nonzero(used)
    seen, targets = many["inputs_BT"][row, many["places_BP"][used]], many["targets_BP"][used]
    count = used.sum()
    assert within(np.mean(seen == MASK), 0.8, count)
    kept = seen == targets
    assert within(np.mean(kept), 0.1 + 0.1 / (V - 5), count)
    random = seen[(seen != MASK) & ~kept]
    assert within(len(random) / count, 0.1 * (1 - 1 / (V - 5)), count)
    assert random.min() >= 5
    assert len(np.unique(random)) > 0.5 * len(random)


def test_a_random_token_may_be_any_but_a_special_one():
    config = dataclasses.replace(BERT, masked=0.0, random=1.0, rate=0.9)
    batch = batch_of(LONG, MANY, config=config)
    used = batch["weights_BP"] == 1
    seen = batch["inputs_BT"][np.nonzero(used)[0], batch["places_BP"][used]]
    counts = np.bincount(seen, minlength=V)
    assert not counts[:5].any()
    expected = len(seen) / (V - 5)
    assert (abs(counts[5:] - expected) < 6 * np.sqrt(expected)).all()  # the extreme of a thousand: six deviations


def test_the_share_that_follows_and_of_short_rows_is_the_configured():
    text = corpus([400] * 30)
    config = dataclasses.replace(BERT, next_sentence=0.8, short=0.3)
    batch = batch_of(text, MANY, config=config)
    assert within(1 - batch["next_B"].mean(), 0.8, len(MANY))
    room = batch["real_BT"].sum(-1) - 3
    assert within(np.mean(room < 29), 0.3 * 27 / 28, len(MANY))  # a length from 2 to 29
    assert room.min() == 2


# ---- What a row is made of --------------------------------------------------------------------------------------


def test_parts_are_of_one_document_or_of_two(many):
    stream = LONG.ids.astype(np.int32).tobytes()
    for row in range(500):
        a, b = parts(many, row)
        assert len(document_of(a)) == len(document_of(b)) == 1
        follows = np.r_[a, b].astype(np.int32).tobytes() in stream
        if many["next_B"][row] == 0:
            assert follows
            assert len(a) in range(max(1, (len(a) + len(b)) // 4), 3 * (len(a) + len(b)) // 4 + 1)
        assert a.astype(np.int32).tobytes() in stream
        assert b.astype(np.int32).tobytes() in stream


def test_what_does_not_follow_is_from_another_document():
    text = corpus([60] * 30)
    batch = batch_of(text, MANY[:600], config=dataclasses.replace(BERT, next_sentence=0.0))
    assert batch["next_B"].all()
    from_ = [tuple(document_of(part).pop() for part in parts(batch, row)) for row in range(600)]
    assert all(a != b for a, b in from_)
    assert len({b for _, b in from_}) == 30


def test_no_special_token_is_ever_predicted():
    """[UNK] neither, which is the one that stands in text."""
    text = corpus([50] * 30)
    text.ids[np.random.default_rng(0).random(len(text.ids)) < 0.3] = UNKNOWN
    text.ids[text.starts[1:] - 1] = SEP
    batch = batch_of(text, MANY[:500], config=dataclasses.replace(BERT, rate=0.5))
    used = batch["weights_BP"] == 1
    assert batch["targets_BP"][used].min() >= 5
    assert (batch["inputs_BT"] == UNKNOWN).any()


def test_whole_words_are_predicted_whole():
    config = dataclasses.replace(BERT, whole_word=True, rate=0.3)
    text = corpus(np.random.default_rng(1).integers(20, 200, 100))
    batch = batch_of(text, MANY[:500], config=config, context=64)
    chosen = 0
    for row in range(500):
        a, b = parts(batch, row)
        places = set(batch["places_BP"][row][batch["weights_BP"][row] == 1].tolist())
        count = max(1, int(0.3 * (len(a) + len(b)) + 0.5))
        assert 0 < len(places) <= count
        for first, part in ((1, a), (len(a) + 2, b)):
            begins = [i for i, id in enumerate(part) if i == 0 or not FACTS.continues_V[id]]
            for start, stop in zip(begins, [*begins[1:], len(part)], strict=True):
                word = set(range(first + start, first + stop))
                assert not word & places or word <= places or len(word) > count
        chosen += len(places) / count
    assert chosen > 0.97 * 500  # few places are left over


# ---- Edges ------------------------------------------------------------------------------------------------------

lengths_of_documents = st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 0)


@settings(deadline=None, max_examples=80)
@given(lengths_of_documents, st.integers(5, 9), st.booleans(), st.booleans(), st.integers(0, 1000))
@example([1], 8, True, True, 0)
@example([3, 0, 0], 5, False, True, 0)
def test_short_documents_and_contexts(lengths, context, marked, whole_word, seed):
    text = corpus(lengths, marked=marked, seed=seed)
    config = dataclasses.replace(BERT, short=0.5, whole_word=whole_word, rate=0.4)
    batch = batch_of(text, np.arange(12), context=context, config=config, seed=seed)
    assert batch["places_BP"].shape == (12, masking.predictions(context, 0.4))
    several = sum(n > 0 for n in lengths) > 1
    for row in range(12):
        a, b = parts(batch, row)
        assert len(a) + len(b) <= context - 3
        assert batch["weights_BP"][row].sum() > 0
        assert len(a) > 0
        assert len(b) > 0 or (not several and sum(lengths) == 1)
        assert batch["next_B"][row] == 0 or several
        assert (document_of(a) != document_of(b)) == bool(batch["next_B"][row]) or len(b) == 0


def test_validation_reads_the_whole_split_and_always_the_same():
    text = corpus([100, 3, 40, 1, 90])
    arguments = {"context": 32, "microbatch": 3, "tokenizer_facts": FACTS, "config": BERT}
    batches = list(masking.validation(text, **arguments))
    rows = -(-len(text.ids) // 32)
    assert [batch["rows_B"].tolist() for batch in batches] == [[1.0] * 3] * (rows // 3) + [[1.0] * (rows % 3) + [0.0]]
    for one, other in zip(batches, masking.validation(text, **arguments), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    last = batches[-1]
    assert last["real_BT"].any(-1).all()
    assert not last["weights_BP"][-1].any()
    assert {batch["inputs_BT"].shape for batch in batches} == {(3, 32)}
    assert not np.array_equal(
        batches[0]["places_BP"], next(iter(masking.validation(text, seed=1, **arguments)))["places_BP"]
    )


def test_a_split_that_begins_inside_a_document():
    text = corpus([40, 40])
    cut = Tokens(text.ids[10:], text.starts[1:] - 10)
    assert (
        sum(
            batch["rows_B"].sum()
            for batch in masking.validation(cut, context=16, microbatch=2, tokenizer_facts=FACTS, config=BERT)
        )
        == 5
    )


def test_facts_of_a_tokenizer():
    texts = ["the bees hum and the trees hum"]
    made = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 60), lambda: iter(texts))
    found = masking.facts(made)
    assert (found.pad, found.cls, found.sep, found.mask, found.end_of_text) == (PAD, CLS, SEP, MASK, SEP)
    assert found.plain_V.tolist() == list(range(5, made.vocab_size))
    with pytest.raises(UserError, match=r"needs a tokenizer with \[CLS\], \[SEP\], \[MASK\], \[PAD\]"):
        masking.facts(tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(texts)))


def test_a_row_without_room_for_its_marks_is_refused():
    with pytest.raises(UserError, match=r"model.context=4 must be at least 5"):
        batch_of(LONG, [0], context=4)


def test_an_id_outside_the_vocabulary_is_refused_while_it_is_read():
    tokens = corpus([40] * 5)
    damaged = dataclasses.replace(tokens, ids=np.full_like(tokens.ids, 5000), vocab_size=2000)
    with pytest.raises(UserError, match="token id 5000, outside the vocabulary of 2000"):
        batch_of(damaged, np.arange(3))
