"""Which sample is read at which position: a pure function of the seed, with no state to save.

A sample is one window of one source in one epoch, and its id says which: with S sources,
`id = source + S * (epoch * windows[source] + window)`. Positions count 0, 1, 2, ...: the mixture says which source
a position reads, and a keyed permutation says which window of that source's epoch. Positions may come in blocks of
one source each, for batches of samples that belong together. Exclusions only filter: every
position keeps its sample and an excluded one is passed over, so excluding a sample before it is used gives the
order that would have excluded it from the start.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from lmjax.config import UserError

Ranges = tuple[tuple[int, int], ...]

_ROUNDS = 12  # fewer leave a bias in the orders of a handful of windows
_LONGEST_PERIOD = 10_000
_PERMUTATION, _SHIFT = 1, 2  # what a key is for, so that no two uses share their numbers


@dataclass(frozen=True)
class Order:
    """The order of all samples.

    windows: how many windows each source holds an epoch.
    weights: ((from_position, (weight of each source, ...)), ...), the first from 0. Only the ratios count; 0 turns a
        source off. Shares are resolved to fractions over one period of at most 10,000 samples (see `shares`), and
        every window of positions, also across changes, holds each source's share to within 2 samples.
    exclude: half-open ranges of sample ids that are never used.
    shuffle: whether each epoch permutes its windows, or reads them as they stand.
    group: so many positions in a row, from a multiple of it on, are of one source. The mixture then speaks of such
        blocks: the positions in `weights`, and the 2 samples above, count blocks.
    Raises UserError for weights, changes or ranges that make no sense.
    """

    windows: tuple[int, ...]
    seed: int
    weights: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (1.0,)),)
    exclude: Ranges = ()
    shuffle: bool = True
    group: int = 1

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise UserError(f"every source needs at least one window of text, got {self.windows}; add data")
        assert self.group >= 1
        object.__setattr__(self, "exclude", tuple(self.exclude))
        _ = self._mixture, self._excluded  # a mistake is answered here and not in the middle of a run

    @cached_property
    def _mixture(self) -> "_Mixture":
        starts, shares, period = _shares(self.weights, len(self.windows))
        return _Mixture(_spread(starts, shares, period), len(self.windows))

    @cached_property
    def _excluded(self) -> tuple[np.ndarray, np.ndarray]:
        return _merge(self.exclude, epoch=len(self.windows) * max(self.windows))

    @property
    def shares(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The mixture as resolved: ((from_position, (share of each source, ...)), ...), each summing to 1."""
        starts, shares, period = _shares(self.weights, len(self.windows))
        return tuple((at, tuple(n / period for n in row)) for at, row in zip(starts, shares, strict=True))

    def excluding(self, ranges: Iterable[tuple[int, int]]) -> "Order":
        """The same order without these ranges of sample ids as well."""
        return dataclasses.replace(self, exclude=(*self.exclude, *ranges))

    def take(self, cursor: int, count: int) -> tuple[np.ndarray, int]:
        """The next `count` samples at or after position `cursor` that are not excluded: (int64 ids, next cursor).

        The next cursor is the position behind the last id taken: it counts samples used and passed over.
        """
        kept, chunk = [np.zeros(0, np.int64)], count
        while count > 0:
            ids = self.sample_id(np.arange(cursor, cursor + chunk))
            good = np.flatnonzero(~self.excluded(ids))[:count]
            kept.append(ids[good])
            count -= len(good)
            cursor += chunk if count else int(good[-1]) + 1
            chunk = min(2 * chunk, 1 << 20)
        return np.concatenate(kept), cursor

    def sample_id(self, position: Any) -> np.ndarray:
        """The sample at each position, excluded or not; any shape, int64."""
        block, offset = np.divmod(np.asarray(position, np.int64), self.group)
        source, rank = self._mixture.at(block)
        rank = rank * self.group + offset
        size = np.asarray(self.windows)[source]
        epoch, index = np.divmod(rank, size)
        window = permute(index, size, _key(_PERMUTATION, self.seed, source, epoch)) if self.shuffle else index
        return source + len(self.windows) * (epoch * size + window)

    def position(self, sample_id: Any) -> np.ndarray:
        """Where each sample stands: the inverse of `sample_id`; -1 for samples that the mixture never reaches."""
        source, epoch, window = self.split_id(sample_id)
        size = np.asarray(self.windows)[source]
        index = window
        if self.shuffle:
            index = permute(window, size, _key(_PERMUTATION, self.seed, source, epoch), inverse=True)
        rank, offset = np.divmod(epoch * size + index, self.group)
        block = self._mixture.position(source, rank)
        return np.where(block >= 0, block * self.group + offset, -1)

    def split_id(self, sample_id: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, epoch, window) of each sample id."""
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
        """Where on its ring of `length` tokens a source's epoch begins to be cut into windows; in [0, length)."""
        source, epoch = np.asarray(source), np.asarray(epoch)
        return (_key(_SHIFT, self.seed, source, epoch) % np.asarray(length, np.uint64)).astype(np.int64)


