"""Measures of a reward model against cases whose answer is known."""

import math

import numpy as np
import pytest

from lmjax.data.sources import reviews
from lmjax.objectives import reward_measures

RNG = np.random.default_rng(0)


def drawn(count: int, *, scale: float = 1.0) -> np.ndarray:
    """Scores (N, 2) whose labels are drawn from sigmoid(scale * difference), the preferred answer first."""
    scores_N2 = RNG.normal(0, 1.5, (count, 2))
    first_N = RNG.random(count) < 1 / (1 + np.exp(-scale * (scores_N2[:, 0] - scores_N2[:, 1])))
    return np.where(first_N[:, None], scores_N2, scores_N2[:, ::-1])


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_slope_is_that_with_which_labels_were_drawn(scale: float) -> None:
    """With 20,000 pairs the standard error is below 0.03 of the slope."""
    scores_N2 = drawn(20_000, scale=scale)
    measures = reward_measures.of_pairs(scores_N2, np.ones(scores_N2.shape, int))
    assert measures["slope"] == pytest.approx(scale, rel=0.1)
    if scale == 1:
        assert measures["calibration_error"] < 0.02
        assert measures["confidence_rise"] > 0.2
    else:
        assert measures["calibration_error"] > 0.05
    assert "length_correlation" not in measures  # all lengths are equal


def test_the_slope_is_the_best_of_a_grid() -> None:
    margin_N = np.asarray([2.0, 1.0, -0.5, 3.0, -1.5, 0.2])
    grid = np.linspace(-3, 3, 6001)
    losses = [np.mean(np.logaddexp(0, -slope * margin_N)) for slope in grid]
    assert reward_measures.label_slope(margin_N) == pytest.approx(grid[np.argmin(losses)], abs=1e-3)


def test_labels_that_are_all_right_determine_no_slope() -> None:
    assert math.isnan(reward_measures.label_slope(np.asarray([1.0, 2.0])))
    measures = reward_measures.of_pairs(np.asarray([[1.0, 0.0], [2.0, 0.0]]), np.asarray([[3, 1], [2, 4]]))
    assert "slope" not in measures
    assert measures["accuracy"] == 1


def test_the_calibration_error_of_a_case_by_hand() -> None:
    """Four pairs at confidence 0.75, three of them right, and two at 0.9, one of them right."""
    sure, surer = math.log(3), math.log(9)
    margin_N = np.asarray([sure, sure, sure, -sure, surer, -surer])
    assert reward_measures.calibration_error(margin_N) == pytest.approx((0 * 4 + 0.4 * 2) / 6)


def test_a_counter_of_tokens_is_found_by_pairs_of_equal_length() -> None:
    lengths_N2 = RNG.integers(10, 60, (4000, 2))
    longer = lengths_N2[:, 0] > lengths_N2[:, 1]
    kept = longer | (RNG.random(4000) < 0.3)  # people prefer longer answers
    lengths_N2 = lengths_N2[kept]
    scores_N2 = lengths_N2 * 0.1 + RNG.normal(0, 0.2, lengths_N2.shape)
    measures = reward_measures.of_pairs(scores_N2, lengths_N2)
    assert measures["length_correlation"] > 0.9
    assert measures["length_correlation_gap"] > 0.5
    assert measures["matched_accuracy_drop"] > 0.08


def test_matched_lengths() -> None:
    lengths_N2 = np.asarray([[5, 7], [5, 8], [50, 45], [50, 44], [9, 9]])
    assert reward_measures.length_matched(lengths_N2).tolist() == [True, False, True, False, True]


def test_a_judge_of_the_truth_reaches_the_best_possible_accuracy() -> None:
    truth_N2 = drawn(20_000, scale=reviews.STEEPNESS)
    measures = reward_measures.of_truth(truth_N2 * reviews.STEEPNESS, truth_N2)
    assert measures["truth_accuracy"] == 1
    assert measures["slope"] == pytest.approx(1)
    assert measures["bayes_share"] == pytest.approx(1, abs=0.02)  # 20,000 pairs: standard error 0.003
    assert measures["truth_correlation"] == pytest.approx(1)


def test_equal_true_rewards_count_for_no_accuracy() -> None:
    truth_N2 = np.asarray([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]])
    assert reward_measures.of_truth(np.asarray([[1.0, 0.0]] * 3), truth_N2)["truth_accuracy"] == 0.5


def test_reliability_has_the_calibration_error() -> None:
    """The mean distance of its points from the diagonal, weighted by pairs, is that error."""
    margin_N = np.random.default_rng(0).normal(0.5, 2, 400)
    confidences, accuracies, errors = reward_measures.reliability(margin_N)
    counts = np.histogram(1 / (1 + np.exp(-np.abs(margin_N))), reward_measures.BINS, (0.5, 1))[0]
    expected = np.average(np.abs(accuracies - confidences), weights=counts)
    assert reward_measures.calibration_error(margin_N) == pytest.approx(expected)
    np.testing.assert_allclose(errors, np.sqrt(accuracies * (1 - accuracies) / counts))
