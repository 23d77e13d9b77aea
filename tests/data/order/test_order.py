import hashlib
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.data.order.order import Order, to_ranges
from lmjax.data.order.permutation import _mix, permute

fast = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**64 - 1)


def mixed(windows, weights, seed=0, **more):
    return Order(tuple(windows), seed, weights=((0, tuple(weights)),), **more)


# ---- Permutation ------------------------------------------------------------------------------------------------


def test_permutation_is_a_bijection_for_every_small_size():
    for size in range(1, 300):
        image = permute(np.arange(size), size, 12345)
        assert sorted(image) == list(range(size))
        np.testing.assert_array_equal(permute(image, size, 12345, inverse=True), np.arange(size))


@fast
@given(st.integers(1, 3000), seeds)
def test_permutation_is_a_bijection(size, key):
    assert len(set(permute(np.arange(size), size, key).tolist())) == size


@fast
@given(st.integers(1, 2**61), seeds, st.data())
def test_permutation_inverts_at_any_size(size, key, data):
    index = np.asarray(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    image = permute(index, size, key)
    assert ((image >= 0) & (image < size)).all()
    np.testing.assert_array_equal(permute(image, size, key, inverse=True), index)


def test_mixing_function_is_splitmix64():
    """The published sequence from seed 0 (and so the same on every platform)."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], np.uint64)
    assert _mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_permutation_looks_random():
    """Over 24,000 keys each of the 24 orders of 4 things comes up about 1000 times.

    Chi-square with 23 degrees of freedom exceeds 58 with probability 1e-4; the keys are fixed, so no flakiness.
    """
    keys = np.arange(24_000, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    orders = permute(np.arange(4), 4, keys) @ np.array([64, 16, 4, 1])
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 58


def test_neighbours_are_scattered():
    """Consecutive places land far apart: the mean distance of a random pair is a third of the size (5 sigma: 1 %)."""
    image = permute(np.arange(100_000), 100_000, 7)
    assert abs(np.abs(np.diff(image)).mean() / 100_000 - 1 / 3) < 0.01
    assert abs(np.corrcoef(image, np.arange(100_000))[0, 1]) < 0.02


# ---- The pinned order -------------------------------------------------------------------------------------------


def test_known_answer():
    """The order of every run there ever was hangs on these numbers: they must never change."""
    order = Order((1000,), seed=0)
    assert order.sample_id(np.arange(8)).tolist() == KNOWN["first"]
    assert order.sample_id([999, 1000, 10**9]).tolist() == KNOWN["far"]
    three = Order((10, 2000, 333), 42, weights=((0, (0.7, 0.2, 0.1)), (1003, (1, 1, 2))))
    digest = hashlib.sha256(three.sample_id(np.arange(5000)).astype("<i8").tobytes()).hexdigest()
    assert digest == KNOWN["digest"]
    assert three.shift([0, 1, 2], [0, 0, 5], [1000, 2**40, 77]).tolist() == KNOWN["shift"]


KNOWN = {
    "first": [877, 642, 365, 578, 423, 254, 229, 169],
    "far": [964, 1875, 1000000802],
    "digest": "410209d0895bbb12a898ab66e998b13b0e2d4f59f7103ead211ac48cca4dbf6f",
    "shift": [379, 983718455571, 47],
}


def test_seed_source_and_epoch_each_change_the_order():
    base = Order((1000,), 0).sample_id(np.arange(1000))
    assert (Order((1000,), 1).sample_id(np.arange(1000)) != base).any()
    assert (Order((1000,), 0).sample_id(np.arange(1000, 2000)) - 1000 != base).any()
    two = mixed((500, 500), (1, 1))
    source, _, window = two.split_id(two.sample_id(np.arange(1000)))
    assert (window[source == 0] != window[source == 1]).any()


# ---- Samples and positions --------------------------------------------------------------------------------------


@fast
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4), seeds, st.data())
def test_position_is_the_inverse_of_sample_id(sources, seed, data):
    windows, weights = zip(*sources, strict=True)
    changed = tuple(data.draw(st.integers(1, 9)) for _ in windows)
    order = Order(windows, seed, weights=((0, weights), (data.draw(st.integers(1, 500)), changed)))
    positions = np.r_[np.arange(1000), 10**12 + np.arange(100)]
    ids = order.sample_id(positions)
    assert len(set(ids.tolist())) == len(ids)
    np.testing.assert_array_equal(order.position(ids), positions)
    assert order.position(int(ids[7])) == 7  # scalars too
    source, epoch, window = order.split_id(ids)
    size = np.asarray(windows)[source]
    np.testing.assert_array_equal(ids, source + len(windows) * (epoch * size + window))


def test_a_sample_that_never_comes_has_no_position():
    order = Order((5, 5), 0, weights=((0, (1, 1)), (10, (1, 0))))
    assert (order.position([1 + 2 * k for k in range(5)]) < 10).all()
    assert order.position(1 + 2 * 5) == -1


@fast
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    seeds,
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=8),
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
)
def test_every_sample_once_an_epoch_under_ramps_and_exclusions(windows, seed, excluded, weights, ramp):
    """I5: however the run is cut into takes, it reads the samples one by one in order, all of them but the excluded."""
    ranges = tuple((a, a + n) for a, n in excluded)
    order = mixed(windows, weights[: len(windows)], seed, exclude=ranges)
    cursor, taken = 0, []
    for batch in itertools.cycle(ramp):
        ids, cursor = order.take(cursor, batch)
        taken.append(ids)
        if sum(map(len, taken)) >= 3 * sum(windows):
            break
    ids = np.concatenate(taken)
    everything = order.sample_id(np.arange(cursor)).tolist()
    banned = {i for a, b in ranges for i in range(a, b)}
    assert ids.tolist() == [i for i in everything if i not in banned]  # slow and independent
    assert cursor == 0 or order.position(ids[-1]) + 1 == cursor
    source, epoch, window = order.split_id(everything)
    for s, e in {(int(s), int(e)) for s, e in zip(source, epoch, strict=True)}:
        here = window[(source == s) & (epoch == e)]
        finished = ((source == s) & (epoch > e)).any()
        assert len(set(here.tolist())) == len(here)
        assert not finished or len(here) == windows[s]


@fast
@given(seeds, st.integers(1, 40), st.integers(0, 60), st.integers(1, 30), st.integers(1, 17))
def test_excluded_from_the_start_equals_excluded_later(seed, used, ahead, length, batch):
    windows, weights = (97, 41), ((0, (2, 1)), (50, (1, 3)))
    plain = Order(windows, seed, weights=weights)
    first, cursor = plain.take(0, used)
    skipped = to_ranges(plain.sample_id(np.arange(cursor + ahead, cursor + ahead + length)))
    later, start = plain.excluding(skipped), Order(windows, seed, weights=weights, exclude=skipped)
    ids, at = start.take(0, used)
    assert (ids.tolist(), at) == (first.tolist(), cursor)
    for _ in range(20):
        (a, cursor), (b, at) = later.take(cursor, batch), start.take(at, batch)
        assert (a.tolist(), cursor) == (b.tolist(), at)
        assert not set(a.tolist()) & set(plain.sample_id(np.arange(used + ahead, used + ahead + length)).tolist())


# ---- Without shuffling -------------------------------------------------------------------------------------------


@fast
@given(st.lists(st.integers(1, 50), min_size=1, max_size=3), st.integers(0, 500), st.integers(0, 400))
def test_unshuffled_sources_are_read_as_they_stand_epoch_after_epoch(windows, change, seed):
    weights = ((0, (1.0,) * len(windows)), (change + 1, tuple(range(1, len(windows) + 1))))
    order = Order(tuple(windows), seed, weights=weights, shuffle=False)
    ids = order.sample_id(np.arange(600))
    source, epoch, window = order.split_id(ids)
    for s, size in enumerate(windows):
        mine = np.arange((source == s).sum())
        np.testing.assert_array_equal(epoch[source == s] * size + window[source == s], mine)
    np.testing.assert_array_equal(order.position(ids), np.arange(600))
    shuffled = Order(tuple(windows), seed, weights=weights)  # the same source at every position
    np.testing.assert_array_equal(order.split_id(shuffled.sample_id(np.arange(600)))[0], source)


def test_unshuffled_ids_of_one_source_are_the_positions():
    order = Order((7,), seed=3, shuffle=False, exclude=((3, 5), (9, 10)))
    assert order.sample_id(np.arange(20)).tolist() == list(range(20))
    ids, cursor = order.take(2, 6)
    assert (ids.tolist(), cursor) == ([2, 5, 6, 7, 8, 10], 11)
    assert order.excluding(((10, 12),)).take(2, 6)[0].tolist() == [2, 5, 6, 7, 8, 12]


# ---- Blocks of one source ----------------------------------------------------------------------------------------


@fast
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 13),
    seeds,
    st.booleans(),
)
def test_blocks_read_one_source_each_and_keep_the_order_of_every_source(sources, group, seed, shuffle):
    windows, weights = zip(*sources, strict=True)
    order = mixed(windows, weights, seed, group=group, shuffle=shuffle)
    positions = np.r_[np.arange(100 * group), 10**12 * group + np.arange(10 * group)]
    ids = order.sample_id(positions)
    np.testing.assert_array_equal(order.position(ids), positions)
    alone = mixed(windows, weights, seed, shuffle=shuffle)
    source = order.split_id(ids)[0].reshape(-1, group)
    blocks = positions.reshape(-1, group)[:, 0] // group
    np.testing.assert_array_equal(source, np.repeat(alone.split_id(alone.sample_id(blocks))[0][:, None], group, 1))
    first = ids[: 100 * group]
    for s in range(len(windows)):  # what is read of a source, and in which order, does not hang on the blocks
        mine = first[first % len(windows) == s]
        same = alone.sample_id(np.arange(100 * group * len(windows) * 9))
        np.testing.assert_array_equal(mine, same[same % len(windows) == s][: len(mine)])


def test_blocks_and_exclusions():
    """A sample left out makes the later ones move up, across the blocks: the same samples, in the same order."""
    order = Order((40, 24), 3, weights=((0, (5, 3)),), group=8)
    everything = order.sample_id(np.arange(640))
    shut = to_ranges(everything[[3, 8, 17]])
    ids, cursor = order.excluding(shut).take(0, 600)
    assert ids.tolist() == np.delete(everything, [3, 8, 17])[:600].tolist()
    assert cursor == 603
    source, epoch, _ = order.split_id(everything)
    assert [((source == s) & (epoch == e)).sum() for s, e in ((0, 0), (1, 0), (0, 9), (1, 9))] == [40, 24, 40, 24]
    never = Order((4, 4), 0, weights=((0, (1, 1)), (2, (1, 0))), group=2)
    assert never.position(1 + 2 * 4) == -1


# ---- Mixtures ---------------------------------------------------------------------------------------------------


def debts(order, stop):
    """What each source is due less what was read of it, before each of the first positions: (stop + 1, sources)."""
    source = order.split_id(order.sample_id(np.arange(stop)))[0]
    phases = itertools.pairwise([at for at, _ in order.shares] + [stop])
    share = np.concatenate([np.tile(row, (b - a, 1)) for (_, row), (a, b) in zip(order.shares, phases, strict=True)])
    owed = np.cumsum(share - (source[:, None] == np.arange(share.shape[1])), axis=0)
    return np.vstack([np.zeros_like(owed[:1]), owed])


def assert_exact(order, stop):
    """Tijdeman's bound before every position, and so the counts of every window within 2 (1e-9: sums of floats)."""
    owed = debts(order, stop)
    assert np.abs(owed).max() <= 1 - 1 / (2 * max(owed.shape[1] - 1, 1)) + 1e-9
    assert (owed.max(0) - owed.min(0)).max() <= 2


weight_rows = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(0, 30), min_size=k, max_size=k).filter(any)),
        min_size=1,
        max_size=5,
    )
)


