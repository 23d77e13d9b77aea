"""Measures of a reward model on held-out pairs: pure functions of scores.

Shapes: N pairs, 2 answers (the preferred one first). The names are those of the health report of reward models.
"""

import math

import numpy as np

from lmjax.data.sources import reviews

BINS = 10  # of the confidence, from 0.5 to 1
LEAST = 30  # pairs that a measure of a part of them needs


def of_pairs(scores_N2: np.ndarray, lengths_N2: np.ndarray) -> dict[str, float]:
    """Return the measures that need only scores and labels.

    One that is not finite, or needs more pairs, is left out.

    Args:
        scores_N2: Raw scores, whose differences are log-odds.
        lengths_N2: Tokens of the answers.
    """
    margin_N = scores_N2[:, 0] - scores_N2[:, 1]
    accuracy = float(np.mean(margin_N > 0))
    result = {
        "accuracy": accuracy,
        "loss": float(np.mean(np.logaddexp(0, -margin_N))),
        "margin": float(np.mean(margin_N)),
        "calibration_error": calibration_error(margin_N),
        "slope": label_slope(margin_N),
        "length_correlation": correlation(scores_N2.ravel(), lengths_N2.ravel()),
    }
    label_N2 = np.broadcast_to([1.0, 0.0], scores_N2.shape)
    result["length_correlation_gap"] = result["length_correlation"] - correlation(label_N2.ravel(), lengths_N2.ravel())
    if len(margin_N) >= 3 * LEAST:
        right_N = (margin_N > 0)[np.argsort(np.abs(margin_N), kind="stable")]
        third = len(right_N) // 3
        result["confidence_rise"] = float(right_N[-third:].mean() - right_N[:third].mean())
    matched_N = length_matched(lengths_N2)
    if np.count_nonzero(matched_N) >= LEAST:
        result["matched_accuracy_drop"] = accuracy - float(np.mean(margin_N[matched_N] > 0))
    return {name: value for name, value in result.items() if math.isfinite(value)}


def of_truth(scores_N2: np.ndarray, truth_N2: np.ndarray) -> dict[str, float]:
    """Return the measures that need the true rewards, which are those of `reviews`.

    `truth_accuracy` is over the pairs whose true rewards differ. `bayes_accuracy` is the best possible accuracy on the
    drawn labels, `bayes_share` the accuracy as a share of it, and `slope` that of the true log-odds on the margin.
    """
    margin_N, difference_N = (x_N2[:, 0] - x_N2[:, 1] for x_N2 in (scores_N2, truth_N2))
    unequal_N = difference_N != 0
    bayes = reviews.bayes_accuracy(difference_N.tolist())
    logit_N = reviews.STEEPNESS * difference_N
    return {
        "truth_accuracy": float(np.mean((margin_N > 0) == (difference_N > 0), where=unequal_N)),
        "bayes_accuracy": bayes,
        "bayes_share": float(np.mean(margin_N > 0)) / bayes,
        "slope": float(margin_N @ logit_N / max(margin_N @ margin_N, 1e-12)),
        "truth_correlation": correlation(scores_N2.ravel(), truth_N2.ravel()),
    }


def calibration_error(margin_N: np.ndarray) -> float:
    """Return the expected calibration error of sigmoid(|margin|) in 10 bins from 0.5 to 1.

    As in Guo et al. 2017, it is the mean distance of the accuracy of a bin from its mean confidence, weighted
    by pairs.
    """
    confidence_N, right_N, bin_N = _binned(margin_N)
    gaps = [abs(np.sum(right_N[bin_N == i]) - np.sum(confidence_N[bin_N == i])) for i in range(BINS)]
    return float(np.sum(gaps) / len(margin_N))


def reliability(margin_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, accuracy and its standard error in each bin.

    The bins are those of `calibration_error` that have pairs.
    """
    confidence_N, right_N, bin_N = _binned(margin_N)
    parts = [bin_N == i for i in range(BINS) if (bin_N == i).any()]
    confidence, accuracy = (np.asarray([x_N[part].mean() for part in parts]) for x_N in (confidence_N, right_N))
    counts = np.asarray([np.count_nonzero(part) for part in parts])
    return confidence, accuracy, np.sqrt(accuracy * (1 - accuracy) / counts)


def _binned(margin_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the confidence of each pair, whether its order is right, and its bin."""
    confidence_N = 1 / (1 + np.exp(-np.abs(margin_N)))
    return confidence_N, margin_N > 0, np.minimum((confidence_N - 0.5) * 2 * BINS, BINS - 1).astype(int)


def label_slope(margin_N: np.ndarray) -> float:
    """Return the slope a that makes the labels most likely, if a * margin are the log-odds.

    It is below 1 if the model is overconfident. Newton's method on the convex loss, with damping by halves; NaN if the
    labels determine no slope, since all are right or all are wrong.
    """
    if not (margin_N > 0).any() or not (margin_N < 0).any():
        return math.nan
    slope = 0.0
    for _ in range(50):
        p_N = 1 / (1 + np.exp(np.clip(slope * margin_N, -500, 500)))
        gradient = -np.sum(p_N * margin_N)
        step = gradient / max(np.sum(p_N * (1 - p_N) * margin_N**2), 1e-12)
        while _label_loss(slope - step, margin_N) > _label_loss(slope, margin_N) + 1e-12:
            step /= 2
        slope -= step
        if abs(step) < 1e-9:
            break
    return float(slope)


def _label_loss(slope: float, margin_N: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, -slope * margin_N)))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation; NaN if one of the two is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def length_matched(lengths_N2: np.ndarray) -> np.ndarray:
    """Return which pairs (N) have answers of about equal length.

    Their lengths differ by at most 2 tokens, or a tenth of the longer one.
    """
    longest_N = lengths_N2.max(axis=1)
    return np.ptp(lengths_N2, axis=1) <= np.maximum(2, longest_N / 10)
