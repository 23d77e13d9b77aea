"""Records of similar length share a batch: the classes of lengths (buckets), and the order of batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import RecordsConfig, UserError
from lmjax.data.order.order import Order
from lmjax.data.sources.rows import Side
from lmjax.data.store.store import Store, Tokens
from lmjax.data.tokenizer import Tokenizer

MULTIPLE = 8  # widths are multiples of this, which suits the tiles of the devices
CELLS = 8  # for each class: places where the sorted records can be cut


@dataclass(frozen=True, eq=False)
class Buckets:
    """Classes of length, from the shortest to the longest.

    widths: (S, T) of each class for pairs, (T,) for labelled texts; at most the context, rising in every place.
    members: the training records of each class. validation: those of the validation split; where some are longer than
        all training records, there is one more class than in `members`.
    padding: the share of all places of an epoch that holds no token. cut: how many training records the context cuts.
    """

    widths: tuple[tuple[int, ...], ...]
    members: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    context: int
    padding: float
    cut: int

    def find(self, ids: Any, order: Order) -> tuple[np.ndarray, np.ndarray]:
        """Return (class, number of the training record) of each sample id."""
        bucket, _, index = order.split_id(ids)
        record = np.zeros_like(bucket)
        for i, members in enumerate(self.members):
            record[bucket == i] = members[index[bucket == i]]
        return bucket, record


def make_buckets(store: Store, *, classes: int, context: int) -> Buckets:
    """Sort the records by length and cut them into at most `classes` classes with the least padding.

    A class holds at least one of 8 * `classes` equal parts of the records, so that none is too rare to fill a batch.

    Raises:
        UserError: `classes` is below 1, or the context is too short for a token.
    """
    if classes < 1:
        raise UserError(f"data.buckets={classes}: there is at least one class of length")
    if context < 2 + 2 * len(text_streams(store, "train")):
        raise UserError(f"model.context={context} has no room for a text and its ends: raise it")
    whole, held = _lengths(store, "train"), _lengths(store, "validation")
    lengths, held = np.minimum(whole, context), np.minimum(held, context)
    cells = np.array_split(np.argsort(lengths.max(1), kind="stable"), min(CELLS * classes, len(lengths)))
    longest = np.maximum.accumulate([lengths[cell].max(0) for cell in cells])
    width = np.minimum(-(-longest // MULTIPLE) * MULTIPLE, context)
    stretches = _cut(np.asarray([len(cell) for cell in cells]), width.sum(1), classes)
    members = [np.sort(np.concatenate(cells[start:stop])) for start, stop in stretches]
    widths = [tuple(width[stop - 1].tolist()) for _, stop in stretches]
    places = sum(len(part) * sum(width) for part, width in zip(members, widths, strict=True))
    if (held > widths[-1]).any():
        above = np.minimum(-(-held.max(0) // MULTIPLE) * MULTIPLE, context)
        widths.append(tuple(np.maximum(above, widths[-1]).tolist()))
    fits = (held[:, None] <= np.asarray(widths)).all(2).argmax(1)
    return Buckets(
        widths=tuple(widths),
        members=tuple(members),
        validation=tuple(np.flatnonzero(fits == i) for i in range(len(widths))),
        context=context,
        padding=float(1 - lengths.sum() / places),
        cut=int((whole > context).any(1).sum()),
    )


def bucket_order(plan: Buckets, config: RecordsConfig, *, seed: int, group: int) -> Order:
    """The order of all records: blocks of `group` samples of one class, each class as often as it has records.

    Every span of as many samples as there are records has each of them about once; `Buckets.find` says which record a
    sample is.
    """
    sizes = tuple(map(len, plan.members))
    return Order(sizes, seed, weights=((0, sizes),), exclude=config.exclude, shuffle=config.shuffle, group=group)


def _cut(counts: np.ndarray, prices: np.ndarray, classes: int) -> list[tuple[int, int]]:
    """Cuts cells in a row into at most `classes` stretches (start, stop) that cost the least together.

    All records of a stretch pay the price of its last cell. Dynamic programming over the number of stretches.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.where(np.tri(len(counts), dtype=bool).T, (before[1:] - before[:-1, None]) * prices, np.inf)
    total, begins = np.full(len(counts), np.inf), []  # of the cells up to each one; where its stretch begins
    for _ in range(classes):
        ways = np.concatenate([[0], total[:-1]])[:, None] + cost
        total = ways.min(0)
        begins.append(ways.argmin(0))
    stretches, stop = [], len(counts)
    while stop:
        start = int(begins.pop()[stop - 1])
        stretches.append((start, stop))
        stop = start
    return stretches[::-1]


def _lengths(store: Store, side: Side) -> np.ndarray:
    """The places that each record takes, with all that is added to it: (records, 2) for pairs, else (records, 1)."""
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