@fast
@given(weight_rows)
def test_mixture_is_exact_over_every_window_and_across_changes(phases):
    starts = np.cumsum([0] + [n for n, _ in phases])
    weights = tuple((int(at), tuple(row)) for at, (_, row) in zip(starts, phases, strict=False))
    order = Order((7,) * len(phases[0][1]), 0, weights=weights)
    assert_exact(order, int(starts[-1]) + 2000)


def test_mixture_looks_ahead_of_a_change():
    """Sources in debt whose shares rise together: a schedule that does not look ahead cannot serve all in time."""
    for before, at, after in [
        ((14, 2, 9, 17, 16, 13), 59, (0, 1, 1, 0, 0, 0)),
        ((5, 10, 4, 3, 11, 16, 18), 7, (1, 0, 1, 1, 0, 0, 0)),
        ((1, 20, 16, 11, 8, 11), 46, (1, 0, 0, 0, 1, 0)),
    ]:
        assert_exact(Order((9,) * len(before), 0, weights=((0, before), (at, after))), 500)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0.7, 0.3), (0.7, 0.3)), ((1, 2), (1 / 3, 2 / 3)), ((0.1, 0.1, 0.1), (1 / 3,) * 3), ((5.0,), (1.0,))],
)
def test_shares_of_simple_weights_are_exact(weights, expected):
    order = mixed((10,) * len(weights), weights)
    np.testing.assert_allclose(order.shares[0][1], expected, rtol=1e-15)
    far = order.split_id(order.sample_id(np.arange(10**12, 10**12 + 3000)))[0]
    for i, share in enumerate(expected):
        assert abs((far == i).sum() - 3000 * share) <= 2


