"""Rows of conversations against slow loops over their tokens."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import TokenizerConfig
from lmjax.data import tokenizer
from lmjax.data.batches import chat, packing
from lmjax.data.batches.packing import Rows
from lmjax.data.store.store import Store, Tokens

BYTES = tokenizer.build_tokenizer(TokenizerConfig("bytes", reserved=8), lambda: iter(()))
FILL = BYTES.end_of_text

Conversations = list[tuple[list[int], list[int]]]


def in_memory(conversations: Conversations) -> Store:
    """A store whose sides have the same conversations, (ids, mask)."""
    streams = {}
    for column, name in enumerate(("0", "mask")):
        parts = [conversation[column] for conversation in conversations]
        starts = np.cumsum([0, *map(len, parts)])[:-1].astype("<i8")
        tokens = Tokens(np.concatenate(parts).astype(np.uint16), starts)
        streams |= {f"train-{name}": tokens, f"validation-{name}": tokens}
    return Store(Path(), BYTES, streams, "", {})


def slowly(
    conversations: Conversations, rows: list[list[int]], width: int
) -> list[list[tuple[int, int, int, int, int]]]:
    """(input, target, weight, segment, position) of every place."""
    result = []
    for row in rows:
        places = []
        for segment, number in enumerate(row, 1):
            ids, mask = conversations[number]
            pairs = list(zip(ids, ids[1:], mask[1:], strict=False))[:width]
            places += [(*pair, segment, position) for position, pair in enumerate(pairs)]
        result.append(places + [(FILL or 0, FILL or 0, 0, 0, 0)] * (width - len(places)))
    return result


ONE = st.integers(2, 9).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 250), min_size=size, max_size=size),
        st.lists(st.integers(0, 1), min_size=size, max_size=size).map(lambda mask: [0, *mask[1:]]),
    )
)


@settings(max_examples=60)
@given(st.lists(ONE, min_size=1, max_size=8), st.integers(8, 20))
def test_packed_and_padded_rows_are_those_of_a_slow_loop(conversations: Conversations, width: int) -> None:
    store = in_memory(conversations)
    fitting = chat.fitting(store, "train", context=width, too_long="drop")
    packed = packing.pack(fitting.lengths, width)
    rows = Rows(fitting.records[packed.sequences], packed.first)
    batch = chat.arrays(store, "train", rows, width=width, packed=True)
    expected = slowly(conversations, [rows.take(np.asarray([i])).sequences.tolist() for i in range(len(rows))], width)
    names = ("inputs_BT", "targets_BT", "weights_BT", "segments_BT", "positions_BT")
    for column, name in enumerate(names):
        np.testing.assert_array_equal(batch[name], np.asarray(expected)[..., column], err_msg=name)
    assert {name: array.dtype for name, array in batch.items()} == {
        name: array.dtype for name, array in chat.blank(1, 1, packed=True).items()
    }
    alone = chat.arrays(store, "train", packing.single(np.arange(len(conversations))), width=width, packed=False)
    expected = slowly(conversations, [[i] for i in range(len(conversations))], width)
    assert sorted(alone) == sorted(names[:3])
    for column, name in enumerate(names[:3]):
        np.testing.assert_array_equal(alone[name], np.asarray(expected)[..., column], err_msg=name)


def test_the_first_token_of_a_conversation_is_never_a_target() -> None:
    conversations: Conversations = [([10 + i] + [i] * 3, [0, 1, 1, 1]) for i in range(5)]
    store = in_memory(conversations)
    batch = chat.arrays(store, "train", packing.pack(np.full(5, 3), 9), width=9, packed=True)
    assert not set(batch["targets_BT"][batch["weights_BT"] > 0].tolist()) & set(range(10, 15))
    assert batch["weights_BT"].sum() == 15


@pytest.mark.parametrize(
    ("too_long", "records", "counts"),
    [("drop", [0, 3], (2, 0, 0)), ("cut", [0, 1, 3], (0, 1, 1))],
)
def test_long_conversations_are_dropped_or_cut_with_their_number(
    too_long: str, records: list[int], counts: tuple[int, int, int]
) -> None:
    def answer(prompt: int, size: int) -> tuple[list[int], list[int]]:
        return [1] * (prompt + size), [0] * prompt + [1] * size

    # Fits exactly; its answer is cut; its answer is beyond the context; is short.
    store = in_memory([answer(4, 5), answer(4, 6), answer(9, 2), answer(1, 1)])
    fitting = chat.fitting(store, "train", context=8, too_long=too_long)  # type: ignore[arg-type]
    assert fitting.records.tolist() == records
    assert (fitting.too_long, fitting.cut, fitting.no_target) == counts
    assert fitting.lengths.tolist() == [8, 8, 1][-len(records) :]


def test_the_last_answer_is_found_by_its_header() -> None:
    ids = [1, 5, 2, 7, 8, 9, 1, 5, 2, 3, 9]
    assert chat.last_answer(ids, header=[2], end=9) == ([1, 5, 2, 7, 8, 9, 1, 5, 2], [3])
    assert chat.last_answer(ids[:6], header=[5, 2], end=9) == ([1, 5, 2], [7, 8])
    assert chat.last_answer([2, 7], header=[2], end=9) == ([2], [7])  # without an end
    assert chat.last_answer([7, 8], header=[2], end=9) is None
