import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from lmjax.config import CausalConfig
from lmjax.models.bert import Outputs
from lmjax.objectives import losses as objectives
from tests import FIXTURES

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


@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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


# ---- The other objectives: the model hands out its parameters as logits --------------------------------------------


class Pairs(Table):
    def __call__(self, source_BS, inputs_BT, *, source_mask_BS, train=False):
        return Table.__call__(self, inputs_BT, train=train)


class Masks(nn.Module):
    """Logits of 5 tokens at 3 places of 4 rows, and of the next sentence."""

    @nn.compact
    def __call__(self, inputs_BT, *, kinds_BT, real_BT, places_BP, train=False):
        rows = inputs_BT[:, 0]
        shapes = {"tokens": (4, 3, 5), "next": (4, 2)}
        logits = [jnp.asarray(self.param(name, nn.initializers.zeros, shape)) for name, shape in shapes.items()]
        return Outputs(inputs_BT, inputs_BT, *(x[rows] for x in logits))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.slow
def test_smoothed_translation_equals_its_closed_form_and_pytorch():
    """sum over tokens of -(1 - s) log p(target) - s mean of log p (Szegedy et al. 2016, section 7)."""
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(0, 2, (2, 5, 7)).astype(np.float32), rng.integers(0, 7, (2, 5)).astype(np.int32)
    weights = (np.arange(5) < [[5], [3]]).astype(np.float32)
    batch = {"source_BS": targets, "inputs_BT": targets, "targets_BT": targets, "weights_BT": weights}
    batch["source_mask_BS"] = weights
    call = partial(objectives.translation, Pairs(logits.shape), {"logits": logits}, train=False)
    smoothed, plain = jax.jit(lambda b: [call(b, label_smoothing=share) for share in (0.1, 0.0)])(batch)
    loss, weight, sums = smoothed
    log_p = log_softmax(logits)
    target = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    expected = -(weights * (0.9 * target + 0.1 * log_p.mean(-1))).sum()
    hits = weights * (logits.argmax(-1) == targets)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)  # float32
    np.testing.assert_allclose(sums["cross_entropy"], -(weights * target).sum(), rtol=1e-6)
    assert (weight, sums["accuracy"]) == (8, hits.sum())
    assert plain[0] == sums["cross_entropy"]
    rows, of_rows = objectives.translation_by_row(Pairs(logits.shape), {"logits": logits}, batch)
    np.testing.assert_allclose(rows, -(weights * target).sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(of_rows, weights.sum(-1))
    torch = pytest.importorskip("torch")
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    losses = theirs(torch.tensor(logits).reshape(-1, 7), torch.tensor(targets, dtype=torch.long).reshape(-1))
    np.testing.assert_allclose(loss, (losses.numpy() * weights.ravel()).sum(), rtol=1e-6)


def test_classes_are_weighed_and_smoothed():
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 2, (6, 3)).astype(np.float32), rng.integers(0, 3, 6).astype(np.int32)
    weights = np.asarray([1, 1, 0, 1, 0, 1], np.float32)
    loss, hits = objectives.classified(logits, labels, weights, label_smoothing=0.3)
    log_p = log_softmax(logits)
    expected = -(weights * (0.7 * log_p[np.arange(6), labels] + 0.3 * log_p.mean(-1))).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)  # float32
    assert hits == (weights * (logits.argmax(-1) == labels)).sum()


def test_masked_tokens_and_the_next_sentence_in_any_portions():
    """Each row's next-sentence loss counts once for every place that it has, so that portions add up to the whole."""
    rng = np.random.default_rng(5)
    params = {
        name: rng.normal(0, 2, shape).astype(np.float32) for name, shape in (("tokens", (4, 3, 5)), ("next", (4, 2)))
    }
    targets, follows = rng.integers(0, 5, (4, 3)).astype(np.int32), rng.integers(0, 2, 4).astype(np.int32)
    weights, real = (np.arange(3) < [[3], [1], [2], [0]]).astype(np.float32), np.asarray([1, 1, 1, 0], np.float32)
    inputs = np.arange(4, dtype=np.int32)[:, None]
    batch = dict.fromkeys(("inputs_BT", "kinds_BT", "real_BT", "places_BP"), inputs)
    batch |= {"targets_BP": targets, "weights_BP": weights, "next_B": follows, "rows_B": real}
    parts = [{name: x[some] for name, x in batch.items()} for some in (slice(0, 1), slice(1, 4))]
    measure = partial(objectives.masked, Masks(), params, train=False)
    (loss, weight, sums), *split = jax.jit(lambda *batches: [measure(each) for each in batches])(batch, *parts)
    masked = -(weights * np.take_along_axis(log_softmax(params["tokens"]), targets[..., None], -1)[..., 0]).sum()
    following = -(real * log_softmax(params["next"])[np.arange(4), follows]).sum()
    hits = (real * (params["next"].argmax(-1) == follows)).sum()
    expected = {"masked_loss": masked, "next_loss": following, "next_accuracy": hits, "next_rows": 3}
    expected["masked_accuracy"] = (weights * (params["tokens"].argmax(-1) == targets)).sum()
    assert weight == 6
    np.testing.assert_allclose(loss, masked + 3 * following, rtol=1e-6)  # float32
    assert {name: float(x) for name, x in sums.items()} == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(np.sum([part[:2] for part in split], axis=0), (loss, weight), rtol=1e-6)


def test_the_penalty_pulls_matrices_and_embeddings_to_zero():
    """Its gradient is 2 x penalty x weight x the parameter; biases and scales go free (Bengio et al. 2003)."""
    inputs, _ = given("fixture")
    batch, rng = as_batch(inputs), np.random.default_rng(6)
    others = {"head": {"kernel": (3, 4), "bias": (4,)}, "token": {"embedding": (5, 2)}, "norm": {"scale": (3,)}}
    params = jax.tree.map(
        lambda s: rng.normal(size=s).astype(np.float32), others, is_leaf=lambda x: isinstance(x, tuple)
    )
    params["logits"] = inputs["logits"]

    def total(params, penalty):
        config = CausalConfig(penalty=penalty)
        return objectives.causal(Table(inputs["logits"].shape), params, batch, config=config, train=False)[0]

    without, with_it = jax.jit(lambda p: [jax.grad(total)(p, penalty) for penalty in (0.0, 0.25)])(params)
    weight = inputs["weights"].sum()
    for part, leaves in others.items():
        for name in leaves:
            pull = 0.5 * weight * params[part][name] if name in ("kernel", "embedding") else 0
            np.testing.assert_allclose(with_it[part][name], pull + without[part][name], rtol=1e-6)  # float32
    np.testing.assert_array_equal(with_it["logits"], without["logits"])
