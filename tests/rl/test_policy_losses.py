from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lmjax.rl import policy_losses
from tests.fixtures import rl_references
from tests.rl.references import SOURCES, results

MASK = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
OLD = jnp.array([[-1, -2, -0.5, 0], [-0.7, -0.2, -1.5, -0.9]])
NEW = jnp.array([[-0.8, -2.3, -0.45, 0], [-0.9, -0.2, -1.1, -1.3]])
ADVANTAGES = jnp.array([[1.223452, 1.129288, 0.796943, 0], [-1.013378, -0.705000, -0.864781, -0.566523]])
VALUES = jnp.array([[0.5, 0.3, 0.6, 0], [0.1, 0.4, 0, -0.5]])
OLD_VALUES = jnp.array([[0.2, 0.3, 0.5, 0], [0.1, -0.1, 0, -0.2]])
RETURNS = jnp.array([[0.950250, 0.995, 1, 0], [-0.462187, -0.481250, -0.475, -0.5]])
ROUNDED = {"rtol": 0, "atol": 1.5e-6}  # the expected numbers have six decimals

# Four answers of different lengths to one prompt.
GROUP_MASK = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
GROUP_ADVANTAGES = jnp.array([1.305310, -0.783186, 0.261062, -0.783186])
GROUP_NEW = jnp.array([[-1, -0.5, -2], [-0.3, -1.2, 0], [-0.8, -0.8, -0.8], [-1.5, 0, 0]])
GROUP_OLD = jnp.array([[-1.1, -0.9, -2], [-0.3, -1, 0], [-0.9, -0.7, -0.8], [-1, 0, 0]])
REFERENCE = jnp.array([[-1.2, -0.7, -1.9], [-0.4, -1.1, 0], [-0.8, -0.9, -0.7], [-1.3, 0, 0]])


def mean(loss, name=None):
    return loss.loss / loss.weight if name is None else loss.sums[name] / loss.sums["tokens"]


def grouped(**settings):
    return policy_losses.group_policy_loss(GROUP_NEW, GROUP_OLD, GROUP_ADVANTAGES, GROUP_MASK, width=3, **settings)


@cache
def examples():
    """The losses of the examples by name, as one program."""

    def compute():
        averages = ("sequence", "token", "constant")
        settings = {"average": "sequence", "reference_BT": REFERENCE, "coefficient": 0.04}
        return {
            "policy": policy_losses.policy_loss(NEW, OLD, ADVANTAGES, MASK),
            "value": policy_losses.value_loss(VALUES, OLD_VALUES, RETURNS, MASK),
            "value without clip": policy_losses.value_loss(VALUES, OLD_VALUES, RETURNS, MASK, clip=None),
            "measured": grouped(average="token", reference_BT=REFERENCE),
            **{average: grouped(average=average) for average in averages},
            **{kl: grouped(kl=kl, **settings) for kl in ("k3", "k3_ratio")},
        }

    return jax.jit(compute)()


# ---- PPO -----------------------------------------------------------------------------------------------------


def test_policy_loss_of_the_example():
    loss = examples()["policy"]
    assert loss.weight == loss.sums["tokens"] == 7
    np.testing.assert_allclose(mean(loss), 0.019352, **ROUNDED)
    np.testing.assert_allclose(mean(loss, "clipped"), 2 / 7, rtol=1e-6)
    np.testing.assert_allclose(mean(loss, "approximate_kl"), 0.035179, **ROUNDED)
    ratio = np.exp(np.asarray(NEW) - np.asarray(OLD))[np.asarray(MASK, bool)].mean()
    np.testing.assert_allclose(mean(loss, "ratio"), ratio, rtol=1e-6)


