"""The guard inside the update: against NumPy, and on long synthetic runs.

The runs go through the real update (`make_update`), whose loss and gradient norm are dictated by the batch; so they
also show what is applied and what enters the window.
"""

import runpy
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.guard.detector import DIVERGENCE
from lmjax.journal.history import Tried
from lmjax.training.state import State
from lmjax.training.step import make_update
from tests import FIXTURES

BLOOM = runpy.run_path(str(FIXTURES / "bloom.py"))
GUARD = GuardConfig()
STEPS = 20_000
EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
fast = settings(deadline=None, max_examples=60)


# ---- Runs whose losses and gradient norms are given -----------------------------------------------------------------


def dictated(params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
    """A loss of exactly `loss` whose gradient is exactly `norm`."""
    loss, norm = batch["loss"][0], batch["norm"][0]
    return loss + norm * (params - lax.stop_gradient(params)), jnp.float32(1), {}


class Watched(NamedTuple):
    """state: at the end. metrics: of every batch, NumPy arrays. accepted: which losses entered the window."""

    state: State
    metrics: dict[str, np.ndarray]

    @property
    def accepted(self) -> np.ndarray:
        return self.metrics["skipped"] == 0

    def fired(self, config: GuardConfig = GUARD) -> tuple[int, str] | None:
        """(batch, rule) of the first trigger, as the loop would find it."""
        recent: list[Tried] = []
        update = 0
        found = (self.metrics[name].tolist() for name in ("suspect", "hard", "diverged"))
        for n, (suspect, hard, diverged) in enumerate(zip(*found, strict=True)):
            recent = [*recent, Tried(update, n, n + 1, suspect, hard)][-detector.remembered(config) :]
            update += not suspect
            if fired := detector.rule(recent, config=config, diverged=diverged and not suspect):
                return n, fired
        return None


@cache
def watcher(config: GuardConfig) -> Any:
    update = make_update(dictated, optax.identity(), guard=config, seed=0)

    def batch(state: State, row: tuple[jax.Array, ...]) -> tuple[State, dict[str, jax.Array]]:
        loss, norm, stretch = row
        arrays = {"loss": loss[None, None], "norm": norm[None, None]}
        return update(state, {"arrays": arrays, "learning_rate": jnp.float32(0), "regime": stretch})

    return jax.jit(lambda state, rows: lax.scan(batch, state, rows))


def watch(losses: Any, norms: Any = 1.0, *, stretch: Any = 0, config: GuardConfig = GUARD) -> Watched:
    """What the guard says of these batches, one after the other."""
    losses = np.asarray(losses, np.float32)
    norms, stretch = (np.broadcast_to(np.asarray(a, t), losses.shape) for a, t in ((norms, "f4"), (stretch, "i4")))
    state = State(jnp.float32(1), optax.EmptyState(), None, jnp.int32(0), detector.empty(config))
    state, metrics = watcher(config)(state, (losses, norms, stretch))
    return Watched(state, {name: np.asarray(values) for name, values in metrics.items()})


def quiet(count: int, *, seed: int = 0, noise: str = "gaussian", scale: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Losses that fall as a power law with noise around them, and gradient norms with noise of 10 %."""
    rng = np.random.default_rng(seed)
    draw = {
        "gaussian": rng.standard_normal,
        "t5": lambda n: rng.standard_t(5, n),
        "t3": lambda n: rng.standard_t(3, n),
    }[noise]
    curve = 2.2 + 8 / np.sqrt(np.arange(count) + 10)
    return curve + scale * draw(count), 0.3 * np.exp(0.1 * draw(count))


def test_what_is_learned_to_the_end_may_have_losses_that_differ_by_large_factors() -> None:
    """Rows told wrong at times, 40 times the median, as in a translator's last batches; 0.2 nats more are a spike."""
    losses = np.random.default_rng(0).gamma(0.3, 0.02, 400)
    losses[300:] = np.minimum(losses[300:], 0.1)
    assert np.median(losses) < 0.004
    assert np.sort(losses)[-20:].min() > 0.01
    assert not watch(losses).metrics["suspect"].any()
    losses[350] += 0.2
    assert np.flatnonzero(watch(losses).metrics["suspect"]).tolist() == [350]


# ---- z against NumPy ------------------------------------------------------------------------------------------------

finite = st.floats(-1e3, 1e3, width=32)


def robust_z(values: np.ndarray, x: float, *, floor: float) -> float:
    """In float64, with NumPy's own median; floor: of the deviation."""
    if not len(values):
        return 0.0
    median = np.median(values)
    return float((x - median) / max(1.4826 * np.median(np.abs(values - median)), floor))


@pytest.mark.slow
@fast
@given(st.lists(finite, min_size=1, max_size=200), finite, finite, st.data())
def test_z_is_that_of_the_accepted_values_of_the_stretch(
    values: list[float], loss: float, log_norm: float, data: st.DataObject
) -> None:
    """Tolerance: float32 rounds median and difference, a few units of the largest value over the deviation; and XLA may
    take numbers below the least normal one for zero."""
    config = GuardConfig(window=data.draw(st.sampled_from([5, 8, 128])))
    before = data.draw(st.integers(0, len(values)))  # so many belong to an earlier stretch
    window = detector.empty(config)
    for n, value in enumerate(values):
        window, _ = accept(window, jnp.float32(value), jnp.float32(-value), jnp.int32(n >= before), config)
    assert int(window.count) == (len(values) - before or before)
    assert window.losses_W[-len(values) :].tolist() == values[-config.window :]

    stretch = data.draw(st.integers(0, 2))
    signs = assess(window, jnp.float32(loss), jnp.float32(log_norm), jnp.bool_(True), jnp.int32(stretch), config)
    current = int(before < len(values))
    own = values[before:] if current else values
    own = np.asarray(own[-config.window :] if stretch == current else [], np.float64)
    share = max(config.loss_floor * abs(np.median(own)), config.loss_floor_nats) if len(own) else 1.0
    for got, x, seen, floor in (
        (float(signs.z_loss), loss, own, max(share, 1e-30)),
        (float(signs.z_grad_norm), log_norm, -own, config.grad_floor),
    ):
        if not len(seen):
            assert got == 0
            continue
        deviation = max(1.4826 * np.median(np.abs(seen - np.median(seen))), floor)
        if deviation < 1e-6:  # all zero: nothing to divide by
            continue
        expected = robust_z(seen, x, floor=floor)
        rounding = 8 * EPSILON * (np.abs(seen).max() + abs(x)) / deviation
        assert abs(got - expected) <= rounding * (1 + abs(expected)) + 1e-5 * abs(expected) + TINY / deviation


accept = jax.jit(detector.accept, static_argnames="config")
assess = jax.jit(detector.assess, static_argnames="config")


@pytest.mark.slow
@fast
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.05]))
def test_divergence_is_that_of_a_plain_loop_over_medians(seed: int, slope: float) -> None:
    """The batches are the same, but for those where the two sides of a comparison agree to 1e-5 (float32)."""
    count, rng = 300, np.random.default_rng(seed)
    losses = (2 + 0.05 * rng.standard_normal(count) + slope * np.arange(count)).astype(np.float32)
    got = watch(losses, config=OPEN).metrics["diverged"]
    best = np.inf
    for n in range(count):
        last = losses[max(0, n - 31) : n + 1].astype(np.float64)
        if n < 31:
            assert not got[n]
            continue
        median = np.median(last)
        above, limit = median - best, max(10 * max(np.median(np.abs(last - median)), 0.02), 0.1 * abs(best))
        if n < 63:  # not armed
            assert not got[n]
        elif abs(above - limit) > 1e-5:
            assert got[n] == (above > limit)
        best = min(best, median)


