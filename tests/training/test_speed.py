"""Rates are averages over a second, and no share of the peak is above 1."""

import math

import pytest

from lmjax.training.speed import Speed


def test_a_rate_is_an_average_over_the_last_second() -> None:
    speed = Speed(flops_per_token=1.0, peak=1e9)
    assert speed.add(100, 0.5) == (200, 200 / 1e9)
    assert speed.add(300, 0.5)[0] == 400
    assert speed.add(600, 0.5)[0] == 900  # the first half second is over
    assert speed.add(600, 0.0)[0] == 1500
    assert speed.add(10, 4.0)[0] == 2.5  # a long update alone
    assert speed.total == (1610, 5.5)


def test_two_dispatches_that_arrive_together_have_the_rate_of_both() -> None:
    """The host was late: the second dispatch seems to take no time."""
    speed = Speed(flops_per_token=1e6, peak=1e9)
    rates = [speed.add(800, seconds) for seconds in (1.0, 1.0, 1.99, 0.01, 1.0, 1.99, 0.01)]
    assert all(rate == pytest.approx(800, rel=0.02) for rate, _ in (*rates[:2], rates[3], rates[4], rates[6]))
    assert max(share for _, share in rates) <= 1


def test_in_the_first_second_the_peak_bounds_the_rate() -> None:
    speed = Speed(flops_per_token=10.0, peak=1000.0, measure=lambda: pytest.fail("measured too early"))
    assert speed.add(500, 0.5) == (100, 1.0)


@pytest.mark.parametrize(("again", "share"), [(4000.0, 0.5), (1500.0, 1.0), (math.nan, 1.0)])
def test_a_peak_that_is_exceeded_is_measured_once_more_and_raised(again: float, share: float) -> None:
    measured = []
    speed = Speed(flops_per_token=10.0, peak=1000.0, measure=lambda: measured.append(0) or again)
    assert speed.add(200, 1.0) == (200, share)
    assert speed.add(500, 1.0) == (500, 1.0)  # 5000 FLOP/s are above every measurement
    assert speed.add(250, 1.0) == (250, 0.5)
    assert len(measured) == 1


def test_of_an_unknown_device_only_the_rate_is_known() -> None:
    rate, share = Speed(flops_per_token=1.0, peak=math.nan).add(100, 0.5)
    assert rate == 200
    assert math.isnan(share)
