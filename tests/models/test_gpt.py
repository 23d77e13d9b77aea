import dataclasses
import functools
import importlib.util
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import pytrees
from lmjax.config import CausalConfig, GPTConfig, UserError
from lmjax.models.gpt import GPT, LOGICAL_AXES, init_params, stack, unstack
from lmjax.objectives import losses
from tests import FIXTURES
from tests.models.gpt_reference import forward

SMALL = GPTConfig(layers=2, width=24, heads=4, context=12, vocab_size=31)
GPT2 = SMALL
LLAMA = dataclasses.replace(
    SMALL,
    key_heads=2,
    head_dim=8,
    mlp_width=40,
    norm="rmsnorm",
    positions="rotary",
    activation="swiglu",
    bias=False,
    tied=False,
)
QWEN = dataclasses.replace(LLAMA, qk_norm=True)
STYLES = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN}
MIXED = dataclasses.replace(GPT2, activation="gelu", bias=False, tied=False, key_heads=1, head_dim=5, scan=False)
# Every value of every option at least once, in company that the styles above do not give it.
CROSSED = STYLES | {
    "mixed": MIXED,
    "relu": dataclasses.replace(GPT2, activation="relu", norm="rmsnorm", mlp_width=20, qk_norm=True),
    "biased": dataclasses.replace(LLAMA, norm="layernorm", bias=True, tied=True, rope_theta=100.0, norm_epsilon=1e-3),
}
SLOW = pytest.mark.slow
over_styles = pytest.mark.parametrize("config", STYLES.values(), ids=STYLES)
over_options = pytest.mark.parametrize("config", CROSSED.values(), ids=CROSSED)
over_two = pytest.mark.parametrize("config", [GPT2, pytest.param(QWEN, marks=SLOW)], ids=["gpt2", "qwen3"])
over_three = pytest.mark.parametrize(
    "config",
    [pytest.param(GPT2, marks=SLOW), pytest.param(QWEN, marks=SLOW), MIXED],
    ids=["gpt2", "qwen3", "mixed"],
)


def ids(config=SMALL, rows=3, T=12, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, T)).astype(np.int32)


