import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.data.batches.windows import (
    causal,
    find_windows,
    predicted,
    unpredicted,
    validation_windows,
    window_rows,
    window_start,
)
from lmjax.data.order.order import Order
from lmjax.data.store.store import Tokens

END = 0
fast = settings(deadline=None, max_examples=60)


def corpus(lengths, *, seed=0, dtype=np.uint16, end=True):
    """Documents of random tokens 1.. of these lengths, each followed by END unless there is none."""
    rng = np.random.default_rng(seed)
    documents = [np.r_[rng.integers(1, 1000, n), [END] * end].astype(dtype) for n in lengths]
    starts = np.cumsum([0] + [len(d) for d in documents[:-1]])
    return Tokens(np.concatenate(documents), starts.astype(np.int64))


lengths_of_documents = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def slow_row(tokens, start, context, end_of_text, ring=True):
    """One packed row, token by token, from the rule in words."""
    ids, starts, size = tokens.ids.tolist(), set(tokens.starts.tolist()), len(tokens.ids)
    inputs, targets, weights, segments, positions = [], [], [], [], []
    segment, position = 0, 0
    for t in range(context):
        here, there = start + t, start + t + 1
        if not ring and there >= size:
            real = here < size
            inputs.append(ids[here] if real else 0)
            targets.append(0)
            weights.append(0.0)
            segments.append(None)  # what the last token or the padding looks at is of no consequence
            positions.append(None)
            continue
        here, there = here % size, there % size
        announces = there in starts and ids[here] == end_of_text
        unannounced = here in starts and ids[here - 1] != end_of_text
        if t == 0 or announces or unannounced:
            segment, position = segment + 1, 0
        inputs.append(ids[here])
        targets.append(ids[there])
        weights.append(0.0 if there in starts and ids[here] != end_of_text else 1.0)
        segments.append(segment)
        positions.append(position)
        position += 1
    return inputs, targets, weights, segments, positions


def check(batch, row, expected, packed):
    names = ("inputs_BT", "targets_BT", "weights_BT", "segments_BT", "positions_BT")
    assert set(batch) == set(names[: 5 if packed else 3])
    for name, values in zip(names, expected, strict=True):
        if name in batch:
            assert batch[name].dtype == (np.float32 if name == "weights_BT" else np.int32)
            if name == "weights_BT" and not packed:
                values = [1.0] * len(values)
            want = [g if v is None else v for v, g in zip(values, batch[name][row].tolist(), strict=True)]
            assert batch[name][row].tolist() == want, name