def test_value_loss_of_the_example():
    """The value of old + 0.2 and old - 0.2 limits it; without a clip it is half the mean square."""
    loss, plain = examples()["value"], examples()["value without clip"]
    np.testing.assert_allclose(mean(loss), 0.162434, **ROUNDED)
    assert loss.weight == 7
    errors = (np.asarray(VALUES) - np.asarray(RETURNS))[np.asarray(MASK, bool)]
    np.testing.assert_allclose(mean(plain), 0.5 * np.mean(errors**2), rtol=1e-6)
    assert plain.sums["value_clipped"] == 0
    # 0.5 to 0.4 is further from 0.95025; -0.5 to -0.4 is further from -0.5; 0.4 to 0.1 is nearer to -0.48125.
    assert loss.sums["value_clipped"] == 2


@pytest.mark.slow
def test_gradient_of_the_first_minibatch_is_that_of_the_policy_gradient():
    """The ratio is 1: the loss is -mean(A), its gradient -A / tokens, nothing is clipped."""

    def loss_of(new):
        loss = policy_losses.policy_loss(new, OLD, ADVANTAGES, MASK)
        return mean(loss), loss

    (value, loss), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(OLD)
    np.testing.assert_allclose(value, -np.sum(ADVANTAGES) / 7, atol=1e-6)
    np.testing.assert_allclose(gradient, -ADVANTAGES / 7, rtol=1e-6)
    assert (loss.sums["clipped"], loss.sums["approximate_kl"], mean(loss, "ratio")) == (0, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "clipped"), [(1.0, [0, 0, 0, 0, 1]), (-1.0, [1, 0, 0, 0, 0]), (0.0, [0] * 5)])
def test_only_the_rewarded_direction_is_clipped(advantage, clipped):
    """Ratios of 0.75, 0.9, 1, 1.25, 1.35 with a clip of 0.2 below and 0.28 above."""
    new = jnp.log(jnp.array([[0.75, 0.9, 1.0, 1.25, 1.35]]))
    old, mask, a = jnp.zeros((1, 5)), jnp.ones((1, 5)), jnp.full((1, 1), advantage)

    def loss_of(new):
        loss = policy_losses.policy_loss(new, old, a, mask, clip_low=0.2, clip_high=0.28)
        return loss.loss, loss.sums["clipped"]

    (_, count), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(new)
    assert count == sum(clipped)
    expected = np.where(clipped, 0, -advantage * np.exp(np.asarray(new[0])))
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-6)


@pytest.mark.slow
def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.array([6, 2, 4])[:, None]
    with jax.enable_x64(True):
        new, old, reference, values, targets = (jnp.asarray(rng.normal(0, 0.3, (3, 6))) for _ in range(5))

        def total(new, values):
            group = policy_losses.group_policy_loss(
                *(new, old, jnp.array([1.0, -2.0, 0.5]), jnp.asarray(mask)),
                average="sequence",
                reference_BT=reference,
                coefficient=0.3,
            )
            return group.loss + policy_losses.value_loss(values, old, targets, jnp.asarray(mask)).loss

        check_grads(jax.jit(total), (new, values), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.slow
def test_only_the_policy_gets_a_gradient():
    def total(old, a, reference):
        loss = policy_losses.group_policy_loss(
            GROUP_NEW, old, a, GROUP_MASK, width=3, reference_BT=reference, coefficient=0.1
        )
        return loss.loss + policy_losses.value_loss(GROUP_NEW, old, reference, GROUP_MASK).loss

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(GROUP_OLD, GROUP_ADVANTAGES, REFERENCE):
        np.testing.assert_array_equal(gradient, 0)


# ---- GRPO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("average", "expected", "weight"),
    [("sequence", -0.090318, 4), ("token", -0.338791, 9), ("constant", -0.254093, 12)],
)
def test_group_loss_of_the_example(average, expected, weight):
    loss = examples()[average]
    np.testing.assert_allclose(mean(loss), expected, **ROUNDED)
    assert loss.weight == weight
    np.testing.assert_allclose(mean(loss, "clipped"), 2 / 9, rtol=1e-6)
    assert "kl" not in loss.sums


