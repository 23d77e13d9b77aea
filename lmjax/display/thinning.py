"""Smoothing of curves, and selection of the points that a drawing needs."""

import numpy as np

#: Largest number of points drawn of a noisy curve.
POINTS = 4000


def smooth(values: np.ndarray) -> np.ndarray:
    """Average exponentially over 2 % of the points, but at most a tenth of the points so far.

    The average therefore follows the steep start of a run closely. NaN values are ignored.
    """
    result, mean, count = np.full(len(values), np.nan), 0.0, 0
    for i, value in enumerate(values.tolist()):
        if value == value:  # not NaN
            count += 1
            mean += (value - mean) / max(1.0, min(len(values) / 50, count / 10))
            result[i] = mean
    return result


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select at most `POINTS` points for a curve (`chosen`).

    A value that is not finite becomes NaN, where the line has a gap.
    """
    indices = chosen(y)
    return x[indices], np.where(np.isfinite(y), y, np.nan)[indices]


def chosen(y: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Return the indices of at most `points` values, in order.

    They are the lowest and the highest of each block, and one that is not finite. The selection contains every spike.
    """
    if len(y) <= points:
        return np.arange(len(y))
    finite_N, indices = np.isfinite(y), list[int]()
    for block in np.array_split(np.arange(len(y)), max(points // 3, 1)):
        finite, gaps = block[finite_N[block]], block[~finite_N[block]]
        indices += [int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])] if len(finite) else []
        indices += gaps[:1].tolist()
    return np.unique(indices)
