"""Batches of conversations, padded or packed: pure functions of a store.

Shapes: B rows, T positions.

A store of conversations has the streams `train-0` and `validation-0`, where document i is conversation i with its
control tokens, and `train-mask` and `validation-mask`, with 1 for each target. A conversation of n tokens has n - 1
positions: each reads a token and predicts the next one, so its first token is never a target. It is never divided
between rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmjax.data.batches.packing import Rows
from lmjax.data.batches.records import spans
from lmjax.data.sources.tables import Side
from lmjax.data.store.store import Store

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Fitting:
    """The conversations of a side that are used with a context."""

    #: Their numbers in the store.
    records: np.ndarray
    #: Positions of each of them, at most the context.
    lengths: np.ndarray
    #: Number of conversations that were left out because they are too long.
    too_long: int = 0
    #: Number of conversations of which only the beginning is used.
    cut: int = 0
    #: Number of conversations that were left out because this beginning has no target.
    no_target: int = 0


def fitting(store: Store, side: Side, *, context: int, too_long: Literal["drop", "cut"]) -> Fitting:
    """Select the conversations that fit into the context, or whose beginning does.

    Args:
        store: The store.
        side: Side of the split.
        context: Maximum number of positions.
        too_long: Whether to leave out or to cut a longer conversation.
    """
    tokens, mask = store.streams[f"{side}-0"], store.streams[f"{side}-mask"]
    start, size = spans(tokens, np.arange(len(tokens.starts)))
    length = size - 1
    longer = np.flatnonzero(length > context)
    used = length >= 1
    if too_long == "drop":
        used[longer] = False
        return Fitting(np.flatnonzero(used), length[used], too_long=len(longer), no_target=int((length < 1).sum()))
    without = [i for i in longer.tolist() if not mask.ids[start[i] + 1 : start[i] + context + 1].any()]
    used[without] = False
    return Fitting(
        np.flatnonzero(used),
        np.minimum(length[used], context),
        cut=len(longer) - len(without),
        no_target=len(without) + int((length < 1).sum()),
    )


def arrays(store: Store, side: Side, rows: Rows, *, width: int, packed: bool) -> Batch:
    """Build rows of conversations; a longer conversation than `width` is cut.

    Padding follows the conversations. It has the id of the end of a text, weight 0 and, if packed, segment 0.

    Args:
        store: The store.
        side: Side of the split.
        rows: The conversations of each row.
        width: Number of positions.
        packed: Whether a row may have several conversations.

    Returns:
        `inputs_BT`, `targets_BT` int32 and `weights_BT` float32 (1 for a target); if packed also `segments_BT` (from 1
        in each row) and `positions_BT` (from 0 in each segment), int32.
    """
    tokens, mask = store.streams[f"{side}-0"], store.streams[f"{side}-mask"]
    start, size = spans(tokens, rows.sequences)
    length = np.minimum(size - 1, width)
    counts, ends = np.diff(rows.first), np.cumsum(length)
    of_row = np.repeat(np.arange(len(rows)), counts)  # row of each conversation
    before = np.concatenate([[0], ends])[:-1]  # positions of all rows before each conversation
    column = before - before[rows.first[:-1]][of_row]
    position = np.arange(length.sum()) - np.repeat(before, length)
    place = (np.repeat(of_row, length), np.repeat(column, length) + position)
    source = np.repeat(start, length) + position
    batch = blank(len(rows), width, packed=packed)
    fill = fill_id(store)
    for name, offset in (("inputs_BT", 0), ("targets_BT", 1)):
        batch[name][:] = fill
        batch[name][place] = tokens.checked(tokens.ids[source + offset])
    batch["weights_BT"][place] = mask.checked(mask.ids[source + 1])
    if packed:
        number = np.arange(len(of_row)) - rows.first[:-1][of_row] + 1
        batch["segments_BT"][place] = np.repeat(number, length)
        batch["positions_BT"][place] = position
    return batch


def blank(rows: int, width: int, *, packed: bool) -> Batch:
    """Return rows of zeros with the names, shapes and types of `arrays`."""
    names = ["inputs_BT", "targets_BT"] + ["segments_BT", "positions_BT"] * packed
    batch = {name: np.zeros((rows, width), np.int32) for name in names}
    return batch | {"weights_BT": np.zeros((rows, width), np.float32)}


def fill_id(store: Store) -> int:
    """Return the id of padding."""
    return store.tokenizer.end_of_text or 0


def conversation(store: Store, side: Side, record: int) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation and the marks of its targets."""
    tokens, mask = store.streams[f"{side}-0"], store.streams[f"{side}-mask"]
    start, size = (int(values[0]) for values in spans(tokens, np.asarray([record])))
    here = slice(start, start + size)
    return tokens.checked(tokens.ids[here]).tolist(), mask.checked(mask.ids[here]).tolist()


def last_answer(ids: Sequence[int], *, header: Sequence[int], end: int) -> tuple[list[int], list[int]] | None:
    """Return the ids before the last answer, and those of the answer without its end.

    None if the conversation has no answer.

    Args:
        ids: The conversation.
        header: The ids before an answer.
        end: The id that ends it.
    """
    ids, count = list(ids), len(header)
    for place in range(len(ids) - count, -1, -1):
        if ids[place : place + count] == list(header):
            answer = ids[place + count :]
            return ids[: place + count], answer[: answer.index(end)] if end in answer else answer
    return None
