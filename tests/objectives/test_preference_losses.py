from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives import preference_losses
from tests.fixtures import rl_references
from tests.rl.references import SOURCES, results

ROUNDED = {"rtol": 0, "atol": 1.5e-6}  # the expected numbers have six decimals
ONES = jnp.ones(2)

# Two pairs of answers of 2 or 3 tokens.
CHOSEN = jnp.array([[-1, -2, -0.5], [-0.7, -0.9, jnp.nan]])
REJECTED = jnp.array([[-1.5, -2.5, -1], [-2, -0.4, -0.6]])
CHOSEN_REFERENCE = jnp.array([[-1.2, -2.1, -0.9], [-0.9, -1, jnp.nan]])
REJECTED_REFERENCE = jnp.array([[-1.4, -2, -0.8], [-1.8, -0.5, -0.5]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0]])


def log_ratios(average):
    """Of the preferred and the other answers."""
    sides = ((CHOSEN, CHOSEN_REFERENCE, MASK), (REJECTED, REJECTED_REFERENCE, jnp.ones((2, 3))))
    return [preference_losses.sequence_logprobs(p - q, mask, average=average) for p, q, mask in sides]


@cache
def examples():
    """The losses of the examples by name, as one program."""

    def compute():
        scores, nll = (jnp.array([1.2, 0.3]), jnp.array([0.5, 0.9]), ONES), -response_mean()
        reward = preference_losses.bradley_terry
        direct = partial(preference_losses.direct, weights_B=ONES, beta=0.1)
        sums, means = log_ratios(average=False), log_ratios(average=True)
        return {
            "difference": sums[0] - sums[1],
            "reward": reward(*scores),
            "centred": reward(*scores, centring=0.01),
            "ahead": reward(*scores, margins_B=jnp.array([0.5, 0.1])),
            "sigmoid": direct("sigmoid", *sums),
            "hinge": direct("hinge", *sums),
            "ipo": direct("ipo", *means),
            "robust": direct("robust", *sums, label_smoothing=0.1),
            "means": direct("sigmoid", *means, beta=2.0),
            "nll": direct("sigmoid", *sums, chosen_nll_B=nll, nll_coefficient=0.1),
        }

    return jax.jit(compute)()


def response_mean():
    return preference_losses.sequence_logprobs(CHOSEN, MASK, average=True)


def mean(loss, name=None):
    return (loss.loss if name is None else loss.sums[name]) / loss.weight


# ---- Reward model --------------------------------------------------------------------------------------------


def test_bradley_terry_of_the_example():
    loss = examples()["reward"]
    np.testing.assert_allclose(mean(loss), 0.720337, **ROUNDED)
    assert mean(loss, "accuracy") == 0.5
    np.testing.assert_allclose(mean(loss, "margin"), 0.05, **ROUNDED)
    np.testing.assert_allclose(mean(examples()["centred"]), 0.741987, **ROUNDED)
    np.testing.assert_allclose(mean(examples()["ahead"]), 0.850662, **ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("margin", "centring"), [(False, None), (True, None), (False, 0.01)])
