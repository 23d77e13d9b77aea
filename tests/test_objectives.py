import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from lmjax import objectives
from lmjax.config import CausalConfig

FIXTURES = Path(__file__).parent / "fixtures"
WITHOUT_Z, WITH_Z = CausalConfig(), CausalConfig(z_loss=1e-2)


class Table(nn.Module):
    """The logits are the parameters, so that a gradient of the loss is one of the logits."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs_BT, *, segments_BT=None, positions_BT=None, train=False):
        logits_BTV = self.param("logits", nn.initializers.zeros, self.shape)
        return nn.Dropout(0.5, deterministic=not train)(logits_BTV) if train else logits_BTV


class Recorder(nn.Module):
    @nn.compact
    def __call__(self, inputs_BT, *, segments_BT=None, positions_BT=None, train=False):
        assert segments_BT is not None
        assert positions_BT is not None
        return (inputs_BT + 10 * segments_BT + 100 * positions_BT)[..., None] * jnp.arange(3.0)


def given(source: str):
    """(inputs, what PyTorch makes of them): committed, or computed now where torch is installed."""
    spec = importlib.util.spec_from_file_location("objectives_torch", FIXTURES / "objectives_torch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if source == "live":
        pytest.importorskip("torch")
        return module.inputs(), module.make()
    with np.load(FIXTURES / "objectives_torch.npz", allow_pickle=False) as file:
        return module.inputs(), dict(file)


def as_batch(inputs):
    names = {"inputs_BT": "targets", "targets_BT": "targets", "weights_BT": "weights"}
    return {name: jnp.asarray(inputs[key]) for name, key in names.items()}


@pytest.mark.parametrize("source", ["fixture", "live"])
def test_loss_and_gradient_equal_pytorch(source):
    inputs, expected = given(source)
    model, batch = Table(inputs["logits"].shape), as_batch(inputs)

    def total(params):
        loss, weight, metrics = objectives.causal(model, params, batch, config=WITH_Z, train=False)
        return loss, (weight, metrics)

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (loss, (weight, metrics)), gradient = run({"logits": jnp.asarray(inputs["logits"])})
    # float32 against PyTorch's float64; the logits reach thousands.
    np.testing.assert_allclose(loss, expected["total"], rtol=1e-6)
    np.testing.assert_allclose(gradient["logits"], expected["gradient"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(metrics["cross_entropy"], np.sum(inputs["weights"] * expected["loss"]), rtol=1e-6)
    assert weight == inputs["weights"].sum()
    assert metrics["accuracy"] == expected["accuracy"]


def test_loss_equals_numpy_in_float64():
    inputs, _ = given("fixture")
    logits = inputs["logits"].astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - peak).sum(-1)) + peak[..., 0]
    entropy = log_z - np.take_along_axis(logits, inputs["targets"][..., None], -1)[..., 0]
    model, params = Table(logits.shape), {"logits": jnp.asarray(inputs["logits"])}
    loss, _, _ = objectives.causal(model, params, as_batch(inputs), config=WITHOUT_Z, train=False)
    np.testing.assert_allclose(loss, (inputs["weights"] * entropy).sum(), rtol=1e-6)  # float32

    rows, weights = objectives.causal_by_row(model, params, as_batch(inputs))
    np.testing.assert_allclose(rows, (inputs["weights"] * entropy).sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(weights, inputs["weights"].sum(-1))


def test_gradient_of_both_outputs_equals_finite_differences():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = jnp.asarray(rng.standard_normal((2, 3, 5)))
        targets = jnp.asarray(rng.integers(0, 5, (2, 3)))
        check_grads(lambda x: objectives.log_z_and_target(x, targets), (logits,), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30])
def test_loss_is_finite_for_finite_logits(scale):
    logits = scale * jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 7)), jnp.float32)
    batch = {
        "inputs_BT": jnp.zeros((1, 4), jnp.int32),
        "targets_BT": jnp.arange(4)[None],
        "weights_BT": jnp.ones((1, 4)),
    }
    gradient, (loss, _, _) = jax.grad(
        lambda p: (lambda r: (r[0], r))(objectives.causal(Table((1, 4, 7)), p, batch, config=WITHOUT_Z, train=False)),
        has_aux=True,
    )({"logits": logits})
    assert np.isfinite(loss)
    assert np.isfinite(gradient["logits"]).all()


def test_tokens_of_weight_zero_count_nothing():
    inputs, _ = given("fixture")
    model, batch, logits = Table(inputs["logits"].shape), as_batch(inputs), jnp.asarray(inputs["logits"])
    counts = batch["weights_BT"] > 0
    other = batch | {"targets_BT": jnp.where(counts, batch["targets_BT"], 0)}
    noise = jnp.where(counts[..., None], logits, 17.0)
    first, second = (
        objectives.causal(model, {"logits": x}, b, config=WITH_Z, train=False)
        for b, x in ((batch, logits), (other, noise))
    )
    assert jax.tree.map(float, first) == jax.tree.map(float, second)


def test_segments_and_positions_reach_the_model():
    ones = jnp.ones((1, 2), jnp.int32)
    batch = {
        "inputs_BT": ones,
        "segments_BT": 2 * ones,
        "positions_BT": 3 * ones,
        "targets_BT": 0 * ones,
        "weights_BT": jnp.array([[1.0, 0.0]]),
    }
    loss, _, _ = objectives.causal(Recorder(), {}, batch, config=WITHOUT_Z, train=False)
    assert float(loss) == 642.0  # logits 0, 321, 642 and target 0


def test_dropout_depends_on_the_key_and_on_train():
    inputs, _ = given("fixture")
    model, batch = Table(inputs["logits"].shape), as_batch(inputs)

    def loss(train, seed):
        params = {"logits": jnp.asarray(inputs["logits"])}
        key = jax.random.key(seed)
        return float(objectives.causal(model, params, batch, rng=key, config=WITHOUT_Z, train=train)[0])

    assert loss(True, 0) == loss(True, 0) != loss(True, 1)
    assert loss(False, 0) == loss(False, 1)
