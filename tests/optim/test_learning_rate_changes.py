"""What changes on the way: cuts of the learning rate, and which changes of the batch size count as announced ones."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import ScheduleConfig, UserError
from lmjax.optim import learning_rate
from lmjax.optim.batch_plan import BatchPlan

UPDATES = 60
fast = settings(deadline=None, max_examples=80)


def plan(sizes: list[int]) -> BatchPlan:
    sequences = np.asarray(sizes, np.int64)
    return BatchPlan(sequences, (np.cumsum(sequences) - sequences) * 8, context=8, microbatch=1)


CONSTANT = plan([4] * UPDATES)


# ---- Cuts -----------------------------------------------------------------------------------------------------------

cuts = st.lists(
    st.tuples(st.integers(0, UPDATES + 5), st.floats(0.01, 1), st.integers(1, 2 * UPDATES)), max_size=4
).map(tuple)


@fast
@given(cuts, st.sampled_from(["cosine", "linear", "wsd", "inverse_sqrt", "constant"]))
def test_cuts_multiply_the_schedule_one_after_the_other(cuts: tuple, shape: Any) -> None:
    """Against a loop over updates; both round once to float32 (relative 6e-8 each), the products differ in float64."""
    schedule = ScheduleConfig(shape=shape, peak=0.01, warmup=0.1, decay=0.2, final=0.1)
    rates = learning_rate.learning_rates(schedule, CONSTANT)
    got = learning_rate.learning_rates(dataclasses.replace(schedule, cuts=cuts), CONSTANT)
    for update in range(UPDATES):
        factor = 1.0
        for at, low, over in cuts:
            if update >= at + over:
                continue
            if update >= at:
                factor *= low + (1 - low) * (update - at) / over
        assert got[update] == pytest.approx(rates[update] * factor, rel=2e-7)


def test_a_cut_halves_the_rate_and_lets_it_rise_over_a_hundred_updates() -> None:
    schedule = ScheduleConfig(shape="constant", peak=1.0, warmup=0.0, cuts=((20, 0.5, 10),))
    rates = learning_rate.learning_rates(schedule, CONSTANT)
    np.testing.assert_allclose(rates[18:32], [1, 1, *np.linspace(0.5, 1, 11), 1], rtol=1e-7)


def test_no_cut_and_cuts_that_change_nothing_leave_every_bit() -> None:
    schedule = ScheduleConfig(shape="cosine", peak=3e-4, warmup=0.05)
    rates = learning_rate.learning_rates(schedule, CONSTANT)
    for cuts in [((3, 1.0, 5),), ((UPDATES, 0.5, 10),)]:
        np.testing.assert_array_equal(
            learning_rate.learning_rates(dataclasses.replace(schedule, cuts=cuts), CONSTANT), rates
        )
    before = learning_rate.learning_rates(dataclasses.replace(schedule, cuts=((30, 0.5, 10),)), CONSTANT)
    np.testing.assert_array_equal(before[:30], rates[:30])
    np.testing.assert_array_equal(before[40:], rates[40:])


@pytest.mark.parametrize("cut", [(-1, 0.5, 10), (0, 0.0, 10), (0, -0.5, 10), (0, 1.5, 10), (0, 0.5, 0)])
def test_cuts_that_make_no_sense_are_refused(cut: tuple[int, float, int]) -> None:
    schedule = ScheduleConfig(cuts=((0, 0.5, 10), cut))
    with pytest.raises(
        UserError, match=r"schedule\.cuts = .* must be \(update, factor in \(0, 1\], updates to rise over"
    ):
        learning_rate.learning_rates(schedule, CONSTANT)


# ---- Jumps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "jumps"),
    [
        ([4, 4, 4], []),
        ([4, 4, 5], [2]),
        ([5, 4], [1]),
        ([8, 9], []),
        ([8, 9, 10], [2]),  # together a quarter more
        ([8, 10, 11, 12, 13], [1, 4]),
        ([8, 9, 8, 7, 8], []),
        ([100, 80, 100, 80], [1, 2, 3]),
        ([100, 81, 80], [2]),
        ([4, 8, 8, 16], [1, 3]),
    ],
)
def test_jumps_are_changes_by_a_quarter_since_the_last_one(sizes: list[int], jumps: list[int]) -> None:
    assert plan(sizes).jumps.tolist() == jumps
    assert set(jumps) <= set(plan(sizes).changes.tolist())


@fast
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_between_two_jumps_the_batch_stays_within_a_quarter(sizes: list[int]) -> None:
    found = plan(sizes).jumps.tolist()
    ends = [0, *found, len(sizes)]
    for start, stop in pairwise(ends):
        ratios = [size / sizes[start] for size in sizes[start:stop]]
        assert 0.8 < min(ratios) <= max(ratios) < 1.25
    for before, at in pairwise([0, *found]):
        assert not 0.8 < sizes[at] / sizes[before] < 1.25


def test_a_linear_ramp_has_few_jumps() -> None:
    """From 1 to 100 in steps of 1: each but the first few is small, and a quarter takes ever longer."""
    found = plan(list(range(1, 101))).jumps.tolist()
    assert found[:5] == [1, 2, 3, 4, 6]  # sizes 2, 3, 4, 5, 7: 5 -> 6 is only a fifth more
    assert len(found) == len(set(found)) < 22


# ---- Extensions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["updates", "tokens"])
@pytest.mark.parametrize("how", ["rewarm", "restart"])
def test_an_extension_keeps_the_rates_before_it_and_covers_the_rest(how: str, unit: Any) -> None:
    """A run of 30 updates becomes one of 60 at update 20; the rest against a formula, to the rounding of float32."""
    schedule = ScheduleConfig(shape="cosine", peak=0.01, warmup=0.1, final=0.2, unit=unit)
    first = learning_rate.learning_rates(schedule, plan([4] * 30))
    rates = learning_rate.learning_rates(dataclasses.replace(schedule, extended=((20, 30, how),)), CONSTANT)
    np.testing.assert_array_equal(rates[:20], first[:20])
    lowest = float(first[19]) if how == "rewarm" else 0.0
    for update in range(1, 41):  # of the 40 that remain, 4 rise
        rising = lowest + (0.01 - lowest) * update / 4
        falling = 0.01 * (0.2 + 0.8 * (1 + np.cos(np.pi * (update - 4) / 36)) / 2)
        assert rates[19 + update] == pytest.approx(min(rising, 0.01) if update <= 4 else falling, rel=2e-7)


def test_a_run_that_is_extended_twice_keeps_both_parts_before() -> None:
    once = ScheduleConfig(peak=0.01, warmup=0.1, extended=((20, 30, "restart"),))
    twice = dataclasses.replace(once, extended=(*once.extended, (40, 50, "rewarm")))
    before = learning_rate.learning_rates(once, plan([4] * 50))
    after = learning_rate.learning_rates(twice, CONSTANT)
    np.testing.assert_array_equal(after[:40], before[:40])
    assert after[40] > after[39]
    assert after[41] == pytest.approx(0.01)  # 2 of 20 updates rise


@pytest.mark.parametrize(
    ("extended", "message"),
    [
        (((20, 61, "rewarm"),), "had 61 updates before it was made longer, and has 60 now"),
        (((20, 10, "rewarm"),), "update <= updates"),
        (((20, 30, "keep"),), "rewarm or restart"),
        (((40, 50, "rewarm"), (20, 30, "rewarm")), "sorted by update"),
    ],
)
def test_an_extension_that_cannot_be_is_named(extended: tuple, message: str) -> None:
    with pytest.raises(UserError, match=f"schedule.extended.*{message}"):
        learning_rate.learning_rates(ScheduleConfig(extended=extended), CONSTANT)