def rough(config, seed=0):
    """Parameters in which every leaf matters: none zero, none one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(GPT(dataclasses.replace(config, scan=False)), 0))
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    return stack(params) if config.scan else params


def unrolled(params):
    return jax.tree.map(np.asarray, unstack(params) if "blocks" in params else params)


def apply(config, params, inputs, **keywords):
    return jax.jit(partial(GPT(config).apply, **keywords))({"params": params}, inputs)


def packing(inputs):
    """Three documents of different lengths in each row."""
    segments = np.broadcast_to(np.repeat([0, 1, 2], [3, 5, 4]), inputs.shape)
    positions = np.broadcast_to(np.r_[:3, :5, :4], inputs.shape)
    return {"segments_BT": segments, "positions_BT": positions}


def next_token_loss(config, params, inputs, rng=None):
    """The sum over all tokens; with `rng` as in training."""
    batch = {"inputs_BT": inputs, "targets_BT": jnp.roll(inputs, -1, 1), "weights_BT": jnp.ones(inputs.shape)}
    return losses.causal(GPT(config), params, batch, rng=rng, config=CausalConfig(), train=rng is not None)[0]


@functools.cache
def training(config):
    """(loss, gradients of an unrolled model's parameters) of one batch."""
    loss = jax.jit(jax.value_and_grad(partial(next_token_loss, config)))
    value, gradients = loss(rough(config), ids(), rng=jax.random.key(5))
    return float(value), unrolled(gradients)


def assert_same_training(config, other):
    """To 2e-6 of the largest gradient: sums of some hundred float32 terms in another order."""
    (loss, gradients), (other_loss, other_gradients) = training(config), training(other)
    assert loss == pytest.approx(other_loss, rel=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6 * largest)
    jax.tree.map(close, gradients, other_gradients)


# ---- Against independent implementations ------------------------------------------------------------------------


@over_options
@pytest.mark.parametrize("packed", [False, True])
def test_logits_equal_a_numpy_gpt(config, packed):
    params, inputs = rough(config), ids()
    more = packing(inputs) if packed else {}
    ours, theirs = apply(config, params, inputs, **more), forward(config, unrolled(params), inputs, **more)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # logits of size 1 in float32


@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
@over_styles
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
def test_logits_equal_transformers(config, source, request):
    spec = importlib.util.spec_from_file_location("gpt_transformers", FIXTURES / "gpt_transformers.py")
    assert spec is not None
    assert spec.loader is not None
    given = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(given)
    style = next(name for name, value in STYLES.items() if value == config)
    if source == "live":
        pytest.importorskip("transformers")
        expected = given.make()[style]
    else:
        with np.load(FIXTURES / "gpt_transformers.npz", allow_pickle=False) as file:
            expected = file[style]
    weights = given.weights(style)
    params = stack(from_gpt2(weights) if style == "gpt2" else from_llama(weights))
    np.testing.assert_allclose(apply(config, params, given.inputs()), expected, rtol=1e-5, atol=1e-5)


def from_gpt2(weights):
    """Hugging Face's GPT-2 names to ours; its Conv1D keeps kernels as (in, out), query, key and value side by side."""

    def layer(name, kernel="kernel"):
        return {kernel: weights[f"transformer.{name}.weight"], "bias": weights[f"transformer.{name}.bias"]}

    params = {
        "token_embedding": {"embedding": weights["transformer.wte.weight"]},
        "position_embedding": {"embedding": weights["transformer.wpe.weight"]},
        "final_norm": layer("ln_f", "scale"),
    }
    for i in range(2):
        fused = layer(f"h.{i}.attn.c_attn")
        thirds = {name: np.split(value, 3, axis=-1) for name, value in fused.items()}
        attention = {which: {n: t[j] for n, t in thirds.items()} for j, which in enumerate(("query", "key", "value"))}
        params[f"block_{i}"] = {
            "attention_norm": layer(f"h.{i}.ln_1", "scale"),
            "attention": attention | {"output": layer(f"h.{i}.attn.c_proj")},
            "mlp_norm": layer(f"h.{i}.ln_2", "scale"),
            "mlp": {"up": layer(f"h.{i}.mlp.c_fc"), "down": layer(f"h.{i}.mlp.c_proj")},
        }
    return params


def from_llama(weights):
    """Hugging Face's LLaMA and Qwen3 names to ours: kernels transposed, and no permutation for the rotary halves."""
    params = {
        "token_embedding": {"embedding": weights["model.embed_tokens.weight"]},
        "final_norm": {"scale": weights["model.norm.weight"]},
        "head": {"kernel": weights["lm_head.weight"].T},
    }
    for i in range(2):
        layer = {name.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): x for name, x in weights.items()}
        kernels = {"query": "q", "key": "k", "value": "v", "output": "o"}
        attention = {ours: {"kernel": layer[f"self_attn.{name}_proj"].T} for ours, name in kernels.items()}
        if "self_attn.q_norm" in layer:
            attention |= {f"{ours}_norm": {"scale": layer[f"self_attn.{ours[0]}_norm"]} for ours in ("query", "key")}
        params[f"block_{i}"] = {
            "attention_norm": {"scale": layer["input_layernorm"]},
            "attention": attention,
            "mlp_norm": {"scale": layer["post_attention_layernorm"]},
            "mlp": {name: {"kernel": layer[f"mlp.{name}_proj"].T} for name in ("gate", "up", "down")},
        }
    return params


@pytest.mark.slow
@over_three
def test_gradients_equal_finite_differences(config):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), rough(config))
        loss = jax.jit(partial(next_token_loss, config, inputs=ids(rows=2)))
        assert loss(params).dtype == jnp.float64
        gradients = jax.jit(jax.grad(loss))(params)
        for i, (name, gradient) in enumerate(zip(pytrees.leaf_names(params), jax.tree.leaves(gradients), strict=True)):
            step = 1e-6 * np.random.default_rng(i).standard_normal(gradient.shape)
            leaves, structure = jax.tree.flatten(params)
            ends = ([*leaves[:i], leaves[i] + h, *leaves[i + 1 :]] for h in (step, -step))
            after, before = (loss(jax.tree.unflatten(structure, end)) for end in ends)
            # A loss of 100 with 14 digits over steps of 1e-6 leaves 1e-6 of each difference, in units of 1e-6. The bias
            # of keys has no effect at all: softmax does not see it.
            assert jnp.vdot(gradient, step) == pytest.approx(float(after - before) / 2, rel=1e-5, abs=1e-11), name


# ---- What may not change the result -----------------------------------------------------------------------------


