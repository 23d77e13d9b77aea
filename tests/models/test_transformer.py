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
from lmjax.config import TransformerConfig, UserError
from lmjax.models import registry, transformer
from lmjax.models.transformer import LOGICAL_AXES, Transformer
from tests import FIXTURES

SMALL = TransformerConfig(layers=2, width=24, heads=4, mlp_width=40, context=12, vocab_size=31)
FIRST = dataclasses.replace(SMALL, norm_first=True, shared=False, activation="gelu")
BASE = TransformerConfig(vocab_size=37_000)
BIG = dataclasses.replace(BASE, width=1024, heads=16)
LENGTHS = np.array([9, 4, 1])  # of the sources
over_both = pytest.mark.parametrize("config", [SMALL, FIRST], ids=["norm_last", "norm_first"])


def pairs(S=9, T=7, seed=0):
    """Sources with what hides their padding, and targets."""
    rng = np.random.default_rng(seed)
    mask_BS = (np.arange(S) < LENGTHS[:, None]).astype(np.int32)
    return rng.integers(0, 31, (3, S)), mask_BS, rng.integers(0, 31, (3, T))


def real(config):
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), ids, ids)["params"]


@functools.cache
def rough(config):
    """Parameters in which every leaf matters: none zero, none one."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape).astype(np.float32), real(config))


@functools.cache
def compiled(config, method="__call__"):
    return jax.jit(partial(Transformer(config).apply, {"params": rough(config)}, method=method))


# ---- Against an independent implementation ----------------------------------------------------------------------


@functools.cache
def fixture_script():
    spec = importlib.util.spec_from_file_location("transformer_torch", FIXTURES / "transformer_torch.py")
    assert spec is not None
    assert spec.loader is not None
    given = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(given)
    return given


def from_torch(weights, prefix=""):
    """PyTorch's names to ours; its kernels are (out, in), those of query, key and value above one another."""

    def dense(weight, bias):
        return {"kernel": weight.T, "bias": bias}

    def attention(name):
        thirds = zip(*(np.split(weights[f"{name}.in_proj_{kind}"], 3) for kind in ("weight", "bias")), strict=True)
        ours = {which: dense(*third) for which, third in zip(("query", "key", "value"), thirds, strict=True)}
        return ours | {"output": dense(weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"])}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    weights = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    params = {"token_embedding": {"embedding": weights["embedding.weight"]}}
    for stack in ("encoder", "decoder"):
        if f"{stack}.norm.weight" in weights:
            params[f"{stack}_norm"] = norm(f"{stack}.norm")
        for i in range(2):
            layer = f"{stack}.layers.{i}"
            norms = (
                ("attention_norm", "mlp_norm") if stack == "encoder" else ("attention_norm", "cross_norm", "mlp_norm")
            )
            ours = {name: norm(f"{layer}.norm{j}") for j, name in enumerate(norms, 1)}
            ours["attention"] = attention(f"{layer}.self_attn")
            if stack == "decoder":
                ours["cross_attention"] = attention(f"{layer}.multihead_attn")
            mlp = {name: norm(f"{layer}.linear{j}") for j, name in enumerate(("up", "down"), 1)}
            ours["mlp"] = {name: dense(*both.values()) for name, both in mlp.items()}
            params[f"{stack}_{i}"] = ours
    return params


@functools.cache
def ours_on_fixture(style):
    """(memory, logits, gradients) of our model with the fixture's weights and inputs."""
    given = fixture_script()
    inputs = given.inputs()
    config = TransformerConfig(
        layers=given.LAYERS,
        width=given.WIDTH,
        heads=given.HEADS,
        mlp_width=given.MLP_WIDTH,
        vocab_size=given.VOCAB,
        norm_first=style == "norm_first",
        dropout=0.0,
    )
    apply, how = Transformer(config).apply, {"source_mask_BS": inputs["mask"]}

    @jax.jit
    def run(params):
        def f(params):
            return apply({"params": params}, inputs["source"], inputs["target"], **how)

        logits, pull = jax.vjp(f, params)
        memory = apply({"params": params}, inputs["source"], **how, method="encode")
        return memory, logits, pull(inputs["cotangent"])[0]

    return run(from_torch(given.weights(style)))


@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
@pytest.mark.parametrize("style", [pytest.param("norm_last", marks=pytest.mark.slow), "norm_first"])
@pytest.mark.filterwarnings("ignore")  # of torch
def test_hidden_states_logits_and_gradients_equal_torch(style, source):
    given = fixture_script()
    if source == "live":
        pytest.importorskip("torch")
        expected = given.make()
    else:
        with np.load(FIXTURES / "transformer_torch.npz", allow_pickle=False) as file:
            expected = dict(file)
    memory, logits, gradients = ours_on_fixture(style)
    # float32 against double precision: sums of at most 24 terms, some dozen of them behind one another
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    close(memory, expected[f"{style}/memory"], atol=1e-5)
    close(logits, expected[f"{style}/logits"], atol=1e-5)
    theirs = from_torch(expected, f"{style}/gradient/")
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(partial(close, atol=1e-5 * largest), gradients, theirs)


# ---- What may not change the result -----------------------------------------------------------------------------


@pytest.mark.slow
@over_both
def test_what_stands_in_padding_changes_no_bit(config):
    source, mask, target = pairs()
    other = np.where(mask, source, (source + 7) % 31)
    assert (other != source).any(axis=-1).tolist() == [False, True, True]
    hidden = [compiled(config, "encode")(x, source_mask_BS=mask) for x in (source, other)]
    np.testing.assert_array_equal(*(x[mask != 0] for x in hidden))
    logits = [compiled(config)(x, target, source_mask_BS=mask) for x in (source, other)]
    np.testing.assert_array_equal(*logits)
    assert (logits[0] != compiled(config)(source, target, source_mask_BS=np.ones_like(mask)))[1:].any(axis=(1, 2)).all()


@pytest.mark.slow
@over_both
def test_longer_padding_changes_rounding_only(config):
    source, mask, target = pairs()
    longer, wider = (np.pad(x, ((0, 0), (0, 11))) for x in (source, mask))
    logits = compiled(config)(source, target, source_mask_BS=mask)
    # logits of size 1, whose last bit is 1e-7
    np.testing.assert_allclose(compiled(config)(longer, target, source_mask_BS=wider), logits, rtol=0, atol=1e-6)


@pytest.mark.slow
@over_both
def test_a_changed_future_leaves_earlier_logits_bit_identical(config):
    source, mask, target = pairs()
    before = compiled(config)(source, target, source_mask_BS=mask)
    for t in (1, 3, 6):
        changed = np.concatenate([target[:, :t], (target[:, t:] + 1) % 31], axis=1)
        after = compiled(config)(source, changed, source_mask_BS=mask)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()


@pytest.mark.slow
def test_a_source_of_padding_alone_gives_finite_logits():
    source, mask, target = pairs()
    hidden = np.where(np.arange(3)[:, None] == 1, 0, mask)
    logits = compiled(SMALL)(source, target, source_mask_BS=hidden)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[::2], compiled(SMALL)(source, target, source_mask_BS=mask)[::2])


@pytest.mark.slow
@over_both
def test_decoding_with_a_cache_gives_the_same_logits(config):
    source, mask, target = pairs()
    expected = compiled(config)(source, target, source_mask_BS=mask)
    memory = compiled(config, "encode")(source, source_mask_BS=mask)
    start = partial(Transformer(config).apply, {"params": rough(config)}, length=9, method="start")  # two to spare
    cache, step = jax.jit(start)(memory), compiled(config, "step")
    for t in range(target.shape[1]):
        logits, cache = step(target[:, t], t, cache, source_mask_BS=mask)
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-5, atol=1e-5)  # sums in another order
        np.testing.assert_array_equal(logits.argmax(-1), expected[:, t].argmax(-1))


