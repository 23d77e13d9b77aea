from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.rl import estimates
from tests.fixtures import rl_references
from tests.rl.references import SOURCES, results

exact_kl = jax.jit(estimates.exact_kl)


@jax.jit
def token_logprobs(logits, targets, temperature):
    return estimates.token_logprobs(logits, targets, temperature=temperature)


@jax.jit
def entropy_of(logits, temperature):
    return estimates.entropy(logits, temperature=temperature)


def log_softmax(logits):
    """In float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl64(logits, reference):
    logp, logq = log_softmax(logits), log_softmax(reference)
    return np.sum(np.exp(logp) * (logp - logq), axis=-1)


# ---- From logits ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_logprobs_and_entropy_equal_trl(source):
    given, expected = rl_references.inputs(), results(source)
    logits, temperature = jnp.asarray(given["logits"]), rl_references.TEMPERATURE
    logprobs = token_logprobs(logits, given["targets"], temperature)
    np.testing.assert_allclose(logprobs, expected["trl_logprobs"], rtol=1e-6, atol=2e-6)  # float32, logits to 15
    entropy = entropy_of(logits, temperature)
    np.testing.assert_allclose(entropy, expected["trl_entropy"], rtol=1e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_logprobs_and_entropy_equal_numpy(temperature):
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, 7)).astype(np.float32)
    targets = np.array([[0, 6, 3], [2, 2, 5]])
    logp = log_softmax(logits / temperature)
    expected = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(token_logprobs(logits, targets, temperature), expected, rtol=1e-5)
    entropy = entropy_of(logits, temperature)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(logp) * logp, axis=-1), rtol=1e-5)


@pytest.mark.slow
def test_logits_in_half_precision_are_computed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (1, 2, 9)), jnp.bfloat16)
    logprobs = token_logprobs(logits, np.array([[1, 2]]), 0.7)
    assert logprobs.dtype == entropy_of(logits, 1.0).dtype == exact_kl(logits, logits).dtype == jnp.float32
    expected = log_softmax(np.asarray(logits, np.float64) / 0.7)
    np.testing.assert_allclose(logprobs[0], [expected[0, 0, 1], expected[0, 1, 2]], rtol=1e-6)


@pytest.mark.slow
def test_an_impossible_token_adds_nothing_to_entropy_and_divergence():
    logits, reference = jnp.array([[[1.0, 0.0, -jnp.inf]]]), jnp.array([[[0.0, 0.5, -jnp.inf]]])
    np.testing.assert_allclose(entropy_of(logits, 1.0), entropy_of(logits[..., :2], 1.0), rtol=1e-6)
    expected = exact_kl(logits[..., :2], reference[..., :2])
    np.testing.assert_allclose(exact_kl(logits, reference), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: (estimates.entropy(x) + estimates.exact_kl(x, reference)).sum()))(logits)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_a_token_that_only_the_reference_allows_or_forbids():
    """KL(p || q) counts a missing token of p, and is infinite for a missing token of q."""
    logits, reference = jnp.array([[[1.0, 0.0, -jnp.inf]]]), jnp.array([[[0.0, 0.5, 1.0]]])
    logp, logq = log_softmax([1.0, 0.0]), log_softmax([0.0, 0.5, 1.0])
    expected = np.sum(np.exp(logp) * (logp - logq[:2]))
    np.testing.assert_allclose(exact_kl(logits, reference), [[expected]], rtol=1e-6)
    assert exact_kl(reference, logits) == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("difference", [1e-6, 1e-4, 1e-2, 1.0, 100.0])
def test_exact_kl_equals_float64_also_where_it_is_tiny(difference):
    """The divergence grows with the square of the difference: from 1e-13 to 100."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, 5, 50)).astype(np.float32)
    # The addition in float32 rounds, so that the reference is what was added.
    reference = (logits + np.float32(difference) * rng.normal(size=logits.shape)).astype(np.float32)
    divergence = np.asarray(exact_kl(logits, reference))
    # An error of log Z of 1e-6 counts with its square. In the sum over p d it would count itself.
    np.testing.assert_allclose(divergence, kl64(logits, reference), rtol=1e-4, atol=1e-11)
    assert (divergence > -1e-13).all()


@pytest.mark.slow
def test_gradient_of_exact_kl_equals_the_closed_form():
    """d KL(p || q) / d logits = p (log(p / q) - KL)."""
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(0, 2, (2, 1, 3, 9)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: estimates.exact_kl(x, jnp.asarray(reference)).sum()))(jnp.asarray(logits))
    logp, logq = log_softmax(logits), log_softmax(reference)
    expected = np.exp(logp) * (logp - logq - kl64(logits, reference)[..., None])
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)  # float32


@pytest.mark.slow
def test_response_tokens_are_predicted_one_place_before():
    """A model that is sure of the next token: shifted by a place, its log-probabilities would be -50."""
    ids = np.random.default_rng(0).integers(0, 9, (2, 8))
    logits = 50.0 * np.eye(9)[np.roll(ids, -1, axis=1)]
    response = estimates.predicting(jnp.asarray(logits), prompt=3)
    logprobs = token_logprobs(response, ids[:, 3:], 1.0)
    assert logprobs.shape == (2, 5)
    np.testing.assert_allclose(logprobs, 0, atol=1e-6)


# ---- Estimators of the divergence ----------------------------------------------------------------------------