OPEN = GuardConfig(policy="off")  # applies everything, and says what it sees


# ---- When it is armed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "jump", "suspect"),
    [
        (7, 100.0, False),
        (8, 100.0, True),
        (63, 0.5, False),
        (64, 0.5, True),
        (64, 0.2, False),
        (127, 0.5, True),
    ],
)
def test_soft_signs_count_from_64_batches_hard_ones_from_8(seen: int, jump: float, suspect: bool) -> None:
    """Noise of 0.05: a jump of 0.5 is about 10 deviations, soft; one of 0.2 is about 4, nothing."""
    losses = 3 + 0.05 * np.random.default_rng(1).standard_normal(seen)
    found = watch(np.append(losses, 3 + jump)).metrics
    assert found["suspect"].tolist() == [False] * seen + [suspect]
    assert found["hard"][-1] == (jump == 100.0 and suspect)


@pytest.mark.parametrize("seen", [0, 1, 7, 64, 200])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_hard_from_the_first_batch_on(seen: int, bad: float) -> None:
    losses, norms = quiet(seen)
    for broken in (
        watch(np.append(losses, bad), np.append(norms, 1)),
        watch(np.append(losses, 2), np.append(norms, bad)),
    ):
        assert broken.metrics["suspect"].tolist() == broken.metrics["hard"].tolist() == [False] * seen + [True]
        assert int(broken.state.update) == int(broken.state.window.count) == seen
        assert np.isfinite(broken.state.window.losses_W).all()