@pytest.mark.slow
def test_bfloat16_is_float32_within_rounding():
    source, mask, target = pairs()
    narrow = compiled(dataclasses.replace(SMALL, dtype="bfloat16"))(source, target, source_mask_BS=mask)
    wide = compiled(SMALL)(source, target, source_mask_BS=mask)
    assert narrow.dtype == jnp.float32
    # 2^-9 = 0.002 a rounding, some twenty of them behind one another
    assert 0 < np.linalg.norm(narrow - wide) / np.linalg.norm(wide) < 0.02


@pytest.mark.slow
def test_dropout_acts_in_training_only_and_by_its_generator_only():
    source, _, target = pairs()
    config = dataclasses.replace(SMALL, layers=1)
    without = compiled(dataclasses.replace(config, dropout=0.0))(source, target)
    np.testing.assert_array_equal(compiled(config)(source, target), without)

    @jax.jit
    def train(key):
        apply = partial(Transformer(config).apply, {"params": rough(config)}, train=True, rngs={"dropout": key})
        memory = apply(source, method="encode")
        return memory, apply(target, memory, method="decode")

    first, again, other = (train(jax.random.key(seed)) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any(-1).all()
    assert (first[1] != without).all(-1).all()
    with pytest.raises(Exception, match="dropout"):
        Transformer(config).apply({"params": rough(config)}, source, target, train=True)


# ---- Initial parameters -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_initial_parameters_follow_their_table():
    config = dataclasses.replace(FIRST, width=128, mlp_width=256, layers=1, vocab_size=300)
    source, _, target = pairs()
    params = jax.jit(Transformer(config).init)(jax.random.key(0), source, target)["params"]
    leaves = dict(zip(pytrees.leaf_names(params), jax.tree.leaves(params), strict=True))
    for name, leaf in leaves.items():
        if name.endswith("scale"):
            assert (leaf == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            kernel = name.endswith("kernel")
            std = math.sqrt(2 / sum(leaf.shape)) if kernel else 128**-0.5  # uniform within a: a / sqrt(3)
            assert np.std(leaf) == pytest.approx(std, rel=0.02), name  # at least 16,384 draws
            assert np.mean(leaf) == pytest.approx(0, abs=5 * std / math.sqrt(leaf.size)), name
            assert (np.abs(leaf).max() <= math.sqrt(3) * std * 1.0001) == kernel, name
        assert len(LOGICAL_AXES["/".join(name.split("/")[-2:])]) == leaf.ndim, name
    tables = {name for name in leaves if "embedding" in name or "head" in name}
    assert tables == {"source_embedding/embedding", "target_embedding/embedding", "head/kernel"}
    assert {name for name in pytrees.leaf_names(real(SMALL)) if "embedding" in name} == {"token_embedding/embedding"}


# ---- Closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"), [pytest.param(BASE, 63_082_496, marks=pytest.mark.slow), (BIG, 214_245_376), (FIRST, None)]
)
def test_parameters_equal_the_real_ones(config, count):
    """The paper's table 3 says 65 and 213 million, of a vocabulary of "about 37000"."""
    sizes = transformer.parameters(config)
    assert sizes["total"] == pytrees.count(real(config)) == (count or sizes["total"])
    counts = dict.fromkeys(sizes, 0)
    names = {"embedding": "embeddings", "norm": "norms", "attention": "attention", "mlp": "mlp", "head": "output layer"}
    for name, leaf in zip(pytrees.leaf_names(real(config)), jax.tree.leaves(real(config)), strict=True):
        counts[next(part for key, part in names.items() if key in name)] += leaf.size
        counts["total"] += leaf.size
    assert counts == sizes


def lowered(config, rows):
    """The gradient of the sum of logits, traced only."""
    ids = jax.ShapeDtypeStruct((rows, config.context), jnp.int32)

    def loss(params, source, target):
        logits = Transformer(config).apply({"params": params}, source, target, source_mask_BS=source)
        return jnp.square(logits).sum()

    return jax.jit(jax.grad(loss)).lower(real(config), ids, ids)


def test_flops_equal_the_count_of_xla():
    """Wide enough that what is no matrix product (norms, softmax, activations) is under 2 % of the count."""
    config = TransformerConfig(layers=1, width=1024, heads=8, context=256, vocab_size=4096)
    counted = lowered(config, 2).cost_analysis()["flops"]
    assert transformer.flops_per_token(config) * 2 * 2 * config.context == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_activations_are_near_those_of_the_compiled_program():
    config = TransformerConfig(layers=3, width=128, heads=4, context=128, vocab_size=64)
    held = lowered(config, 8).compile().memory_analysis().temp_size_in_bytes
    estimate = 2 * 8 * config.context * transformer.activation_bytes(config)
    assert 0.7 < held / estimate < 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, r"model\.width=100 .* model\.heads=8"),
        ({"dropout": 1.0}, r"model\.dropout = 1\.0"),
        ({"layers": 0}, r"model\.layers = 0"),
        ({"context": -1}, r"model\.context = -1"),
        ({"mlp_width": -1}, r"model\.mlp_width = -1"),
    ],
    ids=str,
)
def test_a_configuration_without_a_model_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        registry.check(dataclasses.replace(BASE, **change))
    registry.check(dataclasses.replace(BASE, vocab_size=0))
