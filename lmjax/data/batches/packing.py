"""Packing of sequences into rows of equal length."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows, each of one or more sequences."""

    #: Number of the sequence of each place, row after row.
    sequences: np.ndarray
    #: First place of each row, and the number of places: (rows + 1).
    first: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.first) - 1

    def take(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows, in this order."""
        counts = (self.first[1:] - self.first[:-1])[rows]
        first = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.first[rows] - first[:-1], counts) + np.arange(first[-1])
        return Rows(self.sequences[places], first)


def single(sequences: np.ndarray) -> Rows:
    """Return rows of one sequence each."""
    return Rows(sequences, np.arange(len(sequences) + 1))


def pack(lengths: np.ndarray, context: int) -> Rows:
    """Pack sequences into rows of at most `context` positions by best-fit decreasing.

    The longest sequence comes first; each goes to the row with the least room that holds it. Best-fit decreasing needs
    at most 11/9 of the least possible number of rows, plus one (Johnson et al. 1974).

    Args:
        lengths: Number of positions of each sequence, at most `context`.
        context: Number of positions of a row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows by the room that is left
    rooms: list[int] = []  # the keys of `by_room`, increasing
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = context, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(sequence)
        left = room - length
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(row)
    first = np.cumsum([0, *map(len, rows)])
    return Rows(np.asarray([sequence for row in rows for sequence in row], np.int64), first)
