"""The order of samples: a pure function of the seed, with no state to save.

A sample is one window of one source in one epoch. With S sources, its id is
`id = source + S * (epoch * windows[source] + window)`. Positions count 0, 1, 2, ... The mixture selects the source of a
position, and a keyed permutation selects the window of that source's epoch. Positions may form blocks of one source,
for batches of samples that belong together. Exclusions only filter: every position retains its sample and an excluded
sample is skipped. Excluding a sample before its use thus gives the same order as excluding it from the start.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.order.mixture import Mixture, period_shares, spread_shares
from lmjax.data.order.permutation import permutation_key, permute

Ranges = tuple[tuple[int, int], ...]

_PERMUTATION, _SHIFT = 1, 2  # purposes of a key; no two purposes share random numbers


@dataclass(frozen=True)
class Order:
    """The order of all samples.

    Raises:
        UserError: The weights, changes or ranges are invalid.
    """

    #: Number of windows of each source per epoch.
    windows: tuple[int, ...]
    #: Seed of the permutations.
    seed: int
    #: ((from_position, (weight of each source, ...)), ...), the first from 0. Only the ratios count; 0 turns a source
    #: off. Shares are resolved to fractions over one period of at most 10,000 samples (see `shares`). Every window of
    #: positions, also across changes, has each source's share to within 2 samples.
    weights: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (1.0,)),)
    #: Half-open ranges of sample ids that are never used.
    exclude: Ranges = ()
    #: Permute the windows of each epoch; otherwise read them in order.
    shuffle: bool = True
    #: Number of consecutive positions, from a multiple of it, that have the same source. The positions in `weights`,
    #: and the 2 samples above, then count such blocks.
    group: int = 1

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise UserError(f"every source needs at least one window of text, got {self.windows}; add data")
        assert self.group >= 1
        object.__setattr__(self, "exclude", tuple(self.exclude))
        _ = self._mixture, self._excluded  # report an error here, not during a run

    @cached_property
    def _mixture(self) -> Mixture:
        starts, shares, period = period_shares(self.weights, len(self.windows))
        return Mixture(spread_shares(starts, shares, period), len(self.windows))

    @cached_property
    def _excluded(self) -> tuple[np.ndarray, np.ndarray]:
        return _merge(self.exclude, epoch=len(self.windows) * max(self.windows))

    @property
    def shares(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The resolved mixture: ((from_position, (share of each source, ...)), ...).

        The shares from a position sum to 1.
        """
        starts, shares, period = period_shares(self.weights, len(self.windows))
        return tuple((at, tuple(n / period for n in row)) for at, row in zip(starts, shares, strict=True))

    def excluding(self, ranges: Iterable[tuple[int, int]]) -> "Order":
        """Return the same order that also excludes these ranges of sample ids."""
        return dataclasses.replace(self, exclude=(*self.exclude, *ranges))

    def take(self, cursor: int, count: int) -> tuple[np.ndarray, int]:
        """Return the next `count` samples from `cursor` that are not excluded.

        Returns:
            (int64 ids, next cursor). The next cursor is the position after the last id, so it counts used and skipped
            samples.
        """
        batches, chunk = [np.zeros(0, np.int64)], count
        while count > 0:
            ids = self.sample_id(np.arange(cursor, cursor + chunk))
            allowed = np.flatnonzero(~self.excluded(ids))[:count]
            batches.append(ids[allowed])
            count -= len(allowed)
            cursor += chunk if count else int(allowed[-1]) + 1
            chunk = min(2 * chunk, 1 << 20)
        return np.concatenate(batches), cursor

    def sample_id(self, position: Any) -> np.ndarray:
        """Return the sample at each position, excluded or not; any shape, int64."""
        block, offset = np.divmod(np.asarray(position, np.int64), self.group)
        source, rank = self._mixture.at(block)
        rank = rank * self.group + offset
        size = np.asarray(self.windows)[source]
        epoch, index = np.divmod(rank, size)
        window = (
            permute(index, size, permutation_key(_PERMUTATION, self.seed, source, epoch)) if self.shuffle else index
        )
        return source + len(self.windows) * (epoch * size + window)

    def position(self, sample_id: Any) -> np.ndarray:
        """Return the position of each sample (the inverse of `sample_id`); -1 if never reached."""
        source, epoch, window = self.split_id(sample_id)
        size = np.asarray(self.windows)[source]
        index = window
        if self.shuffle:
            index = permute(window, size, permutation_key(_PERMUTATION, self.seed, source, epoch), inverse=True)
        rank, offset = np.divmod(epoch * size + index, self.group)
        block = self._mixture.position(source, rank)
        return np.where(block >= 0, block * self.group + offset, -1)

    def split_id(self, sample_id: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (source, epoch, window) of each sample id."""
        rank, source = np.divmod(np.asarray(sample_id, np.int64), len(self.windows))
        return source, *np.divmod(rank, np.asarray(self.windows)[source])

    def excluded(self, sample_id: Any) -> np.ndarray:
        """Whether each sample is excluded."""
        starts, stops = self._excluded
        sample_id = np.asarray(sample_id, np.int64)
        if not len(starts):
            return np.zeros(sample_id.shape, bool)
        below = np.searchsorted(starts, sample_id, side="right") - 1
        return (below >= 0) & (sample_id < stops[np.maximum(below, 0)])

    def shift(self, source: Any, epoch: Any, length: Any) -> np.ndarray:
        """Return the offset in [0, length) of an epoch's first window on the ring of its source."""
        source, epoch = np.asarray(source), np.asarray(epoch)
        return (permutation_key(_SHIFT, self.seed, source, epoch) % np.asarray(length, np.uint64)).astype(np.int64)


def to_ranges(ids: Any) -> Ranges:
    """Convert sample ids to the shortest list of half-open ranges for `Order.exclude`."""
    ids = np.unique(np.asarray(ids, np.int64))
    if not len(ids):
        return ()
    breaks = np.flatnonzero(np.diff(ids) > 1)
    starts, stops = ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


# ---- Exclusions -------------------------------------------------------------------------------------------------


def _merge(ranges: Ranges, *, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint sorted (starts, stops). `epoch`: ids that an epoch of the largest source spans."""
    for item in ranges:
        if (
            len(item) != 2
            or not all(isinstance(n, int | np.integer) for n in item)
            or not 0 <= item[0] < item[1] < 2**63
        ):
            raise UserError(f"data.exclude: {item!r} is not a range (first id, last id + 1) of sample ids")
    pairs = np.asarray(sorted(ranges), np.int64).reshape(-1, 2)
    starts, stops = pairs[:, 0], np.maximum.accumulate(pairs[:, 1])
    first = np.r_[True, starts[1:] > stops[:-1]][: len(starts)]
    starts, stops = starts[first], stops[np.r_[first[1:], True][: len(stops)]]
    # Skipped batches may exclude a complete epoch of a small corpus. A hundred consecutive epochs are a mistake, and
    # skipping more than 16 million consecutive samples would look like a hang.
    everything = max(2 * epoch, min(100 * epoch, 1 << 24))
    for i in np.flatnonzero(stops - starts >= everything):
        raise UserError(
            f"data.exclude leaves nothing to train on: ids {starts[i]} to {stops[i]} are all samples of "
            f"{(stops[i] - starts[i]) // epoch} epochs in a row; an epoch has {epoch} ids, exclude fewer"
        )
    return starts, stops