@pytest.mark.parametrize(
    ("kl", "expected", "divergence"), [("k3", -0.089879, 0.009339), ("k3_ratio", -0.089932, 0.009491)]
)
def test_group_loss_with_a_kl_term(kl, expected, divergence):
    """The value of the KL term differs little; its gradient is that of another divergence."""
    loss = examples()[kl]
    # The sum of the terms, averaged over sequences; the metric is averaged over tokens.
    np.testing.assert_allclose(mean(loss), expected, **ROUNDED)
    np.testing.assert_allclose(mean(loss, "kl"), divergence, **ROUNDED)


def test_a_reference_without_a_coefficient_is_measured_only():
    plain, measured = examples()["token"], examples()["measured"]
    assert measured.loss == plain.loss
    np.testing.assert_allclose(mean(measured, "kl"), 0.009339, **ROUNDED)


@pytest.mark.slow
def test_a_coefficient_needs_a_reference():
    with pytest.raises(AssertionError, match="reference"):
        grouped(coefficient=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", rl_references.AVERAGES)
@pytest.mark.parametrize(("beta", "corrected"), [(0.0, True), (rl_references.BETA, True), (rl_references.BETA, False)])
def test_group_loss_and_gradient_equal_trl(source, kind, beta, corrected):
    given, expected = rl_references.inputs(), results(source)
    settings = {"coefficient": beta, "kl": "k3_ratio" if corrected else "k3", "width": 7, "clip_high": 0.28}

    def loss_of(new):
        loss = policy_losses.group_policy_loss(
            *(new, jnp.asarray(given["old"]), jnp.asarray(given["scores"]), jnp.asarray(given["mask"])),
            reference_BT=jnp.asarray(given["reference"]),
            average=rl_references.AVERAGES[kind],
            **settings,
        )
        return mean(loss), loss

    (value, loss), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(jnp.asarray(given["new"]))
    name = f"trl_group_{kind}_{beta}_{corrected}"
    np.testing.assert_allclose(value, expected[f"{name}_loss"], rtol=1e-5)  # both float32
    np.testing.assert_allclose(gradient, expected[f"{name}_gradient"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mean(loss, "clipped"), expected[f"{name}_clipped"], rtol=1e-6)
    if beta:
        np.testing.assert_allclose(mean(loss, "kl"), expected[f"{name}_kl"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["sequence", "token", "constant"])
def test_a_row_without_tokens_counts_nowhere(average):
    mask = np.array(GROUP_MASK)
    mask[2] = 0
    loss_of = jax.jit(partial(policy_losses.group_policy_loss, average=average, width=3))
    blank = loss_of(GROUP_NEW, GROUP_OLD, GROUP_ADVANTAGES, mask)
    rows = np.array([0, 1, 3])
    arrays = (GROUP_NEW, GROUP_OLD, GROUP_ADVANTAGES, GROUP_MASK)
    without = loss_of(*(np.asarray(array)[rows] for array in arrays))
    np.testing.assert_allclose(blank.loss, without.loss, rtol=1e-6)
    assert blank.weight == without.weight
    assert blank.sums["tokens"] == without.sums["tokens"] == 6


@pytest.mark.slow
def test_the_constant_average_weighs_each_token_equally():
    """Two wrong answers of 1 and 4 tokens: a mean over each answer would push a token of the longer one a quarter."""
    new, mask = jnp.zeros((2, 4)), jnp.array([[1, 0, 0, 0], [1, 1, 1, 1]])

    def loss_of(new, average):
        return mean(
            policy_losses.group_policy_loss(new, new * 0, jnp.array([-1.0, -1.0]), mask, average=average, width=4)
        )

    gradient = jax.jit(jax.grad(loss_of), static_argnums=1)
    np.testing.assert_allclose(gradient(new, "constant"), np.asarray(mask) / 8)
    np.testing.assert_allclose(gradient(new, "token"), np.asarray(mask) / 5, rtol=1e-6)
    np.testing.assert_allclose(gradient(new, "sequence"), [[0.5, 0, 0, 0], [0.125] * 4])