@pytest.mark.parametrize("packed", [False, True])
@fast
@given(
    st.lists(lengths_of_documents, min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([END, None]),
)
def test_rows_equal_a_slow_loop(packed, sources, context, seed, end, end_of_text):
    """Against a loop over single tokens: gather, ring, segments, positions and weights, for all sources mixed."""
    sources = [corpus([*lengths, context], seed=i, end=end) for i, lengths in enumerate(sources)]
    order = Order(
        tuple(find_windows(s, context) for s in sources),
        seed,
        weights=((0, tuple(range(1, len(sources) + 1))),),
    )
    ids, _ = order.take(0, 40)
    batch = causal(sources, ids, order=order, context=context, packed=packed, end_of_text=end_of_text)
    for row, (s, e, w) in enumerate(zip(*order.split_id(ids), strict=True)):
        start = int(w * context + order.shift(s, e, len(sources[s].ids)))
        check(batch, row, slow_row(sources[s], start, context, end_of_text), packed)


def test_an_epoch_is_one_turn_of_the_ring_and_the_next_cuts_elsewhere():
    tokens = corpus([17, 30, 9], seed=3)
    tokens.ids[:] = np.arange(len(tokens.ids))  # a token says where it stands
    order = Order((find_windows(tokens, 8),), 5)
    places, cuts = [], []
    for epoch in range(20):
        ids = order.sample_id(np.arange(order.windows[0]) + epoch * order.windows[0])
        batch = causal([tokens], ids, order=order, context=8)
        inputs = np.sort(batch["inputs_BT"].ravel())
        assert len(np.unique(inputs)) == order.windows[0] * 8  # no token twice
        np.testing.assert_array_equal(batch["targets_BT"], (batch["inputs_BT"] + 1) % len(tokens.ids))
        places.append(set(inputs.tolist()))
        cuts.append(tuple(np.sort(batch["inputs_BT"][:, 0])))
    assert len(set(cuts)) > 10
    assert set.union(*places) == set(range(len(tokens.ids)))  # what one epoch leaves out, others read


def test_an_empty_batch_and_any_shape_of_order():
    tokens = corpus([30])
    order = Order((find_windows(tokens, 8),), 0)
    batch = causal([tokens], np.zeros(0, np.int64), order=order, context=8, packed=True, end_of_text=END)
    assert batch["inputs_BT"].shape == batch["segments_BT"].shape == (0, 8)


def test_memory_mapped_tokens(tmp_path):
    tokens = corpus([40, 50], dtype=np.uint32)
    tokens.ids.tofile(tmp_path / "ids")
    mapped = Tokens(np.memmap(tmp_path / "ids", np.uint32, mode="r"), tokens.starts)
    order = Order((find_windows(tokens, 8),), 0)
    arguments = {"order": order, "context": 8, "packed": True, "end_of_text": END}
    for one, other in zip(
        causal([tokens], np.arange(20), **arguments).items(),
        causal([mapped], np.arange(20), **arguments).items(),
        strict=True,
    ):
        assert one[0] == other[0]
        assert type(other[1]) is np.ndarray
        np.testing.assert_array_equal(one[1], other[1])


# ---- Validation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@fast
@given(lengths_of_documents, st.integers(1, 9), st.integers(1, 5), st.booleans(), st.sampled_from([END, None]))
def test_validation_covers_every_token_but_the_first_once(packed, lengths, context, microbatch, end, end_of_text):
    tokens = corpus([*lengths, 2], end=end)
    size = len(tokens.ids)
    arguments = {"packed": packed, "end_of_text": end_of_text}
    batches = list(validation_windows(tokens, context=context, microbatch=microbatch, **arguments))
    assert {batch["inputs_BT"].shape for batch in batches} == {(microbatch, context)}  # one compiled program serves
    assert len(batches) == -(-(size - 1) // (context * microbatch))
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(whole["inputs_BT"].ravel()[: size - 1], tokens.ids[:-1])
    np.testing.assert_array_equal(whole["targets_BT"].ravel()[: size - 1], tokens.ids[1:])
    assert not whole["weights_BT"].ravel()[size - 1 :].any()
    counted = np.flatnonzero(whole["weights_BT"].ravel()) + 1
    left_out = unpredicted(tokens, **arguments)
    assert sorted([*counted, *left_out]) == list(range(size))
    assert whole["weights_BT"].sum() == predicted(tokens, **arguments)
    if not packed or (end and end_of_text == END):
        assert whole["weights_BT"].sum() == size - 1
    else:
        assert left_out.tolist() == tokens.starts.tolist()
    for row in range(len(whole["inputs_BT"])):
        expected = slow_row(tokens, row * context, context, end_of_text, ring=False)
        if packed:
            check(whole, row, expected, packed)
    if packed:
        assert not whole["segments_BT"].ravel()[size:].any()  # padding is a segment of its own
        assert whole["segments_BT"].ravel()[: size - 1].all()


def test_bits_per_byte_is_honest_when_packed():
    """A model that gives every byte 1/257 must measure log2(257) bits for each counted token, packed or not."""
    text = [b"one", b"two and three", b"four"]
    ids = np.concatenate([np.r_[np.frombuffer(t, np.uint8).astype(np.uint16), 256] for t in text])
    tokens = Tokens(ids, np.array([0, 4, 18]))
    total = sum(map(len, text))
    for packed, end_of_text, tokens_counted, bytes_counted in [
        (False, 256, total + 3 - 1, total - 1),  # all but the first token, a byte of text
        (True, 256, total + 3 - 1, total - 1),
        (
            True,
            None,
            total + 3 - 3,
            total - 3,
        ),  # nothing announces a document: three first bytes are not counted
    ]:
        arguments = {"packed": packed, "end_of_text": end_of_text}
        batches = validation_windows(tokens, context=5, microbatch=2, **arguments)
        bits = sum(float(batch["weights_BT"].sum()) for batch in batches) * np.log2(257)
        assert bits == pytest.approx(tokens_counted * np.log2(257), rel=1e-12)
        assert total - (ids[unpredicted(tokens, **arguments)] < 256).sum() == bytes_counted


# ---- Mistakes ---------------------------------------------------------------------------------------------------


def test_a_block_longer_than_the_corpus():
    tokens = corpus([9])
    assert find_windows(tokens, 9) == 1
    with pytest.raises(UserError, match=r"context=10 needs 11 tokens, .* has 10; .* at most 9"):
        find_windows(tokens, 10)


def test_nothing_to_validate():
    with pytest.raises(UserError, match=r"1 tokens; .*validation_fraction"):
        next(validation_windows(corpus([0]), context=4, microbatch=2))


@fast
@given(lengths_of_documents, st.integers(1, 9), st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_rows_begin_wherever_they_are_asked_to(lengths, context, starts):
    sources = [corpus([*lengths, context], seed=i) for i in range(2)]
    source = np.arange(len(starts)) % 2
    start = np.asarray([at % len(sources[i].ids) for i, at in zip(source, starts, strict=True)])
    batch = window_rows(sources, source, start, context=context, packed=True, end_of_text=END)
    for row, (i, at) in enumerate(zip(source, start.tolist(), strict=True)):
        check(batch, row, slow_row(sources[i], at, context, END), packed=True)


def test_windows_of_an_epoch_lie_side_by_side_from_its_shift_on():
    sources = [corpus([21, 9]), corpus([50])]
    order = Order(tuple(find_windows(tokens, 8) for tokens in sources), 3, weights=((0, (1, 1)),))
    for source, epoch in ((0, 0), (0, 5), (1, 2)):
        size, window = len(sources[source].ids), np.arange(order.windows[source])
        start = window_start(sources, source, epoch, window, order=order, context=8)
        np.testing.assert_array_equal(start, (int(order.shift(source, epoch, size)) + 8 * window) % size)


@pytest.mark.parametrize("packed", [False, True])
@fast
@given(lengths_of_documents, st.integers(1, 9), st.integers(1, 5))
def test_streams_of_validation_are_its_parts_in_order(packed, lengths, context, microbatch):
    """Row by row the batches hold what they hold without streams, one part behind the other."""
    arguments = {"context": context, "microbatch": microbatch, "packed": packed, "end_of_text": END}
    tokens = corpus([*lengths, 2])
    plain, streams = (list(validation_windows(tokens, streams=s, **arguments)) for s in (False, True))
    assert len(plain) == len(streams)
    for name in plain[0]:
        windows = np.concatenate([batch[name] for batch in plain])
        parts = np.stack([batch[name] for batch in streams], axis=1)  # row, batch, T
        np.testing.assert_array_equal(parts.reshape(windows.shape), windows)


@pytest.mark.parametrize("place", [0, 30, 99])
def test_an_id_outside_the_vocabulary_is_refused_while_it_is_read(place):
    tokens = corpus([9] * 10)
    ids = tokens.ids.copy()
    ids[place] = 5000
    damaged = Tokens(ids, tokens.starts, vocab_size=2000)
    order = Order((find_windows(damaged, 10),), 0)
    with pytest.raises(UserError, match="token id 5000, outside the vocabulary of 2000: the file is damaged"):
        causal([damaged], np.arange(10), order=order, context=10)
    with pytest.raises(UserError, match="token id 5000"):
        list(validation_windows(damaged, context=10, microbatch=3))
    list(validation_windows(Tokens(tokens.ids, tokens.starts, vocab_size=2000), context=10, microbatch=3))
