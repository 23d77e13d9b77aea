"""Smoothing, and the points that a drawing keeps."""

import numpy as np

from lmjax.display.thinning import chosen, smooth, thin


def test_smoothing_is_a_weighted_mean_of_what_came_before() -> None:
    assert np.array_equal(smooth(np.full(500, 7.0)), np.full(500, 7.0))
    noise = np.random.default_rng(0).standard_normal(5000)
    # The mean over about 100 points of unit noise: its spread is sqrt(1 / (2 * 100 - 1)) = 0.071, here +- 30 %.
    assert 0.05 < smooth(noise)[1000:].std() < 0.092
    falling = 8 * np.exp(-np.arange(5000) / 100)
    assert np.abs(smooth(falling) - falling)[:50].max() < 0.3  # the steep start is followed
    holes = np.array([1.0, np.nan, 3.0])
    assert np.array_equal(smooth(holes), [1.0, np.nan, 3.0], equal_nan=True)
    assert len(smooth(np.empty(0))) == 0


def test_thinning_keeps_every_spike() -> None:
    y = np.zeros(100_000)
    y[[17, 60_001]] = 5, -5
    y[99] = np.nan
    x_thin, y_thin = thin(np.arange(100_000.0), y)
    assert len(y_thin) <= 4000
    assert {(17.0, 5.0), (60_001.0, -5.0)} <= set(zip(x_thin.tolist(), y_thin.tolist(), strict=True))
    assert (np.diff(x_thin) > 0).all()


def test_values_that_are_not_finite_break_the_line() -> None:
    x, y = thin(np.arange(4.0), np.array([1.0, np.inf, np.nan, 2.0]))
    np.testing.assert_array_equal(y, [1, np.nan, np.nan, 2])
    assert len(x) == 4
    y = np.ones(100_000)
    y[50_000] = np.inf
    x_thin, y_thin = thin(np.arange(100_000.0), y)
    assert x_thin[np.isnan(y_thin)].tolist() == [50_000]


def test_few_points_can_be_asked_for() -> None:
    y = np.random.default_rng(0).standard_normal(10_001)
    indices = chosen(y, 200)
    assert len(indices) <= 200
    assert {int(y.argmin()), int(y.argmax())} <= set(indices.tolist())
