from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.rl import advantages
from tests.fixtures import rl_references
from tests.rl.references import results

REWARDS = jnp.array([[-0.01, 0.02, 1, 0], [0, -0.03, 0.01, -0.5]])
VALUES = jnp.array([[0.2, 0.3, 0.5, 0], [0.1, -0.1, 0, -0.2]])
MASK = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
SCORES = jnp.array([1, 0, 0.5, 0])
ROUNDED = {"rtol": 0, "atol": 1.5e-6}  # the expected numbers have six decimals
UNWHITENED, UNWHITENED_MASK = jnp.array([[1.0, 2, 3, 9], [0, -1, 9, 9]]), jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])


@cache
def examples():
    """The results of the examples by name, as one program."""

    def compute():
        settings = ((1, 0.95), (1, 1), (0.99, 0.9))
        estimates = {s: advantages.gae(REWARDS, VALUES, MASK, discount=s[0], decay=s[1]) for s in settings}
        whiten = partial(advantages.whiten, UNWHITENED, UNWHITENED_MASK)
        return {
            "gae": [estimates[s] for s in settings],
            "gae whitened": advantages.whiten(estimates[1, 0.95][0], MASK, unbiased=True),
            "whitened": [whiten(), whiten(unbiased=True), whiten(shift_mean=False, unbiased=True)],
            "scaled": [advantages.scaled_in_group(SCORES, group=4, epsilon=epsilon) for epsilon in (1e-4, 1e-6)],
            "centred": advantages.centred_in_group(SCORES, group=4),
            "leave one out": advantages.leave_one_out(SCORES, group=4),
        }

    return jax.jit(compute)()


# ---- Rewards -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_score_is_added_at_the_last_real_token():
    """A row may be full, may have padding on either side, and may be blank."""
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    log_ratios = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.nan], [jnp.inf, 2.0, 3.0], [7.0, 7.0, 7.0]])
    rewards = advantages.token_rewards(jnp.array([10.0, 20.0, 30.0, 40.0]), log_ratios, mask, coefficient=0.1)
    expected = [[-0.1, -0.2, 9.7], [-0.1, 19.8, 0], [0, -0.2, 29.7], [0, 0, 0]]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


@pytest.mark.slow
def test_an_answer_that_does_not_end_is_penalized():
    scores, ended = jnp.array([3.0, 2.0, -5.0]), jnp.array([1, 0, 0])
    np.testing.assert_array_equal(advantages.replace_unfinished(scores, ended, score=-1.0), [3, -1, -1])
    np.testing.assert_array_equal(advantages.penalize_unfinished(scores, ended, penalty=1.5), [3, 0.5, -6.5])


@pytest.mark.slow
def test_the_adaptive_coefficient_equals_a_calculation_by_hand():
    """512 answers of a horizon of 10,000: the largest change is 0.2 * 0.0512 = 1.024 %."""
    settings = {"episodes": 512, "target": 6.0, "horizon": 10_000.0}
    for kl, expected in ((6.0, 0.15), (6.6, 0.150768), (12.0, 0.151536), (60.0, 0.151536), (0.0, 0.148464)):
        np.testing.assert_allclose(advantages.adapt_coefficient(0.15, kl, **settings), expected, rtol=1e-6)
    coefficient = jnp.float32(0.15)
    for kl in (12.0, 6.6, 3.0):
        coefficient = advantages.adapt_coefficient(coefficient, kl, **settings)
    np.testing.assert_allclose(coefficient, 0.15 * 1.01024 * 1.00512 * 0.98976, rtol=1e-6)


# ---- Advantages of tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected", "returns"),
    [
        (
            *(0, [[0.750250, 0.695, 0.5, 0], [-0.562187, -0.381250, -0.475, -0.3]]),
            [[0.950250, 0.995, 1, 0], [-0.462187, -0.481250, -0.475, -0.5]],
        ),
        (1, [[0.81, 0.72, 0.5, 0], [-0.62, -0.42, -0.49, -0.3]], None),
        (2, [[0.675505, 0.660500, 0.5, 0], [-0.498084, -0.335672, -0.455300, -0.3]], None),
    ],
)
def test_gae_of_the_example(setting, expected, returns):
    """Of discount 1 and decay 0.95, of 1 and 1, of 0.99 and 0.9."""
    estimated, targets = examples()["gae"][setting]
    np.testing.assert_allclose(estimated, expected, **ROUNDED)
    np.testing.assert_allclose(targets, returns or np.array(expected) + np.asarray(VALUES), **ROUNDED)