DROPOUT = dataclasses.replace(GPT2, dropout=0.2)
over_training = pytest.mark.parametrize(
    "config",
    [pytest.param(DROPOUT, marks=SLOW), pytest.param(QWEN, marks=SLOW), MIXED],
    ids=["dropout", "qwen3", "mixed"],
)


@pytest.mark.slow
@over_training
def test_scanned_equals_unrolled(config):
    """Values and gradients, with the same dropout."""
    assert_same_training(dataclasses.replace(config, scan=True), dataclasses.replace(config, scan=False))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_nothing(scan, remat):
    config = dataclasses.replace(DROPOUT, scan=scan)
    assert_same_training(dataclasses.replace(config, remat=remat), config)


@pytest.mark.slow
@over_training
def test_bfloat16_is_float32_within_rounding(config):
    params, inputs = rough(config), ids()
    narrow = dataclasses.replace(config, dtype="bfloat16")
    logits, expected = apply(narrow, params, inputs), apply(config, params, inputs)
    assert logits.dtype == jnp.float32
    # 2^-9 = 0.002 a rounding, some twenty of them behind one another
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.02
    (loss, gradients), (loss_32, gradients_32) = (
        training(dataclasses.replace(config, scan=False, dtype=dtype)) for dtype in ("bfloat16", "float32")
    )
    assert loss == pytest.approx(loss_32, rel=1e-3)
    a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (gradients, gradients_32))
    assert a.dtype == np.float32
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.04