def test_awkward_weights_are_resolved_to_a_period():
    weights = (np.pi, np.e, 0.01, 1.0)
    resolved = mixed((10,) * 4, weights).shares[0][1]
    np.testing.assert_allclose(resolved, np.asarray(weights) / sum(weights), atol=1e-4)  # one part in the period
    assert sum(Fraction(share).limit_denominator(10_000) for share in resolved) == 1


def test_a_source_can_be_off_and_come_later():
    order = Order((10, 10), 0, weights=((0, (1, 0)), (100, (1, 1))))
    source = order.split_id(order.sample_id(np.arange(200)))[0]
    assert source[:100].sum() == 0
    assert source[100:].sum() == 50


# ---- Size and mistakes ------------------------------------------------------------------------------------------


def test_many_ranges_and_long_runs():
    """100,000 excluded ranges and positions beyond 10^9 cost no more than arithmetic on the batch."""
    order = mixed((4_000_000, 1_000_000), (0.8, 0.2), exclude=tuple((20 * k, 20 * k + 2) for k in range(100_000)))
    ids, cursor = order.take(10**9, 10_000)
    assert (order.position(ids) < cursor).all()
    early, cursor = order.take(0, 100_000)
    assert 100_000 < cursor < 120_000
    assert not order.excluded(early).any()