def test_a_gradient_norm_is_suspect_only_with_a_loss_that_is_high_too() -> None:
    losses, norms = 3 + 0.05 * np.random.default_rng(1).standard_normal(100), np.full(100, 0.3)
    for factor, extra, suspect, hard in [(3, 0.15, True, False), (3, 0.0, False, False), (20, 0.15, True, True)]:
        # Log of the factor over the floor of 0.1: z of 11 or 30; 0.15 above the median: z of 3.
        found = watch(np.append(losses, 3 + extra), np.append(norms, 0.3 * factor)).metrics
        assert (found["suspect"][-1], found["hard"][-1]) == (suspect, hard)


def test_after_an_announced_change_the_guard_starts_anew() -> None:
    """The loss doubles, as after a change of the mixture; 64 batches later the new level is the measure."""
    rng = np.random.default_rng(2)
    losses = np.r_[3 + 0.05 * rng.standard_normal(200), 6 + 0.05 * rng.standard_normal(200)]
    assert watch(losses).fired() is not None
    stretch = np.repeat([0, 1], 200)
    announced = watch(losses, stretch=stretch)
    assert announced.fired() is None
    assert not announced.metrics["suspect"].any()
    assert int(announced.state.window.count) == 200
    for at, jump, suspect in [(207, 100, False), (208, 100, True), (263, 0.5, False), (264, 0.5, True)]:
        spoiled = losses.copy()
        spoiled[at] = 6 + jump
        assert watch(spoiled, stretch=stretch).metrics["suspect"][at] == suspect


def test_a_suspect_right_at_a_change_leaves_the_window_to_be_cleared_by_the_next_batch() -> None:
    losses = np.r_[np.full(100, 3.0), np.nan, np.full(20, 6.0)]
    found = watch(losses, stretch=np.repeat([0, 1], [100, 21]))
    assert found.metrics["suspect"].sum() == 1
    assert int(found.state.window.count) == 20
    assert int(found.state.window.stretch) == 1


# ---- What is accepted -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@fast
@given(st.integers(0, 2**31), st.lists(st.integers(0, 299), max_size=30))
def test_the_window_holds_the_last_accepted_values_and_nothing_else(seed: int, spoiled: list[int]) -> None:
    losses, norms = quiet(300, seed=seed)
    losses[spoiled] = np.random.default_rng(seed).choice([np.nan, np.inf, 1e6, 12.0], len(spoiled))
    found = watch(losses, norms)
    losses, norms = losses.astype(np.float32)[found.accepted], norms.astype(np.float32)[found.accepted]
    assert (found.accepted == ~found.metrics["suspect"]).all()
    kept = min(len(losses), 128)
    np.testing.assert_array_equal(found.state.window.losses_W[-kept:], losses[-kept:])
    np.testing.assert_allclose(found.state.window.log_norms_W[-kept:], np.log(norms[-kept:]), rtol=1e-5)
    assert int(found.state.window.count) == int(found.state.update) == len(losses)


def test_the_policy_changes_no_bit_while_nothing_is_suspect() -> None:
    losses, norms = quiet(2000)
    ends = [watch(losses, norms, config=GuardConfig(policy=policy)) for policy in ("rollback", "skip", "off")]
    assert not ends[0].metrics["suspect"].any()
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, other.state, ends[0].state)
        jax.tree.map(np.testing.assert_array_equal, other.metrics, ends[0].metrics)


# ---- Long runs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise", [pytest.param("gaussian", marks=pytest.mark.slow), "t5", pytest.param("t3", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ordinary_noise_never_triggers(noise: str, seed: int) -> None:
    """Student's t with 3 degrees of freedom has outliers beyond 6 robust deviations once in 300 batches: left out one
    by one, they trigger nothing."""
    found = watch(*quiet(STEPS, seed=seed, noise=noise))
    assert found.fired() is None
    share = found.metrics["suspect"].mean()
    assert share < {"gaussian": 1e-4, "t5": 2e-3, "t3": 1e-2}[noise]
    assert noise != "t3" or share > 0  # or the guard would not look at all


