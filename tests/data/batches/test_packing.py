"""Packing against the properties that define it, and against TRL's order of rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.batches import packing
from lmjax.data.batches.packing import Rows

fast = settings(max_examples=60)


def rows_of(rows: Rows) -> list[list[int]]:
    return [rows.sequences[a:b].tolist() for a, b in zip(rows.first[:-1], rows.first[1:], strict=True)]


def test_the_longest_come_first_and_each_goes_where_it_fits_best() -> None:
    # `trl.data_utils.pack_dataset(..., seq_length=4, strategy="bfd")` of lengths 3, 2, 1, 4 gives 4 | 3 + 1 | 2.
    assert rows_of(packing.pack(np.asarray([3, 2, 1, 4]), 4)) == [[3], [0, 2], [1]]
    assert rows_of(packing.pack(np.asarray([5, 3, 3, 2, 2]), 8)) == [[0, 1], [2, 3, 4]]


@fast
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_every_sequence_is_in_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = rows_of(packing.pack(np.asarray(lengths), 12))
    assert sorted(sequence for row in rows for sequence in row) == [*range(len(lengths))]
    filled = [sum(lengths[sequence] for sequence in row) for row in rows]
    assert max(filled) <= 12
    least = -(-sum(lengths) // 12)
    assert len(rows) <= 11 / 9 * max(least, sum(length > 6 for length in lengths)) + 1 or len(rows) < 2 * least
    assert sum(fill <= 6 for fill in filled) <= 1  # two half-empty rows would have been one


@fast
@given(st.lists(st.integers(1, 8), min_size=1, max_size=20), st.data())
def test_rows_are_taken_in_any_order(lengths: list[int], data: st.DataObject) -> None:
    rows = packing.pack(np.asarray(lengths), 8)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    every = rows_of(rows)
    assert rows_of(rows.take(np.asarray(chosen))) == [every[row] for row in chosen]
    assert rows_of(packing.single(np.asarray(chosen))) == [[row] for row in chosen]