def test_ranges_round_trip():
    ids = [5, 6, 7, 1, 99, 100, 7]
    assert to_ranges(ids) == ((1, 2), (5, 8), (99, 101))
    assert to_ranges([]) == ()
    order = Order((50,), 0, exclude=((5, 8), (1, 2), (6, 7), (99, 101)))
    assert np.flatnonzero(order.excluded(np.arange(200))).tolist() == [1, 5, 6, 7, 99, 100]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((0, (1.0,)),), "2 sources but 1 weights"),
        (((0, (1.0, -1.0)),), "positive"),
        (((0, (0.0, 0.0)),), "positive"),
        (((0, (1.0, float("nan"))),), "positive"),
        (((0, (1.0, 1e-9)),), "less than 1 sample"),
        (((5, (1.0, 1.0)),), "start at 0"),
        (((0, (1.0, 1.0)), (9, (1.0, 2.0)), (9, (2.0, 1.0))), "increasing"),
        ((), "start at 0"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(UserError, match=message):
        Order((10, 10), 0, weights=weights)


@pytest.mark.parametrize("ranges", [((5, 5),), ((7, 3),), ((-1, 3),), ((1, 2, 3),), ((0.0, 2.5),), ((0, 2**63),)])
def test_bad_ranges(ranges):
    with pytest.raises(UserError, match="not a range"):
        Order((10,), 0, exclude=ranges)


def test_excluding_everything_is_refused_at_once():
    for windows in (10, 10_000, 10_000_000):
        with pytest.raises(UserError, match="nothing to train on"):
            Order((windows, 3), 0, weights=((0, (1, 1)),), exclude=((0, 10**10), (10**10, 10**12)))
    ids, _ = Order((10,), 0, exclude=((0, 25),)).take(0, 5)  # some epochs of a tiny corpus are fine
    assert (ids >= 25).all()


def test_no_windows():
    with pytest.raises(UserError, match="at least one window"):
        Order((10, 0), 0, weights=((0, (1, 1)),))