def to_ranges(ids: Any) -> Ranges:
    """Sample ids as the shortest list of half-open ranges that `Order.exclude` takes."""
    ids = np.unique(np.asarray(ids, np.int64))
    if not len(ids):
        return ()
    breaks = np.flatnonzero(np.diff(ids) > 1)
    starts, stops = ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


# ---- Permutation ------------------------------------------------------------------------------------------------


def permute(index: Any, size: Any, key: Any, *, inverse: bool = False) -> np.ndarray:
    """A keyed permutation of 0..size-1, element by element (shapes broadcast): int64.

    A Feistel network on pairs (left, right) of Z_a x Z_b, with a * b barely above `size`, and cycle walking:
    a result outside is permuted again until it is inside (Black and Rogaway 2002, sections 3 and 4).
    """
    index, size, key = np.broadcast_arrays(
        np.asarray(index, np.int64), np.asarray(size, np.int64), np.asarray(key, np.uint64)
    )
    shape, index, size, key = index.shape, index.ravel(), size.ravel(), key.ravel()
    a = np.ceil(np.sqrt(size)).astype(np.int64)
    b = -(-size // a)
    result, todo = index.copy(), np.arange(len(index))
    while len(todo):
        left, right = np.divmod(result[todo], b[todo])
        for step in range(_ROUNDS)[:: -1 if inverse else 1]:
            sign = -1 if inverse else 1
            if step % 2 == 0:
                left = (left + sign * _draw(right, key[todo], step, a[todo])) % a[todo]
            else:
                right = (right + sign * _draw(left, key[todo], step, b[todo])) % b[todo]
        result[todo] = left * b[todo] + right
        todo = todo[result[todo] >= size[todo]]
    return result.reshape(shape)


def _draw(value: np.ndarray, key: np.ndarray, step: int, below: np.ndarray) -> np.ndarray:
    mixed = _mix(_mix(value.astype(np.uint64) + np.uint64(step << 56)) ^ key)
    return (mixed % below.astype(np.uint64)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood 2014): one step of the sequence from state `x`."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _key(purpose: int, seed: int, source: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    key = _mix(np.asarray([purpose], np.uint64)) ^ np.uint64(seed % 2**64)
    key = _mix(_mix(key) ^ np.atleast_1d(source).astype(np.uint64))
    key = _mix(key ^ np.atleast_1d(epoch).astype(np.uint64))
    return key.reshape(np.broadcast_shapes(source.shape, epoch.shape))


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
    # An epoch of a small corpus may well be lost to skipped batches; nobody means to exclude a hundred of them, and
    # passing over more than 16 million samples in a row would look like a hang.
    everything = max(2 * epoch, min(100 * epoch, 1 << 24))
    for i in np.flatnonzero(stops - starts >= everything):
        raise UserError(
            f"data.exclude leaves nothing to train on: ids {starts[i]} to {stops[i]} are all samples of "
            f"{(stops[i] - starts[i]) // epoch} epochs in a row; an epoch has {epoch} ids, exclude fewer"
        )
    return starts, stops


# ---- Mixture ----------------------------------------------------------------------------------------------------


class _Mixture:
    """Which source each position reads, from segments (start, table) where a table repeats until the next start."""

    def __init__(self, segments: list[tuple[int, list[int]]], sources: int):
        tables = [np.asarray(table, np.int64) for _, table in segments]
        self.starts = np.asarray([start for start, _ in segments], np.int64)
        self.length = np.asarray([len(table) for table in tables], np.int64)
        self.offset = np.cumsum(self.length) - self.length
        self.share = np.stack([np.bincount(table, minlength=sources) for table in tables])
        self.first = np.cumsum(self.share, axis=1) - self.share
        self.source = np.concatenate(tables)
        # Steps of a table sorted by source: the inverse of "source and how many of it came before in the table".
        self.step = np.concatenate([np.argsort(table, kind="stable") for table in tables])
        self.rank = np.concatenate(
            [np.argsort(np.argsort(t, kind="stable")) - f[t] for t, f in zip(tables, self.first, strict=True)]
        )
        repeats = np.diff(self.starts) // self.length[:-1]
        self.base = np.cumsum(np.vstack([np.zeros_like(self.share[:1]), self.share[:-1] * repeats[:, None]]), axis=0)

    def at(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many of its samples came before) of each position."""
        segment = np.searchsorted(self.starts, position, side="right") - 1
        turn, step = np.divmod(position - self.starts[segment], self.length[segment])
        place = self.offset[segment] + step
        source = self.source[place]
        return source, self.base[segment, source] + turn * self.share[segment, source] + self.rank[place]

    def position(self, source: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """The position of each source's sample number `rank`; -1 where there is none."""
        source, rank = np.asarray(source), np.asarray(rank)
        segment = np.zeros(rank.shape, np.int64)
        for i in range(self.base.shape[1]):
            mine = source == i
            segment[mine] = np.searchsorted(self.base[:, i], rank[mine], side="right") - 1
        share = self.share[segment, source]
        turn, left = np.divmod(rank - self.base[segment, source], np.maximum(share, 1))
        place = np.minimum(self.offset[segment] + self.first[segment, source] + left, len(self.step) - 1)
        return np.where(share > 0, self.starts[segment] + turn * self.length[segment] + self.step[place], -1)


def _shares(weights: Sequence[tuple[int, Sequence[float]]], sources: int) -> tuple[list[int], list[list[int]], int]:
    """(from positions, integer shares of a period for each, the period)."""
    starts = [int(start) for start, _ in weights]
    if not starts or starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
        raise UserError(f"mixture changes must start at 0 and be strictly increasing, got {starts}")
    for _, row in weights:
        if len(row) != sources:
            raise UserError(f"the mixture has {sources} sources but {len(row)} weights: {tuple(row)}")
        if not all(math.isfinite(w) and w >= 0 for w in row) or not sum(row) > 0:
            raise UserError(f"mixture weights must be positive numbers (0 turns a source off), got {tuple(row)}")
    rows = [[Fraction(w) / sum(map(Fraction, row)) for w in row] for _, row in weights]
    simple = [[share.limit_denominator(_LONGEST_PERIOD) for share in row] for row in rows]
    period = math.lcm(*(share.denominator for row in simple for share in row))
    if period <= _LONGEST_PERIOD and all(sum(row) == 1 for row in simple):
        shares = [[int(share * period) for share in row] for row in simple]
    else:
        period = _LONGEST_PERIOD
        shares = [_largest_remainder(row, period) for row in rows]
    for (_, row), got in zip(weights, shares, strict=True):
        for w, n in zip(row, got, strict=True):
            if w > 0 and n == 0:
                raise UserError(
                    f"mixture weight {w} is less than 1 sample in {_LONGEST_PERIOD}: raise it or set it to 0"
                )
    return starts, shares, period


def _largest_remainder(row: Sequence[Fraction], total: int) -> list[int]:
    floors = [math.floor(share * total) for share in row]
    by_remainder = sorted(range(len(row)), key=lambda i: (floors[i] - row[i] * total, i))
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors


def _spread(starts: list[int], shares: list[list[int]], period: int) -> list[tuple[int, list[int]]]:
    """A source for every position, as segments of repeating tables, never a whole sample away from the shares.

    Tijdeman 1980, The chairman assignment problem: of the sources that are owed at least 1/(2S-2) of a sample, read
    the one whose debt would soonest exceed 1 - 1/(2S-2). Before every position, past changes and just before coming
    ones, each of S sources has then been read as often as its shares add up to, within 1 - 1/(2S-2).
    """
    sources = range(len(shares[0]))
    slack = 2 * max(len(sources) - 1, 1)
    sample = period * slack  # all amounts are integers: 1/sample of a sample
    rates = [[n * slack for n in row] for row in shares]
    due = [[0] for _ in sources]  # due[i][j]: what source i is due before starts[j]
    for i in sources:
        for (a, b), row in zip(itertools.pairwise(starts), rates, strict=False):
            due[i].append(due[i][-1] + row[i] * (b - a))

    def reach(i: int, amount: int) -> float:
        """How many positions it takes until source i is due `amount`."""
        j = bisect.bisect_left(due[i], amount) - 1
        return starts[j] - (due[i][j] - amount) // rates[j][i] if rates[j][i] else math.inf

    used = [0 for _ in sources]

    def read(start: int, stop: int) -> list[int]:
        release = [reach(i, used[i] * sample + period) for i in sources]
        deadline = [reach(i, (used[i] + 1) * sample - period + 1) for i in sources]
        table = []
        for count in range(start + 1, stop + 1):
            i = min((deadline[i], i) for i in sources if release[i] <= count)[1]
            used[i] += 1
            release[i] = reach(i, used[i] * sample + period)
            deadline[i] = reach(i, (used[i] + 1) * sample - period + 1)
            table.append(i)
        return table

    segments: list[tuple[int, list[int]]] = []
    for j, start in enumerate(starts):
        end = starts[j + 1] if j + 1 < len(starts) else math.inf
        calm = end - 2 * period  # before this no deadline lies past the coming change: equal states repeat
        table, seen, at = [], {}, start
        while True:
            state = tuple(due[i][j] + rates[j][i] * (at - start) - used[i] * sample for i in sources)
            if state in seen or at + period > calm:
                break
            seen[state] = at
            table += read(at, at + period)
            at += period
        if state in seen:
            first = seen[state]
            segments += [(start, table[: first - start]), (first, table[first - start :])]
            if end == math.inf:
                break
            turns = int(calm - at) // (at - first)
            for i in sources:
                used[i] += turns * table[first - start :].count(i)
            at += turns * (at - first)
        else:
            segments.append((start, table))
        segments.append((at, read(at, int(end))))
    return [(start, table) for start, table in segments if table]
