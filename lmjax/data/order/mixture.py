"""Mixtures of sources that are exact in every window of samples."""

import bisect
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lmjax.config import DataConfig, UserError

_LONGEST_PERIOD = 10_000


class Mixture:
    """The source of each position.

    It is made of segments (start, table). A table of sources repeats until the next start.
    """

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
        """Return (source, number of its previous samples) of each position."""
        segment = np.searchsorted(self.starts, position, side="right") - 1
        turn, step = np.divmod(position - self.starts[segment], self.length[segment])
        place = self.offset[segment] + step
        source = self.source[place]
        return source, self.base[segment, source] + turn * self.share[segment, source] + self.rank[place]

    def position(self, source: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Return the position of each source's sample number `rank`; -1 if it does not exist."""
        source, rank = np.asarray(source), np.asarray(rank)
        segment = np.zeros(rank.shape, np.int64)
        for i in range(self.base.shape[1]):
            of_source = source == i
            segment[of_source] = np.searchsorted(self.base[:, i], rank[of_source], side="right") - 1
        share = self.share[segment, source]
        turn, left = np.divmod(rank - self.base[segment, source], np.maximum(share, 1))
        place = np.minimum(self.offset[segment] + self.first[segment, source] + left, len(self.step) - 1)
        return np.where(share > 0, self.starts[segment] + turn * self.length[segment] + self.step[place], -1)


def check_weights(data: DataConfig) -> None:
    """Check that every source of a mixture is trained on at some time.

    The vocabulary, the validation split and the baselines are made of all sources.

    Raises:
        UserError: A source has weight 0, and no change of the mixture raises it.
    """
    for number, source in enumerate(data.mixture):
        weights = [source.weight, *(row[number] for _, row in data.mixture_changes if number < len(row))]
        if not any(weight > 0 for weight in weights):
            raise UserError(
                f"data.mixture[{number}].weight = 0 ({', '.join(source.files) or source.source}): the source would be "
                "part of the vocabulary, of the validation split and of the baselines, but never of the training; "
                "remove it from data.mixture, or raise its weight in data.mixture_changes"
            )


def period_shares(
    weights: Sequence[tuple[int, Sequence[float]]], sources: int
) -> tuple[list[int], list[list[int]], int]:
    """Return (from positions, integer shares of a period for each, the period)."""
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
    for (_, row), integer_shares in zip(weights, shares, strict=True):
        for w, n in zip(row, integer_shares, strict=True):
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


def _amounts_due(starts: list[int], rates: list[list[int]]) -> list[list[int]]:
    """Return due[i][j]: the amount that source i is due before position starts[j]."""
    due = [[0] for _ in rates[0]]
    for (start, stop), row in zip(itertools.pairwise(starts), rates, strict=False):
        for amounts, rate in zip(due, row, strict=True):
            amounts.append(amounts[-1] + rate * (stop - start))
    return due


def spread_shares(starts: list[int], shares: list[list[int]], period: int) -> list[tuple[int, list[int]]]:
    """Assign a source to every position, always less than one sample away from the shares.

    The result is segments of repeating tables.

    Tijdeman 1980, The chairman assignment problem: of the sources that are owed at least 1/(2S-2) of a sample, read
    the one whose debt would soonest exceed 1 - 1/(2S-2). Before every position, past changes and just before coming
    ones, each of S sources has then been read as often as its shares add up to, within 1 - 1/(2S-2).
    """
    sources = range(len(shares[0]))
    slack = 2 * max(len(sources) - 1, 1)
    sample = period * slack  # all amounts are integers: 1/sample of a sample
    rates = [[n * slack for n in row] for row in shares]
    due = _amounts_due(starts, rates)

    def reach(i: int, amount: int) -> float:
        """Return the number of positions until source i is due `amount`."""
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
