"""Buckets of records of similar length, which share a batch, and the order of the batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import ChatConfig, PreferenceConfig, RecordsConfig, UserError
from lmjax.data.order.order import Order
from lmjax.data.sources.tables import Side
from lmjax.data.store.store import Store, Tokens
from lmjax.data.tokenizer import Tokenizer

MULTIPLE = 8  # widths are multiples of this, which suits the tiles of the devices
CELLS = 8  # for each class: places where the sorted records can be cut


@dataclass(frozen=True, eq=False)
class Buckets:
    """Classes of length, from the shortest to the longest."""

    #: (S, T) of each class for pairs, (T,) for labelled texts; at most the context, increasing in each element.
    widths: tuple[tuple[int, ...], ...]
    #: Training records of each class.
    members: tuple[np.ndarray, ...]
    #: Validation records of each class. If a record is longer than all training records, there is one more class than
    #: in `members`.
    validation: tuple[np.ndarray, ...]
    #: The model's context.
    context: int
    #: Share of all positions of an epoch that hold no token.
    padding: float
    #: Number of training records that the context truncates.
    cut: int
    #: Number of validation records that the context truncates.
    validation_cut: int = 0

    def find(self, ids: Any, order: Order) -> tuple[np.ndarray, np.ndarray]:
        """Return (class, number of the training record) of each sample id."""
        bucket, _, index = order.split_id(ids)
        record = np.zeros_like(bucket)
        for i, members in enumerate(self.members):
            record[bucket == i] = members[index[bucket == i]]
        return bucket, record


def make_buckets(store: Store, *, classes: int, context: int) -> Buckets:
    """Divide the records by length into at most `classes` classes with the least padding.

    A class holds at least one of 8 * `classes` equal parts of the records. Each class thus fills batches.

    Raises:
        UserError: `classes` is below 1, or the context is too short for a token.
    """
    if classes < 1:
        raise UserError(f"data.buckets={classes}: there is at least one class of length")
    if context < 2 + 2 * len(text_streams(store, "train")):
        raise UserError(f"model.context={context} has no room for a text and its ends: raise it")
    return divide(_lengths(store, "train"), _lengths(store, "validation"), classes=classes, context=context)


def divide(full_lengths: np.ndarray, held_out_full: np.ndarray, *, classes: int, context: int) -> Buckets:
    """Divide rows by their lengths, (rows, 1) or (rows, 2), into classes as in `make_buckets`.

    Args:
        full_lengths: Lengths of the training rows, before the context truncates them.
        held_out_full: Lengths of the validation rows.
        classes: Maximum number of classes.
        context: Maximum length.
    """
    lengths, held_out_lengths = np.minimum(full_lengths, context), np.minimum(held_out_full, context)
    cells = np.array_split(np.argsort(lengths.max(1), kind="stable"), min(CELLS * classes, len(lengths)))
    longest = np.maximum.accumulate([lengths[cell].max(0) for cell in cells])
    width = np.minimum(-(-longest // MULTIPLE) * MULTIPLE, context)
    ranges = _cut(np.asarray([len(cell) for cell in cells]), width.sum(1), classes)
    members = [np.sort(np.concatenate(cells[start:stop])) for start, stop in ranges]
    widths = [tuple(width[stop - 1].tolist()) for _, stop in ranges]
    places = sum(len(part) * sum(width) for part, width in zip(members, widths, strict=True))
    if (held_out_lengths > widths[-1]).any():
        above = np.minimum(-(-held_out_lengths.max(0) // MULTIPLE) * MULTIPLE, context)
        widths.append(tuple(np.maximum(above, widths[-1]).tolist()))
    fits = (held_out_lengths[:, None] <= np.asarray(widths)).all(2).argmax(1)
    return Buckets(
        widths=tuple(widths),
        members=tuple(members),
        validation=tuple(np.flatnonzero(fits == i) for i in range(len(widths))),
        context=context,
        padding=float(1 - lengths.sum() / places),
        cut=int((full_lengths > context).any(1).sum()),
        validation_cut=int((held_out_full > context).any(1).sum()),
    )


def bucket_order(
    plan: Buckets, config: RecordsConfig | ChatConfig | PreferenceConfig, *, seed: int, group: int
) -> Order:
    """Return the order of all records, in blocks of `group` samples of one class.

    A class occurs in proportion to its number of records. With N records, any N consecutive samples contain each
    record about once. `Buckets.find` maps a sample to its record.
    """
    sizes = tuple(map(len, plan.members))
    return Order(sizes, seed, weights=((0, sizes),), exclude=config.exclude, shuffle=config.shuffle, group=group)


def _cut(counts: np.ndarray, prices: np.ndarray, classes: int) -> list[tuple[int, int]]:
    """Divide a row of cells into at most `classes` ranges (start, stop) of least total cost.

    Every record of a range costs the price of its last cell. Dynamic programming over the number of ranges.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.where(np.tri(len(counts), dtype=bool).T, (before[1:] - before[:-1, None]) * prices, np.inf)
    total, begins = np.full(len(counts), np.inf), []  # cost of the cells up to each; first cell of the last range
    for _ in range(classes):
        candidates = np.concatenate([[0], total[:-1]])[:, None] + cost
        total = candidates.min(0)
        begins.append(candidates.argmin(0))
    ranges, stop = [], len(counts)
    while stop:
        start = int(begins.pop()[stop - 1])
        ranges.append((start, stop))
        stop = start
    return ranges[::-1]


def _lengths(store: Store, side: Side) -> np.ndarray:
    """Return the positions that each record needs: (records, 2) for pairs, else (records, 1).

    They include all tokens that are added to the record.
    """
    sizes = (
        np.stack([np.diff(tokens.starts, append=len(tokens.ids)) for tokens in text_streams(store, side)], axis=1) + 1
    )
    return sizes.sum(1, keepdims=True) + len(lead_ids(store.tokenizer)) if has_labels(store) else sizes


def text_streams(store: Store, side: Side) -> list[Tokens]:
    """Return the streams of the texts on a side of the split."""
    return [store.streams[name] for name in (f"{side}-0", f"{side}-1") if name in store.streams]


def has_labels(store: Store) -> bool:
    """Whether the records of a store have labels."""
    return "train-label" in store.streams


def lead_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens before a labelled text."""
    return [] if tokenizer.cls is None else [tokenizer.cls]
