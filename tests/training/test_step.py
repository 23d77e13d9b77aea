import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lmjax import pytrees
from lmjax.config import CausalConfig, GPTConfig, GuardConfig, OptimizerConfig
from lmjax.guard import detector
from lmjax.models.gpt import GPT
from lmjax.objectives import losses as objectives
from lmjax.optim.optimizer import decay_mask, make_optimizer
from lmjax.training import step
from lmjax.training.state import State, init_state

V, T, ROWS, K = 11, 6, 3, 4


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, inputs_BT, *, train=False):
        x_BTD = nn.Embed(V, 8)(inputs_BT)
        return nn.Dense(V)(nn.gelu(nn.Dense(16)(x_BTD)))


def make_loss(model, z_loss=1e-3):
    causal = partial(objectives.causal, model, config=CausalConfig(z_loss=z_loss), train=True)
    return lambda params, microbatch, rng: causal(params, microbatch, rng=rng)


TINY = Tiny()
POISON = {"nan": V - 1, "inf": V - 2, "gradient": V - 3}  # tokens that break a microbatch
TRACES = []


def poisoned(params, microbatch, rng):
    """The causal loss of the tiny model, broken by the tokens of POISON."""
    TRACES.append(1)
    total, weight, sums = make_loss(TINY)(params, microbatch, rng)
    nan, inf, gradient = (jnp.any(microbatch["inputs_BT"] == token) for token in POISON.values())
    total += jnp.where(nan, jnp.nan, 0.0) + jnp.where(inf, jnp.inf, 0.0)
    # Zero, but finite only forwards if the factor is zero: the derivative of sqrt at 0 times 0.
    norm, factor = optax.tree.norm(params), jnp.where(gradient, 0.0, 1.0)
    total += jnp.sqrt(factor * norm) - factor * jnp.sqrt(norm)
    return total, weight, sums


@cache
def jitted(model, loss, optimizer, policy, ema):
    """(init, update), compiled once for all tests of the same shapes."""
    optimizer = optax.identity() if optimizer == "descent" else make_optimizer(OptimizerConfig(name=optimizer))
    update = step.make_update(loss, optimizer, guard=GuardConfig(policy=policy), ema=ema, seed=0)
    init = jax.jit(partial(init_state, model, optimizer, seed=0, ema=ema > 0, guard=GuardConfig()))
    return init, jax.jit(update, donate_argnums=0)


def build(model=TINY, *, loss=poisoned, optimizer="adamw", policy="skip", ema=0.75):
    """(a fresh state, the jitted update)."""
    init, update = jitted(model, loss, optimizer, policy, ema)
    return init(), update


