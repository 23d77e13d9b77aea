"""Optimizers against PyTorch and their definitions; what decays, and what is frozen."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.config import BatchConfig, OptimizerConfig, ScheduleConfig, TrainConfig, UserError
from lmjax.optim import batch_plan, learning_rate, optimizer
from tests import FIXTURES


def torch_fixture(name: str, source: str):
    """(the module that makes it, its arrays): committed, or computed now where torch is installed."""
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if source == "live":
        pytest.importorskip("torch")
        return module, module.make()
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return module, dict(file)


# ---- Optimizer ---------------------------------------------------------------------------------------------


def follow(config: OptimizerConfig, params, gradients, rates):
    """The parameters after each update."""
    transformation = optimizer.make_optimizer(config)
    state, path = transformation.init(params), []
    step = jax.jit(transformation.update)
    for i, rate in enumerate(rates):
        direction, state = step(jax.tree.map(lambda g, i=i: g[i], gradients), state, params)
        params = jax.tree.map(lambda p, d, rate=rate: p - np.float32(rate) * d, params, direction)
        path.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *path)


@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_20_updates_equal_pytorch(name, source):
    module, expected = torch_fixture("optim_torch", source)
    given = module.inputs()
    norms = np.sqrt(sum(np.square(given[f"gradient_{n}"]).reshape(20, -1).sum(-1) for n in module.SHAPES))
    assert norms.min() < 1 < norms.max()
    plan = batch_plan.batch_plan(BatchConfig(tokens=((0, 64),), microbatch=4), TrainConfig(updates=20), 16)
    schedule = ScheduleConfig(peak=module.PEAK, warmup=module.WARMUP / 20, final=module.FINAL)
    rates = learning_rate.learning_rates(schedule, plan)
    np.testing.assert_allclose(rates, expected["rates"], rtol=1e-6)

    path = follow(
        OptimizerConfig(name=name),
        {n: given[n] for n in module.SHAPES},
        {n: given[f"gradient_{n}"] for n in module.SHAPES},
        rates,
    )
    for n in module.SHAPES:
        # float32 over 20 updates; PyTorch clips with norm + 1e-6 in the denominator.
        np.testing.assert_allclose(path[n], expected[f"{name}_{n}"], rtol=1e-5, atol=2e-6)


def example():
    rng = np.random.default_rng(1)
    params = {"dense": {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}}
    gradients = jax.tree.map(lambda p: rng.standard_normal((6, *p.shape)), params)
    return jax.tree.map(lambda x: x.astype(np.float32), (params, gradients))


def test_lion_equals_its_definition():
    """Chen et al. 2023, algorithm 2."""
    params, gradients = example()
    config = OptimizerConfig(name="lion", beta1=0.9, beta2=0.99, weight_decay=0.1, clip=0.0)
    path = follow(config, params, gradients, [0.01] * 6)["dense"]
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        p, m = params["dense"][name].astype(np.float64), 0.0
        for i, g in enumerate(gradients["dense"][name].astype(np.float64)):
            p = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + decay * p)
            m = 0.99 * m + 0.01 * g
            np.testing.assert_allclose(path[name][i], p, rtol=1e-5, atol=1e-6)  # float32


def test_adafactor_equals_its_definition():
    """Shazeer and Stern 2018, algorithms 4 and 5; the second moment is factored for a 128 x 130 matrix."""
    rng = np.random.default_rng(2)
    params = {"kernel": rng.standard_normal((128, 130)), "bias": rng.standard_normal(5)}
    gradients = jax.tree.map(lambda p: rng.standard_normal((4, *p.shape)), params)
    params, gradients = jax.tree.map(lambda x: x.astype(np.float32), (params, gradients))
    path = follow(OptimizerConfig(name="adafactor", clip=0.0), params, gradients, [0.01] * 4)
    for name, decay in (("kernel", 0.1), ("bias", 0.0)):
        p = params[name].astype(np.float64)
        v = rows = columns = 0.0
        for i, g in enumerate(gradients[name].astype(np.float64)):
            beta = 1 - (i + 1) ** -0.8
            square = g**2 + 1e-30
            if name == "kernel":
                rows = beta * rows + (1 - beta) * square.mean(1)
                columns = beta * columns + (1 - beta) * square.mean(0)
                v = np.outer(rows, columns) / rows.mean()
            else:
                v = beta * v + (1 - beta) * square
            u = g / np.sqrt(v)
            u /= max(1.0, np.sqrt((u**2).mean()))
            p = p - 0.01 * (max(1e-3, np.sqrt((p**2).mean())) * u + decay * p)
            np.testing.assert_allclose(path[name][i], p, rtol=2e-5, atol=2e-6)  # float32


def literal_muon(g: np.ndarray, momentum: np.ndarray, count: int, beta: float):
    """Jordan 2024 as in optax: Nesterov momentum, bias correction, 5 Newton-Schulz steps, in float64."""
    momentum = beta * momentum + (1 - beta) * g
    x = beta * momentum / (1 - beta ** (count + 2)) + (1 - beta) * g / (1 - beta ** (count + 1))
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return 0.2 * math.sqrt(max(g.shape)) * x, momentum


def muon_tree(rng, layers=3):
    shapes = {
        "blocks": {
            "attention": {
                "query": {"kernel": (layers, 8, 2, 3), "bias": (layers, 2, 3)},
                "output": {"kernel": (layers, 2, 3, 8)},
            },
            "mlp": {"up": {"kernel": (layers, 8, 12)}},
            "norm": {"scale": (layers, 8)},
        },
        "dense": {"kernel": (8, 4)},
        "head": {"kernel": (8, 11)},
        "token_embedding": {"embedding": (11, 8)},
    }
    return jax.tree.map(
        lambda s: rng.standard_normal(s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.95, 0.8])
def test_muon_treats_each_stacked_layer_as_its_own_matrix(beta: float):
    rng = np.random.default_rng(3)
    params = muon_tree(rng)
    gradients = jax.tree.map(lambda p: rng.standard_normal((3, *p.shape)).astype(np.float32), params)
    config = OptimizerConfig(name="muon", clip=0.0, weight_decay=0.1, muon_learning_rate_ratio=0.5, muon_momentum=beta)
    path = follow(config, params, gradients, [0.1] * 3)
    matrices = {
        ("blocks", "attention", "query"): (8, 6),
        ("blocks", "attention", "output"): (6, 8),
        ("blocks", "mlp", "up"): (8, 12),
        ("dense",): (8, 4),
    }
    for names, matrix in matrices.items():
        p, g, found = params, gradients, path
        for name in (*names, "kernel"):
            p, g, found = p[name], g[name], found[name]
        layers = p.size // math.prod(matrix)
        for layer in range(layers):
            weights, momentum = p.reshape(layers, *matrix)[layer].astype(np.float64), np.zeros(matrix)
            for i in range(3):
                step, momentum = literal_muon(g.reshape(3, layers, *matrix)[i, layer], momentum, i, beta)
                weights = weights - 0.1 * 0.5 * (step + 0.1 * weights)
                # Newton-Schulz amplifies float32 rounding by its slope, 3.4^5 at the smallest singular
                # values.
                np.testing.assert_allclose(found.reshape(3, layers, *matrix)[i, layer], weights, atol=2e-4)


@pytest.mark.slow
def test_muon_leaves_head_embeddings_norms_and_biases_to_adamw():
    rng = np.random.default_rng(4)
    params = muon_tree(rng)
    gradients = jax.tree.map(lambda p: rng.standard_normal((3, *p.shape)).astype(np.float32), params)
    muon, adamw = (
        follow(OptimizerConfig(name=name, clip=0.0), params, gradients, [0.1] * 3) for name in ("muon", "adamw")
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), muon, adamw)
    assert same == {
        "blocks": {
            "attention": {"query": {"kernel": False, "bias": True}, "output": {"kernel": False}},
            "mlp": {"up": {"kernel": False}},
            "norm": {"scale": True},
        },
        "dense": {"kernel": False},
        "head": {"kernel": True},
        "token_embedding": {"embedding": True},
    }


def test_muon_directions_have_the_rms_of_adamw():
    """0.2 for an orthogonal matrix (Liu et al. 2025, section 2.2); Newton-Schulz is within 30 %."""
    rng = np.random.default_rng(5)
    params = {"kernel": rng.standard_normal((64, 96)).astype(np.float32)}
    transformation = optimizer.make_optimizer(OptimizerConfig(name="muon", weight_decay=0.0))
    direction, _ = transformation.update(params, transformation.init(params), params)
    assert float(jnp.sqrt(jnp.mean(direction["kernel"] ** 2))) == pytest.approx(0.2, rel=0.3)


def test_decay_spares_everything_but_kernels():
    shape = jax.ShapeDtypeStruct((3, 4), jnp.float32)  # what layers of norms and biases stacked by a scan look like
    names = ["kernel", "bias", "scale", "embedding"]
    params = {"blocks": dict.fromkeys(names, shape), "head": dict.fromkeys(names, shape)}
    mask = optimizer.decay_mask(params)
    assert mask == {part: {name: name == "kernel" for name in names} for part in params}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adamw", marks=pytest.mark.slow),
        "adam",
        "lion",
        "adafactor",
        pytest.param("muon", marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_minimises_a_quadratic(name):
    rng = np.random.default_rng(6)
    target = {"kernel": rng.standard_normal((6, 5)).astype(np.float32), "bias": np.ones(5, np.float32)}
    params = jax.tree.map(lambda t: t + 1, target)
    transformation = optimizer.make_optimizer(OptimizerConfig(name=name, weight_decay=0.0))
    state = transformation.init(params)
    distance = lambda p: float(optax.tree.norm(jax.tree.map(jnp.subtract, p, target)))  # noqa: E731
    before = distance(params)
    step = jax.jit(transformation.update)
    rate = 0.1 if name == "muon" else 0.02  # Muon's directions have an RMS of 0.2, Adam's about 1
    for _ in range(120):
        direction, state = step(jax.tree.map(jnp.subtract, params, target), state, params)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
    assert distance(params) < 0.5 * before


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta1": 1.0},
        {"beta1": -0.1},
        {"beta2": 1.5},
        {"beta2": math.nan},
        {"ema": 1.0},
        {"epsilon": 0.0},
        {"weight_decay": -0.1},
        {"weight_decay": math.inf},
        {"clip": -1.0},
        {"clip": math.nan},
        {"muon_learning_rate_ratio": 0.0},
        {"muon_momentum": 1.0},
    ],
)
def test_a_wrong_optimizer_setting_is_named(wrong):
    ((key, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"optimizer\.{key} = {value}"):
        optimizer.make_optimizer(OptimizerConfig(**wrong))


# ---- Freezing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_frozen_parameters_keep_their_bits_and_the_others_learn_as_if_alone(name):
    """Their gradients are not in the norm that is clipped either."""
    rng = np.random.default_rng(7)
    shapes = {"block_0": {"kernel": (4, 6), "bias": (6,)}, "block_1": {"kernel": (6, 4)}, "head": {"kernel": (4, 3)}}
    fill = lambda scale: jax.tree.map(  # noqa: E731
        lambda shape: scale * rng.standard_normal(shape).astype(np.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )
    params, gradients = fill(1), [fill(10) for _ in range(2)]
    patterns = ("block_0/*", "*/none", "head/kernel")
    frozen = optimizer.make_optimizer(OptimizerConfig(name=name, freeze=(patterns[0], patterns[2])))
    alone = optimizer.make_optimizer(OptimizerConfig(name=name))

    @jax.jit
    def both(params, gradients):
        some = [{"block_1": tree["block_1"]} for tree in (params, *gradients)]
        kept, states = (params, some[0]), (frozen.init(params), alone.init(some[0]))
        for whole, part in zip(gradients, some[1:], strict=True):
            found, first = frozen.update(whole, states[0], kept[0])
            expected, second = alone.update(part, states[1], kept[1])
            kept, states = (
                (optax.apply_updates(kept[0], found), optax.apply_updates(kept[1], expected)),
                (first, second),
            )
        return kept

    after, expected = both(params, gradients)
    for part in ("block_0", "head"):
        jax.tree.map(np.testing.assert_array_equal, after[part], params[part])
    np.testing.assert_allclose(after["block_1"]["kernel"], expected["block_1"]["kernel"], rtol=1e-6)  # float32
    assert (np.asarray(after["block_1"]["kernel"]) != params["block_1"]["kernel"]).all()
    with pytest.raises(UserError, match=r"freeze: no parameter matches '\*/none'; parameters: block_0/bias"):
        optimizer.make_optimizer(OptimizerConfig(name=name, freeze=patterns)).init(params)
