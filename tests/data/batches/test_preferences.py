"""Rows of pairs against a slow loop over their tokens."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import TokenizerConfig
from lmjax.data import tokenizer
from lmjax.data.batches import preferences
from lmjax.data.store.ingest_preferences import margin_ids
from lmjax.data.store.store import Store, Tokens

BYTES = tokenizer.build_tokenizer(TokenizerConfig("bytes", reserved=8), lambda: iter(()))
FILL = BYTES.end_of_text or 0

Pairs = list[tuple[list[int], list[int], list[int], float]]  # prompt, chosen, rejected, margin


def in_memory(pairs: Pairs) -> Store:
    """A store whose sides have the same pairs."""
    streams = {}
    for column, name in enumerate(("prompt", "chosen", "rejected", "margin")):
        parts = [margin_ids(pair[3]) if column == 3 else pair[column] for pair in pairs]
        starts = np.cumsum([0, *map(len, parts)])[:-1].astype("<i8")
        tokens = Tokens(np.concatenate(parts).astype(np.uint16), starts)
        streams |= {f"train-{name}": tokens, f"validation-{name}": tokens}
    return Store(Path(), BYTES, streams, "", {})


IDS = st.lists(st.integers(0, 250), min_size=1, max_size=7)
PAIRS = st.lists(st.tuples(IDS, IDS, IDS, st.floats(-3, 3, width=32)), min_size=1, max_size=6)


@settings(max_examples=60)
@given(PAIRS, st.integers(14, 20))
def test_rows_are_those_of_a_slow_loop(pairs: Pairs, width: int) -> None:
    records = np.arange(len(pairs))[::-1]
    batch = preferences.arrays(in_memory(pairs), "validation", records, width=width)
    for row, record in enumerate(records.tolist()):
        prompt, *answers, margin = pairs[record]
        for place, answer in enumerate(answers):
            padding = width - len(prompt) - len(answer)
            assert batch["tokens_B2T"][row, place].tolist() == [*prompt, *answer, *[FILL] * padding]
            assert batch["mask_B2T"][row, place].tolist() == [0] * len(prompt) + [1] * len(answer) + [0] * padding
            assert batch["last_B2"][row, place] == len(prompt) + len(answer) - 1
        assert batch["margins_B"][row] == np.float32(margin)
    assert batch["weights_B"].tolist() == [1] * len(pairs)
    blank = preferences.blank(len(pairs), width)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in blank.items()
    }


def test_a_pair_with_a_row_that_does_not_fit_is_left_out() -> None:
    pairs: Pairs = [([1, 2], [3], [4, 5], 0.0), ([1, 2], [3, 4, 5, 6], [7], 0.0), ([1], [2], [3], 0.0)]
    store = in_memory(pairs)
    fitting = preferences.fitting(store, "train", context=4)
    assert (fitting.records.tolist(), fitting.lengths.tolist(), fitting.too_long) == ([0, 2], [4, 2], 1)
    assert preferences.answer_lengths(store, "train").tolist() == [[1, 2], [4, 1], [1, 1]]
    with pytest.raises(AssertionError, match="longer than the batch"):
        preferences.arrays(store, "train", np.asarray([1]), width=5)


def test_an_id_outside_the_vocabulary_is_noticed() -> None:
    store = in_memory([([1, 2], [3], [4, 5], 0.0)])
    damaged = {name: Tokens(t.ids, t.starts, vocab_size=5 * ("rejected" in name)) for name, t in store.streams.items()}
    with pytest.raises(ValueError, match="outside the vocabulary of 5"):
        preferences.arrays(Store(Path(), BYTES, damaged, "", {}), "train", np.asarray([0]), width=8)
