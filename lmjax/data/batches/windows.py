"""Conversion of sample ids to arrays: pure functions of memory-mapped tokens.

Shapes: B rows, T positions (the context), W = T + 1 tokens that a row reads (inputs and their next tokens).

Every source is a ring of tokens. Window w of an epoch starts at w * T + shift(seed, source, epoch). Each epoch has
other window boundaries, and the few tokens that no window of one epoch contains are in a window of the next.

Packed rows restrict attention to documents. The segment of a document begins with the end_of_text before it, which
marks the beginning of a document. A model thus learns how documents begin, and every token of a document is predicted.
Without an end_of_text before it (a tokenizer has none), the segment begins with the document's first token. That token
cannot be predicted: its target has weight 0.

Bits per byte is therefore the sum of all nats / ln 2 / the bytes of all text except that of the tokens in
`unpredicted`. Without packing, or with end_of_text, this is only the first token of the split.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lmjax.config import UserError
from lmjax.data.order.order import Order

if TYPE_CHECKING:
    from lmjax.data.store.store import Tokens

Batch = dict[str, np.ndarray]


def find_windows(tokens: "Tokens", context: int) -> int:
    """Return the number of windows per epoch of a source.

    Raises:
        UserError: The corpus is shorter than a window.
    """
    size = len(tokens.ids)
    if size < context + 1:
        raise UserError(
            f"the block is longer than the corpus: model.context={context} needs {context + 1} tokens, the training "
            f"split of this source has {size}; add text or set model.context to at most {max(size - 1, 0)}"
        )
    return size // context


def causal(
    sources: Sequence["Tokens"],
    ids: Any,
    *,
    order: Order,
    context: int,
    packed: bool = False,
    end_of_text: int | None = None,
) -> Batch:
    """Build the rows of these samples for next-token prediction.

    Returns:
        `inputs_BT`, `targets_BT` int32 and `weights_BT` float32, in the order of `ids`; if packed also `segments_BT`
        (from 1 in each row) and `positions_BT` (from 0 in each segment), int32.
    """
    place = begin_window(sources, ids, order=order, context=context)
    return window_rows(sources, *place, context=context, packed=packed, end_of_text=end_of_text)


def window_rows(
    sources: Sequence["Tokens"],
    source_B: np.ndarray,
    start_B: np.ndarray,
    *,
    context: int,
    packed: bool = False,
    end_of_text: int | None = None,
) -> Batch:
    """Return the rows whose windows begin at these tokens of these sources, as in `causal`."""
    block_BW = np.empty((len(start_B), context + 1), np.int32)
    begins_BW, unknown_BW = np.zeros((2, *block_BW.shape), bool) if packed else (None, None)
    for i, tokens in enumerate(sources):
        rows_of_source = np.flatnonzero(source_B == i)
        block_BW[rows_of_source] = tokens.checked(_gather(tokens.ids, start_B[rows_of_source], context + 1))
        if packed:
            _mark(begins_BW, unknown_BW, tokens, rows_of_source, start_B, end_of_text)
    return _batch(block_BW, np.ones((len(start_B), context), np.float32), begins_BW, unknown_BW)


def begin_window(sources: Sequence["Tokens"], ids: Any, *, order: Order, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (source, first token of the window on the source's ring) of each sample.

    Both are int64 and have the shape of `ids`.
    """
    source, epoch, window = order.split_id(ids)
    return source, window_start(sources, source, epoch, window, order=order, context=context)


def window_start(
    sources: Sequence["Tokens"], source: Any, epoch: Any, window: Any, *, order: Order, context: int
) -> np.ndarray:
    """Return the first token, on its source's ring, of each window of an epoch."""
    length = np.asarray([len(tokens.ids) for tokens in sources])[source]
    return (window * context + order.shift(source, epoch, length)) % length