def arrays(rows=K * ROWS, seed=0):
    """Rows with ragged masks: their weights differ, and some are zero throughout."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, min(POISON.values()), (rows, T + 1)).astype(np.int32)
    lengths = rng.integers(0, T + 1, rows)
    weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
    return {"inputs_BT": ids[:, :-1], "targets_BT": ids[:, 1:], "weights_BT": weights}


def batch(rows, *, microbatch, most, rate=0.01, **more):
    """The rows as microbatches; what lies behind them is poison that must not be read."""
    count = len(rows["inputs_BT"]) // microbatch
    padded = {}
    for name, array in rows.items():
        full = np.full((most, microbatch, *array.shape[1:]), np.nan if array.dtype == np.float32 else 0, array.dtype)
        full[:count] = array.reshape(count, microbatch, *array.shape[1:])
        padded[name] = jnp.asarray(full)
    return {"arrays": padded, "microbatches": jnp.int32(count), "learning_rate": jnp.float32(rate), **more}


def close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


SMALL_GPT = GPT(GPTConfig(layers=2, width=16, heads=2, context=T, vocab_size=V))


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY, pytest.param(SMALL_GPT, marks=pytest.mark.slow)], ids=["tiny", "gpt"])
def test_k_microbatches_equal_one_batch_of_k(model):
    loss = make_loss(model)
    for count in range(1, K + 1):
        rows = arrays(count * ROWS, seed=count)
        whole = {n: np.pad(a, ((0, (K - count) * ROWS), (0, 0))) for n, a in rows.items()}  # rows of weight zero
        results = []
        for given, size, most in ((rows, ROWS, K), (whole, K * ROWS, 1)):
            # Plain gradient descent: Adam would blow rounding up to its sign where a gradient is next to
            # zero.
            state, update = build(model, loss=loss, optimizer="descent", ema=0.0)
            results.append(update(state, batch(given, microbatch=size, most=most)))
        (state_1, metrics_1), (state_2, metrics_2) = results
        assert metrics_1["weight"] == rows["weights_BT"].sum() > 0
        close(state_1, state_2, 1e-6)
        close(metrics_1, metrics_2, 1e-6)


def test_update_equals_the_mathematics():
    """The gradient is that of the mean over tokens, not of the microbatch means; AdamW as optax has it."""
    rows = arrays()
    state, update = build()
    params = jax.tree.map(np.asarray, state.params)

    def mean(params):
        flat = jax.tree.map(jnp.asarray, rows)
        logits = Tiny().apply({"params": params}, flat["inputs_BT"])
        logp = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logp, flat["targets_BT"][..., None], -1)[..., 0]
        z = jax.nn.logsumexp(logits, -1)
        return jnp.sum(flat["weights_BT"] * (1e-3 * z**2 - picked)) / jnp.sum(flat["weights_BT"])

    loss, gradient = jax.jit(jax.value_and_grad(mean))(params)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.01, b1=0.9, b2=0.95, weight_decay=0.1, mask=decay_mask),
    )
    change, _ = jax.jit(reference.update)(gradient, reference.init(params), params)
    state, metrics = update(state, batch(rows, microbatch=ROWS, most=K))
    close(state.params, optax.apply_updates(params, change), 1e-6)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)
    assert metrics["update_norm"] == pytest.approx(float(optax.tree.norm(change)), rel=1e-6)
    assert metrics["param_norm"] == pytest.approx(float(optax.tree.norm(state.params)), rel=1e-6)
    assert metrics["cross_entropy"] < metrics["loss"]
    assert 0 <= metrics["accuracy"] <= 1
    assert (int(metrics["skipped"]), int(state.update)) == (0, 1)


def test_another_number_of_microbatches_or_rate_does_not_compile_again():
    state, update = build()
    counts = []
    for count in (1, 4, 2, 3):
        given = batch(arrays(count * ROWS), microbatch=ROWS, most=K, rate=0.01 * count)
        state, metrics = update(state, given)
        assert metrics["weight"] == given["arrays"]["weights_BT"][:count].sum()
        counts.append((len(TRACES), update._cache_size()))
    assert counts == [counts[0]] * 4
    assert int(state.update) == 4


def test_state_is_donated():
    state, update = build()
    after, _ = update(state, batch(arrays(), microbatch=ROWS, most=K))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert int(after.update) == 1


@pytest.mark.parametrize(("optimizer", "most"), [("adamw", K), pytest.param("muon", 1, marks=pytest.mark.slow)])
def test_a_loss_or_gradient_that_is_not_finite_changes_no_bit(optimizer, most):
    state, update = build(optimizer=optimizer)
    rows = arrays(most * ROWS)
    clean = batch(rows, microbatch=ROWS, most=most)
    state, metrics = update(state, clean)
    assert (int(metrics["skipped"]), int(state.update)) == (0, 1)
    before = pytrees.digest(state)
    for kind, token in POISON.items():
        rows["inputs_BT"][-1, 0] = token  # one token of the last microbatch
        for _ in range(2):
            state, metrics = update(state, batch(rows, microbatch=ROWS, most=most))
            assert int(metrics["skipped"]) == 1
            assert np.isfinite(metrics["loss"]) == (kind == "gradient")
            assert not np.isfinite(metrics["grad_norm"]) or kind != "gradient"
            assert pytrees.digest(state) == before
    state, metrics = update(state, clean)
    assert (int(metrics["skipped"]), int(state.update)) == (0, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_batch_made_for_another_update_is_not_applied_even_without_the_guard():
    state, update = build(policy="off")
    before = pytrees.digest(state)
    state, metrics = update(state, batch(arrays(), microbatch=ROWS, most=K, update=jnp.int32(1)))
    assert (int(metrics["skipped"]), pytrees.digest(state)) == (1, before)
    rows = arrays()
    rows["inputs_BT"][0, 0] = POISON["nan"]
    state, metrics = update(state, batch(rows, microbatch=ROWS, most=K, update=jnp.int32(0)))
    assert (int(metrics["skipped"]), int(state.update)) == (0, 1)


def test_a_batch_of_weight_zero_is_finite():
    state, update = build()
    rows = arrays()
    rows["weights_BT"][:] = 0
    state, metrics = update(state, batch(rows, microbatch=ROWS, most=K))
    assert float(metrics["loss"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_average_of_the_parameters():
    state, update = build()
    expected = jax.tree.map(np.asarray, state.params)
    for seed in range(4):
        state, _ = update(state, batch(arrays(seed=seed), microbatch=ROWS, most=K))
        expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.asarray(p), expected, state.params)
    close(state.ema, expected, 1e-6)  # float32


def test_random_keys_depend_on_update_and_microbatch_only():
    def loss(params, microbatch, rng):
        return jax.random.uniform(rng) + 0 * optax.tree.norm(params), jnp.float32(1), {}

    key, losses = jax.random.key(0), {}
    for count in (1, 2):
        state, update = build(loss=loss, optimizer="descent", ema=0.0)
        for u in range(2):
            state, metrics = update(state, batch(arrays(count * ROWS), microbatch=ROWS, most=2))
            keys = [jax.random.fold_in(jax.random.fold_in(key, u), i) for i in range(count)]
            expected = np.mean([jax.random.uniform(k) for k in keys])
            assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
            losses[count, u] = float(metrics["loss"])
    assert len(set(losses.values())) == 4


def test_update_is_deterministic():
    digests = set()
    for _ in range(2):
        state, update = build()
        for seed in range(3):
            state, _ = update(state, batch(arrays(seed=seed), microbatch=ROWS, most=K))
        digests.add(pytrees.digest(state))
    assert len(digests) == 1


def test_training_lowers_the_loss():
    state, update = build()
    rows, losses = arrays(), []
    for _ in range(60):
        state, metrics = update(state, batch(rows, microbatch=ROWS, most=K, rate=0.03))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]


def test_each_microbatch_goes_on_with_its_own_carry_and_a_suspect_batch_with_none():
    """The carry of a microbatch counts the tokens that it has seen; those that are not computed keep theirs."""

    def loss(params, microbatch, rng, carry):
        weights_BT, bad = microbatch["weights_BT"], jnp.any(microbatch["inputs_BT"] == POISON["nan"])
        total = params["w"] ** 2 * jnp.sum(weights_BT) + jnp.where(bad, jnp.nan, 0.0)
        return total, jnp.sum(weights_BT), {"seen": jnp.sum(carry)}, carry + weights_BT.sum(-1)

    carry, guard, params = (
        100 * np.arange(K * ROWS, dtype=np.float32).reshape(K, ROWS),
        GuardConfig(),
        {"w": jnp.ones(())},
    )
    update = jax.jit(step.make_update(loss, optax.identity(), guard=guard, seed=0))
    state = State(params, optax.EmptyState(), None, jnp.int32(0), detector.empty(guard), jnp.asarray(carry))
    expected = carry.copy()
    for count in (2, 4, 1):
        rows = arrays(count * ROWS, seed=count)
        seen = expected[:count].sum()
        expected[:count] += rows["weights_BT"].sum(-1).reshape(count, ROWS)
        state, metrics = update(state, batch(rows, microbatch=ROWS, most=K))
        np.testing.assert_array_equal(state.carry, expected)
        assert metrics["seen"] * metrics["weight"] == pytest.approx(seen, rel=1e-6)  # float32
    rows["inputs_BT"][0, 0] = POISON["nan"]
    state, metrics = update(state, batch(rows, microbatch=ROWS, most=K))
    assert int(metrics["skipped"]) == 1
    np.testing.assert_array_equal(state.carry, expected)


@pytest.mark.parametrize(
    ("ema", "warmup"),
    [(0.9, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.999, True), (0.9, False)))],
)
def test_the_weight_of_the_initial_parameters_in_the_average(ema, warmup):
    """The first update moves the parameters from 1 to 0: afterwards the average is the weight of the initial value."""
    guard = GuardConfig(policy="off")

    def loss(params, microbatch, rng):
        return params["w"] ** 2 / 2, jnp.float32(1), {}

    update = step.make_update(loss, optax.identity(), guard=guard, ema=ema, ema_warmup=warmup, seed=0)
    update = jax.jit(update)
    params = {"w": jnp.ones(())}
    state = State(params, optax.EmptyState(), params, jnp.int32(0), detector.empty(guard))
    one = {"arrays": {"x": np.ones((1, 1), np.float32)}, "microbatches": np.int32(1), "learning_rate": np.float32(1)}
    expected = 1.0
    for n in range(30):
        state, _ = update(state, one)
        expected *= min(ema, (1 + n) / (10 + n)) if warmup else ema
        assert float(state.ema["w"]) == pytest.approx(expected, rel=1e-5)  # a product of 30 float32
    if ema == 0.999:
        assert expected == pytest.approx(1 / math.comb(39, 9))