@pytest.mark.slow
def test_estimates_of_three_ratios():
    log_ratio = jnp.array([0.1, -0.2, 0.5])
    zero = jnp.zeros(3)
    np.testing.assert_allclose(estimates.kl_estimate("k1", log_ratio, zero), log_ratio)
    np.testing.assert_allclose(estimates.kl_estimate("k2", log_ratio, zero), [0.005, 0.02, 0.125], rtol=1e-6)
    np.testing.assert_allclose(estimates.kl_estimate("k3", log_ratio, zero), [0.004837, 0.021403, 0.106531], atol=1e-6)
    old = jnp.array([0.0, 0.1, 0.2])
    expected = np.exp(log_ratio - old) * np.array([0.004837, 0.021403, 0.106531])
    np.testing.assert_allclose(estimates.kl_estimate("k3_ratio", log_ratio, zero, old=old), expected, atol=1e-6)


@cache
def expectations():
    """(values, gradients) by estimator and sampling policy, and of both divergences; as one program."""
    policy, reference, old = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)

    def expectation(kind, sampler, logits):
        """Expected value of the estimator as a loss: the tokens are those of the sampler, all of them, by weight."""
        logp, logq, logs = (jax.nn.log_softmax(x) for x in (logits, reference, sampler))
        sampled_by = None if sampler is policy else logs
        return jnp.sum(jnp.exp(logs) * estimates.kl_estimate(kind, logp, logq, old=sampled_by))

    def compute():
        losses = {kind: partial(expectation, kind, policy) for kind in ("k1", "k2", "k3", "k3_ratio")}
        losses["k3_ratio of another"] = partial(expectation, "k3_ratio", old)
        losses["forward"] = lambda x: estimates.exact_kl(x, reference)
        losses["reverse"] = lambda x: estimates.exact_kl(reference, x)
        return {name: jax.value_and_grad(loss)(policy) for name, loss in losses.items()}

    return jax.jit(compute)()


def test_expected_values_of_the_estimators():
    """All but k2 are unbiased; of another sampler, only k3 times ratio is."""
    values = {name: value for name, (value, _) in expectations().items()}
    for name in ("k1", "k3", "k3_ratio", "k3_ratio of another"):
        np.testing.assert_allclose(values[name], values["forward"], rtol=1e-5, err_msg=name)  # float32
    assert abs(values["k2"] - values["forward"]) > 0.01


def test_expected_gradients_of_the_estimators():
    """k1: none. k2 and k3 times ratio: of KL(policy || reference). k3: of KL(reference || policy)."""
    gradients = {name: gradient for name, (_, gradient) in expectations().items()}
    assert np.abs(gradients["forward"] - gradients["reverse"]).max() > 0.05  # the test can tell the two apart
    close = {"rtol": 1e-5, "atol": 1e-6}  # float32
    np.testing.assert_allclose(gradients["k1"], 0, atol=1e-6)
    np.testing.assert_allclose(gradients["k2"], gradients["forward"], **close)
    np.testing.assert_allclose(gradients["k3"], gradients["reverse"], **close)
    np.testing.assert_allclose(gradients["k3_ratio"], gradients["forward"], **close)
    np.testing.assert_allclose(gradients["k3_ratio of another"], gradients["forward"], **close)


@pytest.mark.slow
def test_reference_and_old_policy_get_no_gradient():
    values = jnp.array([0.3, -0.2])
    for kind in ("k1", "k2", "k3", "k3_ratio"):
        gradient = jax.grad(lambda q, o, kind=kind: estimates.kl_estimate(kind, values, q, old=o).sum(), argnums=(0, 1))
        np.testing.assert_array_equal(gradient(values - 0.3, values + 0.1), np.zeros((2, 2)))


# ---- Masks and measurements ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_its_mean():
    x = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.inf, 9.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    assert estimates.masked_mean(x, mask, 3) == pytest.approx(7 / 3)
    parts = [estimates.masked_mean(x[i : i + 1], mask[i : i + 1], 3) for i in (0, 1)]
    assert sum(parts) == pytest.approx(7 / 3)
    assert estimates.masked_mean(x, 0 * mask, 0) == 0


@pytest.mark.slow
def test_the_last_token_is_found_from_the_mask():
    mask = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    expected = [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(estimates.last_token(mask), np.array(expected, bool))


@pytest.mark.slow
def test_explained_variance():
    rng = np.random.default_rng(0)
    returns, mask = rng.normal(3, 2, (4, 6)), rng.random((4, 6)) < 0.7
    values = returns + rng.normal(0, 1, returns.shape)
    expected = 1 - np.var((returns - values)[mask]) / np.var(returns[mask])
    garbage = np.where(mask, values, np.nan)
    explained = estimates.explained_variance(jnp.asarray(garbage), jnp.asarray(returns), jnp.asarray(mask))
    np.testing.assert_allclose(explained, expected, rtol=1e-5)
    assert estimates.explained_variance(jnp.asarray(returns), jnp.asarray(returns), jnp.asarray(mask)) == 1
    shifted = estimates.explained_variance(jnp.asarray(returns + 5), jnp.asarray(returns), jnp.asarray(mask))
    np.testing.assert_allclose(shifted, 1, atol=1e-6)  # a constant error is no variance
    assert estimates.explained_variance(jnp.asarray(values), jnp.ones((4, 6)), jnp.asarray(mask)) == 0