def validation_windows(
    tokens: "Tokens",
    *,
    context: int,
    microbatch: int,
    packed: bool = False,
    end_of_text: int | None = None,
    streams: bool = False,
) -> Iterator[Batch]:
    """Yield the complete split as batches of `microbatch` rows, as in `causal`.

    Every token except the first is the target of exactly one position. Weights are 0 after the end (segment 0 there)
    and, if packed, at the targets of `unpredicted`. All batches have the same shape.

    Args:
        tokens: The split.
        context: Tokens per row.
        microbatch: Rows per batch.
        packed: Restrict attention to documents.
        end_of_text: Id that ends a document.
        streams: Row r of consecutive batches reads the r-th part of the split in order, instead of batch by batch.

    Raises:
        UserError: The split has no token to predict.
    """
    size = len(tokens.ids)
    if size < 2:
        raise UserError(f"the validation split has {size} tokens; add text or raise data.validation_fraction")
    count = -(-(size - 1) // (context * microbatch))
    for number in range(count):
        window_B = np.arange(microbatch) * count + number if streams else np.arange(microbatch) + number * microbatch
        start_B = window_B * context
        place_BW = start_B[:, None] + np.arange(context + 1)
        real_BW = place_BW < size
        ids_BW = tokens.checked(tokens.ids[np.minimum(place_BW, size - 1)])
        block_BW = np.where(real_BW, ids_BW, 0).astype(np.int32)
        weights_BT = real_BW[:, 1:].astype(np.float32)
        begins_BW, unknown_BW = np.zeros((2, *block_BW.shape), bool) if packed else (None, None)
        if packed:
            rows = np.flatnonzero(start_B < size)
            _mark(begins_BW, unknown_BW, tokens, rows, start_B, end_of_text)
        batch = _batch(block_BW, weights_BT, begins_BW, unknown_BW)
        if packed:
            batch["segments_BT"] *= real_BW[:, :-1]
            batch["positions_BT"] *= real_BW[:, :-1]
        yield batch


def unpredicted(tokens: "Tokens", *, packed: bool = False, end_of_text: int | None = None) -> np.ndarray:
    """Return the positions that are never a target.

    They are the first position and those of the module docstring.
    """
    starts = np.unique(tokens.starts)
    starts = starts[(starts > 0) & (starts < len(tokens.ids))] if packed else starts[:0]
    alone = starts if end_of_text is None else starts[tokens.ids[starts - 1] != end_of_text]
    return np.concatenate([np.zeros(1, np.int64), alone.astype(np.int64)])


def predicted(tokens: "Tokens", *, packed: bool = False, end_of_text: int | None = None) -> int:
    """Return the number of targets of the split: the sum of its weights."""
    return len(tokens.ids) - len(unpredicted(tokens, packed=packed, end_of_text=end_of_text))


def _gather(ids: np.ndarray, start_B: np.ndarray, width: int) -> np.ndarray:
    """Return rows of `width` tokens of the ring."""
    last = len(ids) - width
    rows_BW = sliding_window_view(np.asarray(ids), width)[np.minimum(start_B, last)]
    over = np.flatnonzero(start_B > last)
    rows_BW[over] = ids[(start_B[over, None] + np.arange(width)) % len(ids)]
    return rows_BW


def _mark(
    begins_BW: Any,
    unknown_BW: Any,
    tokens: "Tokens",
    rows: np.ndarray,
    start_B: np.ndarray,
    end_of_text: int | None,
) -> None:
    """Mark the starts of segments in these rows.

    Also mark the first tokens of documents without an end_of_text before them, which cannot be predicted.
    """
    size, documents, width = len(tokens.ids), len(tokens.starts), begins_BW.shape[1]

    def before(place: np.ndarray) -> np.ndarray:
        """Count the documents that start before a position of the ring, over its end if necessary."""
        turn, place = np.divmod(place, size)
        return turn * documents + np.searchsorted(tokens.starts, place, side="left")

    start = start_B[rows]
    first, stop = before(start + 1), before(start + width)
    count = stop - first
    which = np.repeat(np.arange(len(rows)), count)
    turn, document = np.divmod(np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count), documents)
    place = tokens.starts[document]
    column = place + turn * size - start[which]  # 1 to width - 1
    announced = np.zeros(len(place), bool) if end_of_text is None else tokens.ids[place - 1] == end_of_text
    begins_BW[rows[which], column - announced] = True
    unknown_BW[rows[which], column] |= ~announced


def _batch(block_BW: np.ndarray, weights_BT: np.ndarray, begins_BW: Any, unknown_BW: Any) -> Batch:
    batch = {
        "inputs_BT": block_BW[:, :-1].copy(),
        "targets_BT": block_BW[:, 1:].copy(),
        "weights_BT": weights_BT,
    }
    if begins_BW is not None:
        begins_BT = begins_BW[:, :-1]
        begins_BT[:, 0] = True
        column_T = np.arange(begins_BT.shape[1], dtype=np.int32)
        opened_BT = np.maximum.accumulate(np.where(begins_BT, column_T, 0), axis=1)
        weights_BT[unknown_BW[:, 1:]] = 0
        batch["segments_BT"] = np.cumsum(begins_BT, axis=1, dtype=np.int32)
        batch["positions_BT"] = column_T - opened_BT
    return batch