def gae_loop(rewards, values, mask, discount, decay):
    """Sums of discounted differences over the real tokens, in float64."""
    result = np.zeros(values.shape)
    for row, real in enumerate(mask.astype(bool)):
        reward, value = rewards[row][real], np.append(values[row][real], 0.0)
        difference = reward + discount * value[1:] - value[:-1]
        powers = (discount * decay) ** np.arange(len(reward))
        result[row][real] = [difference[t:] @ powers[: len(reward) - t] for t in range(len(reward))]
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_a_loop(discount, decay):
    """Rows with padding on both sides and in the middle, a full row and a blank one; padding is NaN."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 6, 9)).astype(np.float32)
    mask = rng.random((6, 9)) < 0.6
    mask[0], mask[1] = True, False
    nan = np.where(mask, 0, np.nan)
    given = (jnp.asarray(x, jnp.float32) for x in (rewards + nan, values + nan))
    estimated, returns = advantages.gae(*given, jnp.asarray(mask), discount=discount, decay=decay)
    expected = gae_loop(rewards, values, mask, discount, decay)
    np.testing.assert_allclose(estimated, expected, rtol=1e-5, atol=2e-6)  # float32, sums of up to 9 numbers
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_gae_and_whitening_equal_tunix():
    given, expected = rl_references.inputs(), results("fixture")
    mask = jnp.asarray(given["mask"])
    rewards, values = jnp.asarray(given["rewards"]), jnp.asarray(given["values"])
    estimated, returns = advantages.gae(rewards, values, mask, discount=0.99, decay=0.9)
    close = {"rtol": 1e-5, "atol": 1e-6}  # both float32
    real = given["mask"]
    np.testing.assert_allclose(np.asarray(returns)[real], expected["tunix_gae_returns"][real], **close)
    whitened = np.asarray(advantages.whiten(estimated, mask, unbiased=True))
    np.testing.assert_allclose(whitened[real], expected["tunix_gae_whitened"][real], **close)
    whitened = np.asarray(advantages.whiten(values, mask, unbiased=True))
    np.testing.assert_allclose(whitened[real], expected["tunix_whitened"][real], **close)


def test_whitening_of_the_examples():
    expected = [[1.223452, 1.129288, 0.796943, 0], [-1.013378, -0.705000, -0.864781, -0.566523]]
    np.testing.assert_allclose(examples()["gae whitened"], expected, **ROUNDED)
    by_n, by_less, with_mean = examples()["whitened"]
    unbiased = np.array([[0, 0.632456, 1.264911, 0], [-0.632456, -1.264911, 0, 0]])
    np.testing.assert_allclose(by_less, unbiased, **ROUNDED)
    np.testing.assert_allclose(by_n, unbiased * np.sqrt(2.5 / 2), **ROUNDED)
    np.testing.assert_allclose(with_mean, unbiased + np.asarray(UNWHITENED_MASK), **ROUNDED)


@pytest.mark.slow
def test_whitening_does_not_depend_on_shift_and_scale():
    rng = np.random.default_rng(0)
    x, mask = jnp.asarray(rng.normal(2, 3, (5, 7)), jnp.float32), jnp.asarray(rng.random((5, 7)) < 0.6)
    whitened = advantages.whiten(x, mask)
    real = np.asarray(whitened)[np.asarray(mask)]
    np.testing.assert_allclose([real.mean(), real.var()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(advantages.whiten(50 * x - 7, mask), whitened, atol=1e-5)  # float32
    np.testing.assert_allclose(advantages.whiten(-x, mask), -whitened, atol=1e-6)
    np.testing.assert_allclose(advantages.whiten(whitened, mask), whitened, atol=1e-6)
    kept = np.asarray(advantages.whiten(x, mask, shift_mean=False))[np.asarray(mask)]
    np.testing.assert_allclose(kept - real, np.asarray(x)[np.asarray(mask)].mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("unbiased", [False, True])
def test_whitening_of_one_number_or_none_is_finite(unbiased):
    mask = jnp.array([[0, 1, 0]])
    np.testing.assert_array_equal(advantages.whiten(jnp.array([[1.0, 5, 9]]), mask, unbiased=unbiased), 0)
    np.testing.assert_array_equal(advantages.whiten(jnp.array([[1.0, 5, 9]]), 0 * mask, unbiased=unbiased), 0)


# ---- Advantages of answers -----------------------------------------------------------------------------------


def test_group_advantages_of_the_example():
    scaled = [[1.305310, -0.783186, 0.261062, -0.783186], [1.305580, -0.783348, 0.261116, -0.783348]]
    np.testing.assert_allclose(examples()["scaled"], scaled, **ROUNDED)
    np.testing.assert_allclose(examples()["centred"], [0.625, -0.375, 0.125, -0.375], **ROUNDED)
    np.testing.assert_allclose(examples()["leave one out"], [0.833333, -0.5, 0.166667, -0.5], **ROUNDED)


@pytest.mark.slow
def test_group_advantages_equal_tunix():
    given, expected = rl_references.inputs(), results("fixture")
    scores, group = jnp.asarray(given["scores"]), rl_references.GROUP
    close = {"rtol": 1e-6, "atol": 1e-6}
    scaled = advantages.scaled_in_group(scores, group=group, floor=0, epsilon=1e-6)
    np.testing.assert_allclose(scaled, expected["tunix_scaled"], **close)
    np.testing.assert_allclose(advantages.centred_in_group(scores, group=group), expected["tunix_centred"], **close)
    np.testing.assert_allclose(advantages.leave_one_out(scores, group=group), expected["tunix_leave_one_out"], **close)


@pytest.mark.slow
def test_adjacent_rows_are_a_group():
    scores = jnp.array([1.0, 3.0, 10.0, 20.0])
    np.testing.assert_allclose(advantages.centred_in_group(scores, group=2), [-1, 1, -5, 5])
    np.testing.assert_allclose(advantages.leave_one_out(scores, group=2), [-2, 2, -10, 10])
    np.testing.assert_allclose(advantages.group_deviation(scores, group=2), np.sqrt([2, 50]), rtol=1e-6)


@pytest.mark.slow
def test_rounding_errors_of_equal_scores_are_not_magnified():
    """Scores that differ by 1e-7: without a floor their advantages would be as large as those of the second group."""
    scores = jnp.array([0.1, 0.1, 0.1, 0.1 + 1e-7, 0, 0, 1, 1], jnp.float32)
    scaled = np.asarray(advantages.scaled_in_group(scores, group=4))
    assert np.abs(scaled[:4]).max() < 1e-3
    np.testing.assert_allclose(np.abs(scaled[4:]), 0.5 / np.sqrt(1 / 3), rtol=1e-6)
    without = np.asarray(advantages.scaled_in_group(scores, group=4, floor=0))
    assert np.abs(without[:4]).max() > 0.5
    assert advantages.share_without_signal(scores, group=4) == 0.5