@pytest.mark.parametrize("start", [64, 2000, pytest.param(15_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [pytest.param("gaussian", marks=pytest.mark.slow), "t5", "t3"])
def test_a_plateau_is_caught_in_three_batches_and_stays_out_of_the_window(start: int, noise: str) -> None:
    """The mean of a window with its outliers would have drifted to the plateau; every one of the 300 is suspect."""
    losses, norms = quiet(start + 400, noise=noise, scale={"gaussian": 0.05, "t5": 0.02, "t3": 0.02}[noise])
    losses[start : start + 300] += 3 if start == 64 else 0.5  # the first losses fall by 2 within the window
    found = watch(losses, norms)
    fired = found.fired()
    assert fired is not None
    assert start <= fired[0] <= start + 2
    plateau = np.arange(start, start + 300)
    assert found.metrics["suspect"][plateau].all()
    low = float(losses[plateau].min())
    assert float(found.state.window.losses_W.max()) < low or start == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "scale", "late"),
    [
        pytest.param("gaussian", 0.02, 30, marks=pytest.mark.slow),
        pytest.param("gaussian", 0.05, 130, marks=pytest.mark.slow),
        ("t3", 0.02, 30),
    ],
)
def test_a_ramp_is_caught(noise: str, scale: float, late: int) -> None:
    """+0.01 an update. Under noise of 0.02 the suspects pile up within 30 updates (the loss is then 0.3 up); under
    0.05 the window drifts along in half of the cases, and the divergence fires within 130 (10 % of the loss of 2.4,
    or ten MADs of a window that holds the ramp itself, and half of the 32 losses whose median is taken)."""
    for seed in range(6):
        losses, norms = quiet(1500, seed=seed, noise=noise, scale=scale)
        losses[1000:] += 0.01 * np.arange(500)
        fired = watch(losses, norms).fired()
        assert fired is not None
        assert 1000 < fired[0] <= 1000 + late


def test_a_drift_too_slow_for_the_window_is_a_divergence() -> None:
    """+0.001 an update: the window drifts along, but the best median stays."""
    losses, norms = quiet(8000)
    losses[4000:] += 0.001 * np.arange(4000)
    fired = watch(losses, norms).fired()
    assert fired is not None
    assert fired[1] == DIVERGENCE
    # It takes 10 % of 2.3 or ten MADs of 0.034 (0.34), whichever is more, plus half of 32 updates.
    assert 4230 < fired[0] < 4480


@pytest.mark.parametrize("bad", [np.nan, np.inf, 50.0])
def test_one_lone_spike_is_left_out_and_triggers_nothing(bad: float) -> None:
    losses, norms = quiet(1000)
    losses[500] = bad
    norms[500] = 100
    found = watch(losses, norms)
    assert found.metrics["suspect"].nonzero()[0].tolist() == [500]
    assert found.fired() is None
    without = watch(np.delete(losses, 500), np.delete(norms, 500))
    jax.tree.map(np.testing.assert_array_equal, found.state, without.state)  # to the bit: as if it had never been


@pytest.mark.parametrize("quiet_batches", [64, pytest.param(500, marks=pytest.mark.slow)])
def test_the_spike_of_bloom_176b_fires(quiet_batches: int) -> None:
    """2.60 with ten times the norm is a hard suspect (third batch of the trace), so are 145 and 960 with 2.35 and 5.10
    (fifth and sixth). 15.9 comes with an ordinary loss, 2.24: where the noise before is small enough for 2 deviations
    it is hard too and the second in a row, so it fires at the fourth batch, else at the sixth."""
    at = []
    for seed in range(20):
        losses, norms = BLOOM["trace"](quiet=quiet_batches, seed=seed)
        found = watch(losses, norms)
        fired = found.fired()
        assert fired is not None
        at.append(fired[0] - quiet_batches + 1)
        assert not found.metrics["suspect"][: quiet_batches + 2].any()
        assert found.metrics["suspect"][[-4, -2, -1]].all()
    assert set(at) == {4, 6}


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "jump", "suspect"), [(7, -100.0, False), (8, -100.0, True), (64, -0.5, False)])
def test_a_loss_far_too_low_is_a_hard_suspect_of_a_policy_only(seen: int, jump: float, suspect: bool) -> None:
    """Its loss is minus a reward: a leap of it by more than 20 deviations is no learning."""
    losses = 3 + 0.05 * np.random.default_rng(1).standard_normal(seen)
    window = watch(losses).state.window
    arguments = jnp.float32(3 + jump), jnp.float32(0), jnp.bool_(True), jnp.int32(0), GUARD
    for two_sided in (False, True):
        signs = detector.assess(window, *arguments, two_sided=two_sided)
        assert bool(signs.suspect) == bool(signs.hard) == (suspect and two_sided)
    values = {"loss": 3 + jump, "grad_norm": 1.0, "param_norm": 1.0, "z_loss": float(signs.z_loss)}
    assert detector.reason(values, GUARD) == "loss"