@over_three
def test_a_changed_future_leaves_earlier_logits_bit_identical(config):
    config = dataclasses.replace(config, context=160)  # two blocks of queries
    params, inputs = rough(config), ids(T=160)
    f = jax.jit(GPT(config).apply)
    before = f({"params": params}, inputs)
    for t in (1, 100, 127, 128, 159):
        changed = np.concatenate([inputs[:, :t], (inputs[:, t:] + 1) % config.vocab_size], 1)
        after = f({"params": params}, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


@pytest.mark.slow
@over_three
def test_a_changed_document_leaves_its_packed_neighbours_bit_identical(config):
    params, inputs = rough(config), ids()
    more = packing(inputs)
    f = jax.jit(partial(GPT(config).apply, **more))
    before = f({"params": params}, inputs)
    for document in range(3):
        mine = more["segments_BT"] == document
        after = f({"params": params}, np.where(mine, (inputs + 1) % config.vocab_size, inputs))
        np.testing.assert_array_equal(after[~mine], before[~mine])
        assert (after[mine] != before[mine]).any(-1).all()


@over_two
def test_a_packed_document_is_computed_as_if_alone(config):
    params, inputs = rough(config), ids()
    packed = apply(config, params, inputs, **packing(inputs))
    alone = apply(config, params, inputs[:, 3:8])
    np.testing.assert_allclose(packed[:, 3:8], alone, rtol=1e-5, atol=1e-5)  # sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("scan", [pytest.param(True, marks=pytest.mark.slow), False])
def test_dropout_acts_in_training_only_and_by_its_generator_only(scan):
    config = dataclasses.replace(DROPOUT, scan=scan)
    params, inputs = rough(config), ids()
    without = apply(dataclasses.replace(config, dropout=0.0), params, inputs)
    np.testing.assert_array_equal(apply(config, params, inputs), without)
    train = jax.jit(lambda key: GPT(config).apply({"params": params}, inputs, train=True, rngs={"dropout": key}))
    np.testing.assert_array_equal(train(jax.random.key(1)), train(jax.random.key(1)))
    assert (train(jax.random.key(1)) != train(jax.random.key(2))).all(-1).all()
    assert (train(jax.random.key(1)) != without).all(-1).all()
    with pytest.raises(Exception, match="dropout"):
        GPT(config).apply({"params": params}, inputs, train=True)


# ---- Initial parameters -----------------------------------------------------------------------------------------


@pytest.mark.slow
@over_two
def test_loss_at_initialisation_is_that_of_guessing(config):
    config = dataclasses.replace(config, width=64, vocab_size=500, context=64)
    inputs = ids(config, 8, 64)
    loss = jax.jit(partial(next_token_loss, config))(init_params(GPT(config), 0), inputs)
    assert loss / inputs.size == pytest.approx(math.log(500), rel=0.02)


@pytest.mark.slow
def test_initial_parameters_follow_their_table():
    config = dataclasses.replace(GPT2, width=128, layers=8, qk_norm=True, tied=False, vocab_size=300, context=200)
    params = init_params(GPT(config), 0)
    leaves = dict(zip(pytrees.leaf_names(params), jax.tree.leaves(params), strict=True))
    for name, leaf in leaves.items():
        if name.endswith("scale"):
            assert (leaf == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            into_residual = "attention/output" in name or "mlp/down" in name
            assert np.std(leaf) == pytest.approx(0.02 / 4 if into_residual else 0.02, rel=0.02), name  # 25,600 draws
            assert np.mean(leaf) == pytest.approx(0, abs=5 * float(np.std(leaf)) / math.sqrt(leaf.size)), name
    by_linen = jax.eval_shape(partial(GPT(config).init, jax.random.key(0)), ids())["params"]
    assert list(leaves) == pytrees.leaf_names(by_linen)


@pytest.mark.slow
@over_two
def test_initial_parameters_depend_on_the_seed_and_not_on_scanning(config):
    scanned, flat = (init_params(GPT(dataclasses.replace(config, scan=scan)), 0) for scan in (True, False))
    jax.tree.map(np.testing.assert_array_equal, unstack(scanned), flat)
    jax.tree.map(np.testing.assert_array_equal, scanned, stack(flat))
    first, second = (scanned["blocks"]["attention"]["query"]["kernel"][i] for i in range(2))
    assert (first != second).all()
    other = init_params(GPT(config), 1)
    assert (other["token_embedding"]["embedding"] != scanned["token_embedding"]["embedding"]).all()


def test_stack_keeps_layers_in_order_beyond_ten():
    params = {f"block_{i}": {"w": np.full(2, i)} for i in range(12)} | {"head": np.ones(1)}
    np.testing.assert_array_equal(stack(params)["blocks"]["w"][:, 0], range(12))
    assert unstack(stack(params)).keys() == params.keys()


@over_options
def test_every_leaf_has_logical_axes(config):
    params = jax.eval_shape(lambda: init_params(GPT(config), 0))
    for name, leaf in zip(pytrees.leaf_names(params), jax.tree.leaves(params), strict=True):
        assert len(LOGICAL_AXES["/".join(name.split("/")[-2:])]) + name.startswith("blocks/") == leaf.ndim, name


# ---- The rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_captured_weights_are_those_of_attention(scan):
    config = dataclasses.replace(QWEN, scan=scan)
    params, inputs = rough(config), ids()
    capturing = jax.jit(partial(GPT(config, capture=True).apply, mutable=["intermediates"]))
    logits, kept = capturing({"params": params}, inputs)
    np.testing.assert_allclose(logits, apply(config, params, inputs), rtol=1e-5, atol=1e-5)
    kept = kept["intermediates"]
    layers = kept["blocks"]["attention"]["weights"][0] if scan else kept["block_1"]["attention"]["weights"][0][None]
    assert layers[-1].shape == (3, 4, 12, 12)
    np.testing.assert_allclose(layers.sum(-1), 1, rtol=1e-5)
    assert not np.triu(layers, 1).any()
    without = jax.eval_shape(partial(GPT(config).apply, mutable=["intermediates"]), {"params": params}, inputs)
    assert not without[1]


def test_more_tokens_than_learned_positions_are_refused():
    params = rough(GPT2)
    with pytest.raises(UserError, match=r"13 tokens .* model.context=12"):
        GPT(GPT2).apply({"params": params}, ids(T=13))
    jax.eval_shape(GPT(LLAMA).apply, {"params": rough(LLAMA)}, ids(T=13))


@pytest.mark.slow
def test_one_batch_overfits():
    """The whole chain learns: 16 random rows by heart, to less than a hundredth of a nat."""
    params, inputs = init_params(GPT(LLAMA), 0), ids(rows=4)
    moments = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def update(params, first, second, n):
        loss, g = jax.value_and_grad(partial(next_token_loss, LLAMA))(params, inputs)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, g)
        second = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g * g, second, g)
        scale = 0.01 * jnp.sqrt(1 - 0.99**n) / (1 - 0.9**n)
        params = jax.tree.map(lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), params, first, second)
        return params, first, second, loss / inputs.size

    for n in range(1, 301):
        params, *moments, loss = update(params, *moments, n)
    assert loss < 0.01