def test_reward_loss_and_gradient_equal_trl(source, margin, centring):
    given, expected = rl_references.inputs(), results(source)
    margins = jnp.asarray(given["margins"]) if margin else None

    def loss_of(scores):
        chosen, rejected = jnp.split(scores, 2)
        return mean(
            preference_losses.bradley_terry(chosen, rejected, jnp.ones(3), margins_B=margins, centring=centring or 0.0)
        )

    value, gradient = jax.jit(jax.value_and_grad(loss_of))(jnp.asarray(given["scores"]))
    name = f"trl_reward_{margin}_{centring}"
    np.testing.assert_allclose(value, expected[f"{name}_loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[f"{name}_gradient"], rtol=1e-5, atol=1e-8)  # both float32


@pytest.mark.slow
def test_equal_scores_are_no_hit():
    loss = preference_losses.bradley_terry(jnp.array([1.0]), jnp.array([1.0]), jnp.ones(1))
    assert loss.sums["accuracy"] == 0
    np.testing.assert_allclose(loss.loss, np.log(2), rtol=1e-6)


@pytest.mark.slow
def test_large_differences_are_finite():
    scores = jnp.array([1e4, -1e4])
    run = jax.jit(jax.value_and_grad(lambda x: preference_losses.bradley_terry(x, -x, ONES).loss))
    value, gradient = run(scores)
    np.testing.assert_allclose([value, *gradient], [2e4, 0, -2], rtol=1e-6)


# ---- Direct preference optimization --------------------------------------------------------------------------


def test_the_differences_of_the_example():
    np.testing.assert_allclose(examples()["difference"], [1.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigmoid", 0.644708), ("hinge", 0.9), ("ipo", 21.565140), ("robust", 0.632208), ("means", 0.406517)],
)
def test_direct_losses_of_the_example(name, expected):
    np.testing.assert_allclose(mean(examples()[name]), expected, rtol=1e-6, atol=1.5e-6)


def test_implied_rewards_of_the_example():
    loss = examples()["sigmoid"]
    np.testing.assert_allclose(mean(loss, "chosen_reward"), 0.05, **ROUNDED)
    np.testing.assert_allclose(mean(loss, "rejected_reward"), -0.05, **ROUNDED)
    np.testing.assert_allclose(mean(loss, "margin"), 0.1, **ROUNDED)
    assert mean(loss, "accuracy") == 1


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", rl_references.DIRECT)
def test_direct_losses_and_gradients_equal_trl(source, kind):
    given, expected = rl_references.inputs(), results(source)
    mask, reference = jnp.asarray(given["mask"]), jnp.asarray(given["reference"])
    average = kind in ("ipo", "sigmoid_norm")
    settings = {"beta": rl_references.DIRECT[kind], "label_smoothing": 0.1 if kind == "robust" else 0.0}

    def loss_of(new):
        ratios = preference_losses.sequence_logprobs(new - reference, mask, average=average)
        loss = preference_losses.direct(kind.removesuffix("_norm"), *jnp.split(ratios, 2), jnp.ones(3), **settings)
        return mean(loss), loss

    (value, loss), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(jnp.asarray(given["new"]))
    name = f"trl_direct_{kind}"
    np.testing.assert_allclose(value, expected[f"{name}_loss"], rtol=1e-5)  # both float32
    real = given["mask"]  # TRL takes log-probabilities that are 0 at padding; its gradient there has no use
    np.testing.assert_allclose(np.asarray(gradient)[real], expected[f"{name}_gradient"][real], rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(np.asarray(gradient)[~real], 0)
    if not average:  # TRL reports the rewards of sums always
        rewards = [mean(loss, name) for name in ("chosen_reward", "rejected_reward", "accuracy")]
        np.testing.assert_allclose(rewards, expected[f"{name}_rewards"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sigmoid", "robust"])
def test_smoothed_labels_are_a_mixture(kind):
    """`sigmoid` mixes a label with its opposite; `robust` undoes the mixture that wrong labels make."""
    x, zero, one = jnp.array([0.7]), jnp.zeros(1), jnp.ones(1)
    right = preference_losses.direct("sigmoid", x, zero, one, beta=0.5).loss
    wrong = preference_losses.direct("sigmoid", zero, x, one, beta=0.5).loss
    if kind == "sigmoid":
        smoothed = preference_losses.direct("sigmoid", x, zero, one, beta=0.5, label_smoothing=0.2).loss
        np.testing.assert_allclose(smoothed, 0.8 * right + 0.2 * wrong, rtol=1e-6)
    else:
        sides = ((x, zero), (zero, x))
        robust = [preference_losses.direct(kind, *s, one, beta=0.5, label_smoothing=0.2).loss for s in sides]
        np.testing.assert_allclose(0.8 * robust[0] + 0.2 * robust[1], right, rtol=1e-6)


def test_the_term_of_supervised_learning():
    """The mean over the tokens of each preferred answer: 3.5 / 3 and 1.6 / 2."""
    loss = examples()["nll"]
    expected = (3.5 / 3 + 1.6 / 2) / 2
    np.testing.assert_allclose(mean(loss), mean(examples()["sigmoid"]) + 0.1 * expected, rtol=1e-6)
    np.testing.assert_allclose(mean(loss, "nll"), expected, rtol=1e-6)


# ---- Both ----------------------------------------------------------------------------------------------------


@jax.jit
def all_losses(chosen, rejected, weights):
    nll = jax.lax.stop_gradient(jnp.square(chosen))
    direct = [
        preference_losses.direct(kind, chosen, rejected, weights, beta=0.1, chosen_nll_B=nll, nll_coefficient=0.1)
        for kind in ("sigmoid", "ipo", "hinge")
    ]
    return [preference_losses.bradley_terry(chosen, rejected, weights, margins_B=nll, centring=0.1), *direct]


@pytest.mark.slow
def test_a_blank_row_has_no_effect():
    chosen, rejected = jnp.array([0.3, jnp.nan, -1.0]), jnp.array([-0.2, jnp.inf, 0.4])
    weights, rows = jnp.array([1.0, 0.0, 1.0]), np.array([0, 2])

    def total(chosen, rejected, weights):
        losses = all_losses(chosen, rejected, weights)
        return sum(loss.loss for loss in losses), losses

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, blank), gradient = run(chosen, rejected, weights)
    (_, without), expected = run(chosen[rows], rejected[rows], weights[rows])
    for one, other in zip(jax.tree.leaves(blank), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(gradient, [expected[0], 0, expected[1]], rtol=1e-6)


@pytest.mark.slow
def test_microbatches_in_any_order_add_up_to_the_batch():
    chosen, rejected = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
    complete = all_losses(chosen, rejected, jnp.ones(6))
    parts = [all_losses(chosen[rows], rejected[rows], jnp.ones(2)) for rows in np.array([[5, 0], [3, 1], [2, 4]])]
    for one, *others in zip(*map(jax.tree.leaves, (complete, *parts)), strict=True):
        np.testing.assert_allclose(sum(others), one, rtol=1e-5, atol=1e-6)  # float32 sums
