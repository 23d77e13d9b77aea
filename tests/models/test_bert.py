import dataclasses
import functools
import importlib.util
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import pytrees
from lmjax.config import BERTConfig, UserError
from lmjax.interop.huggingface.layouts import from_transformers
from lmjax.models import bert, registry
from lmjax.models.bert import BERT, LOGICAL_AXES, init_params
from lmjax.models.gpt import stack, unstack
from tests import FIXTURES

SMALL = BERTConfig(layers=2, width=24, heads=4, mlp_width=40, context=12, vocab_size=31, dropout=0.0)
BASE = BERTConfig(vocab_size=30_522)
LARGE = BERTConfig(layers=24, width=1024, heads=16, vocab_size=30_522)


def load_fixture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bert_transformers", FIXTURES / "bert_transformers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GIVEN = load_fixture()
ROWS = GIVEN.inputs()
REAL = ROWS["real_BT"].astype(bool)
PLACES = np.array([[0, 4, 11], [6, 1, 1], [3, 2, 0]])


def params_of(config=SMALL):
    return from_transformers(GIVEN.weights(), config)


@functools.cache
def compiled(config, method):
    return jax.jit(partial(BERT(config).apply, method=method))


def apply(config, params, rows=ROWS, method="__call__"):
    return compiled(config, method)({"params": params}, **rows)


# ---- Against transformers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
def test_every_output_equals_transformers(source):
    if source == "live":
        pytest.importorskip("transformers")
        expected = GIVEN.make()
    else:
        with np.load(FIXTURES / "bert_transformers.npz", allow_pickle=False) as file:
            expected = dict(file)
    outputs = apply(SMALL, params_of())._asdict()
    assert outputs.keys() == expected.keys()
    for name, ours in outputs.items():  # also where padding stands
        np.testing.assert_allclose(ours, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)  # of size 1 in float32


@pytest.mark.parametrize(("config", "count"), [(BASE, 110_106_428), (LARGE, 336_226_108)], ids=["base", "large"])
@pytest.mark.filterwarnings("ignore")
def test_parameters_are_counted_as_published_models_have_them(config, count):
    assert bert.parameters(config)["total"] == count
    shapes = jax.eval_shape(lambda: init_params(BERT(config), 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    transformers = pytest.importorskip("transformers")
    import torch

    theirs = transformers.BertConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
    )
    with torch.device("meta"):
        model = transformers.BertForPreTraining(theirs)
    assert model.num_parameters() == count


def test_the_encoder_takes_weights_without_heads_and_of_the_first_release():
    names = {name: x for name, x in GIVEN.weights().items() if not name.startswith("cls.")}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in names.items()
    }
    bare = {name.removeprefix("bert."): x for name, x in names.items()}
    whole = apply(SMALL, params_of())
    for state in (bare, old):
        params = from_transformers(state, SMALL)
        assert "masked_head" not in params
        hidden_BTD, pooled_BD = apply(SMALL, params, method="encode")
        np.testing.assert_array_equal(hidden_BTD, whole.hidden_BTD)
        np.testing.assert_array_equal(pooled_BD, whole.pooled_BD)


def test_weights_that_do_not_fit_are_refused():
    state = GIVEN.weights()
    with pytest.raises(
        UserError, match=r"word_embeddings.weight' is \(31, 24\), the configuration asks for \(32, 24\)"
    ):
        from_transformers(state, dataclasses.replace(SMALL, vocab_size=32))
    with pytest.raises(UserError, match=r"no tensor 'encoder\.layer\.2\.attention\."):
        from_transformers(state, dataclasses.replace(SMALL, layers=3))


# ---- What may not change the result -----------------------------------------------------------------------------


def test_padding_changes_nothing_bit_for_bit():
    params, before = params_of(), apply(SMALL, params_of())
    other = ROWS | {
        "inputs_BT": np.where(REAL, ROWS["inputs_BT"], (ROWS["inputs_BT"] + 7) % 31),
        "kinds_BT": np.where(REAL, ROWS["kinds_BT"], 1),
    }
    after = apply(SMALL, params, other)
    np.testing.assert_array_equal(after.hidden_BTD[REAL], before.hidden_BTD[REAL])
    np.testing.assert_array_equal(after.logits_BPV[REAL], before.logits_BPV[REAL])
    np.testing.assert_array_equal(after.pooled_BD, before.pooled_BD)
    np.testing.assert_array_equal(after.next_B2, before.next_B2)
    assert (after.hidden_BTD[~REAL] != before.hidden_BTD[~REAL]).any(-1).all()


def test_a_padded_row_is_computed_as_if_it_were_shorter():
    whole = apply(SMALL, params_of())
    row = {name: x[1:2, :7] for name, x in ROWS.items()}
    short = apply(SMALL, params_of(), row)
    np.testing.assert_allclose(whole.hidden_BTD[1, :7], short.hidden_BTD[0], rtol=1e-5, atol=1e-5)


def test_every_token_sees_every_other_and_the_kinds():
    params, before = params_of(), apply(SMALL, params_of()).hidden_BTD
    for name, size in (("inputs_BT", 31), ("kinds_BT", 2)):
        changed = ROWS[name].copy()
        changed[:, 3] = (changed[:, 3] + 1) % size
        after = apply(SMALL, params, ROWS | {name: changed}).hidden_BTD
        assert (after[REAL] != before[REAL]).any(-1).all()


def test_logits_at_some_places_are_those_of_all():
    all_of_them = apply(SMALL, params_of()).logits_BPV
    some = apply(SMALL, params_of(), ROWS | {"places_BP": PLACES}).logits_BPV
    expected = np.take_along_axis(np.asarray(all_of_them), PLACES[..., None], axis=1)
    np.testing.assert_allclose(some, expected, rtol=1e-6, atol=1e-6)  # products of other shapes


def loss(config, params, rng=None):
    training = {} if rng is None else {"train": True, "rngs": {"dropout": rng}}
    outputs = BERT(config).apply({"params": params}, **ROWS, places_BP=PLACES, **training)
    return sum(jnp.sum(jnp.sin(x)) for x in outputs if x is not None)


TRAINED = dataclasses.replace(SMALL, dropout=0.2)


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    """Values and gradients, with the same dropout; to 2e-6 of the largest gradient: sums in another order."""

    def training(**change):
        config = dataclasses.replace(TRAINED, **change)
        return jax.jit(jax.value_and_grad(partial(loss, config)))(params_of(config), rng=jax.random.key(5))

    value, gradients = training(scan=True, remat="full")
    expected, flat = training(scan=False, remat="none")
    assert value == pytest.approx(float(expected), rel=1e-5)
    atol = 2e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), gradients, stack(flat))


@pytest.mark.slow
def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params_of())
        f = jax.jit(partial(loss, SMALL))
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, jax.jit(jax.grad(f))(params)))
        weights = jax.tree.leaves(params)
        for i, (name, gradient) in enumerate(zip(pytrees.leaf_names(params), leaves, strict=True)):
            step = 1e-6 * np.random.default_rng(i).standard_normal(gradient.shape)
            ends = ([*weights[:i], weights[i] + h, *weights[i + 1 :]] for h in (step, -step))
            after, before = (float(f(jax.tree.unflatten(structure, end))) for end in ends)
            # A loss of 100 with 14 digits over steps of 1e-6. The bias of keys has no effect: softmax does not see it.
            assert np.vdot(gradient, step) == pytest.approx((after - before) / 2, rel=1e-5, abs=1e-11), name


def test_bfloat16_is_float32_within_rounding():
    narrow, wide = (apply(dataclasses.replace(SMALL, dtype=dtype), params_of()) for dtype in ("bfloat16", "float32"))
    for ours, expected in zip(narrow, wide, strict=True):
        assert ours.dtype == jnp.float32
        assert np.linalg.norm(ours - expected) < 0.02 * np.linalg.norm(expected)  # some twenty roundings of 2^-9


@pytest.mark.slow
def test_dropout_acts_in_training_only_and_by_its_generator_only():
    params = params_of(TRAINED)
    without = apply(SMALL, params)
    jax.tree.map(np.testing.assert_array_equal, apply(TRAINED, params), without)
    train = jax.jit(lambda key: BERT(TRAINED).apply({"params": params}, **ROWS, train=True, rngs={"dropout": key})[0])
    first, again, second = (train(jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any(-1).all()
    assert (first != without.hidden_BTD).any(-1).all()


# ---- Parameters and closed forms --------------------------------------------------------------------------------


@pytest.mark.slow
def test_initial_parameters_follow_their_table_and_the_seed():
    config = dataclasses.replace(SMALL, width=64, mlp_width=0, vocab_size=300, context=100)
    params = init_params(BERT(config), 0)
    for name, leaf in zip(pytrees.leaf_names(params), jax.tree.leaves(params), strict=True):
        if name.endswith("scale"):
            assert (leaf == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            spread = 5 * 0.02 / np.sqrt(2 * leaf.size)  # five standard errors
            assert np.std(leaf) == pytest.approx(0.02, abs=spread), name
    by_linen = jax.eval_shape(partial(BERT(config).init, jax.random.key(0)), **ROWS)["params"]
    assert pytrees.leaf_names(params) == pytrees.leaf_names(by_linen)
    flat = BERT(dataclasses.replace(config, scan=False))
    assert pytrees.leaf_names(unstack(params)) == pytrees.leaf_names(jax.eval_shape(lambda: init_params(flat, 0)))
    other = init_params(BERT(config), 1)
    assert (other["pooler"]["kernel"] != params["pooler"]["kernel"]).all()
    for name, leaf in zip(pytrees.leaf_names(params), jax.tree.leaves(params), strict=True):
        assert len(LOGICAL_AXES["/".join(name.split("/")[-2:])]) + name.startswith("blocks/") == leaf.ndim, name


def test_without_next_sentence_there_is_no_such_head():
    config = dataclasses.replace(SMALL, next_sentence=False)
    params = params_of(config)
    assert "next_sentence" not in params
    assert apply(config, params).next_B2 is None
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: init_params(BERT(config), 0))))
    assert bert.parameters(config)["total"] == count == bert.parameters(SMALL)["total"] - 2 * 24 - 2


def gradient_of(config, rows):
    """The gradient of some loss, lowered for `rows` rows of a full context."""
    shapes = jax.eval_shape(lambda: init_params(BERT(config), 0))
    ids = jax.ShapeDtypeStruct((rows, config.context), jnp.int32)
    places = jax.ShapeDtypeStruct((rows, bert.predictions(config.context)), jnp.int32)

    def total(params, ids, places):
        outputs = BERT(config).apply({"params": params}, ids, kinds_BT=ids, real_BT=ids, places_BP=places)
        return jax.nn.logsumexp(outputs.logits_BPV, -1).sum() + outputs.next_B2.sum()

    return jax.jit(jax.grad(total)).lower(shapes, ids, places)


MEASURED = BERTConfig(layers=1, width=256, heads=4, context=128, vocab_size=2000, dropout=0.0, scan=False)


def test_flops_equal_what_the_compiler_counts():
    """Sums, norms and other elementwise functions add less than 5 %."""
    counted = gradient_of(MEASURED, 2).cost_analysis()["flops"]
    assert counted == pytest.approx(bert.flops_per_token(MEASURED) * 2 * 128, rel=0.05)


@pytest.mark.slow
def test_memory_is_about_what_the_compiler_plans():
    config = dataclasses.replace(MEASURED, layers=6, scan=True)
    planned = gradient_of(config, 16).compile().memory_analysis().temp_size_in_bytes
    estimate = 16 * (128 * bert.activation_bytes(config) + 8 * bert.predictions(128) * config.vocab_size)
    assert 1 / 1.5 < planned / estimate < 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "model.width=24 does not divide among model.heads=5"),
        ({"layers": 0}, "model.layers = 0 must be an integer from 1"),
        ({"dropout": 1.0}, "model.dropout = 1.0 must be"),
        ({"context": 4}, "model.context = 4 must be an integer from 5"),
        ({"segments": 1}, "model.segments = 1 must be an integer from 2"),
    ],
)
def test_no_model_can_be_built_from_this(change, message):
    with pytest.raises(UserError, match=message):
        registry.check(dataclasses.replace(SMALL, **change))


# ---- The rest ---------------------------------------------------------------------------------------------------


def test_captured_weights_are_those_of_attention():
    capturing = partial(BERT(SMALL, capture=True).apply, mutable=["intermediates"])
    outputs, kept = jax.jit(capturing)({"params": params_of()}, **ROWS)
    np.testing.assert_allclose(outputs.hidden_BTD, apply(SMALL, params_of()).hidden_BTD, rtol=1e-5, atol=1e-5)
    layers = kept["intermediates"]["blocks"]["attention"]["weights"][0]
    assert layers.shape == (2, 3, 4, 12, 12)
    np.testing.assert_allclose(layers.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(layers > 0, np.broadcast_to(REAL[:, None, None], layers.shape))
    unrolled = dataclasses.replace(SMALL, scan=False)
    capturing = partial(BERT(unrolled, capture=True).apply, mutable=["intermediates"])
    kept = jax.eval_shape(capturing, {"params": params_of(unrolled)}, **ROWS)[1]["intermediates"]
    assert kept["block_1"]["attention"]["weights"][0].shape == (3, 4, 12, 12)


def test_more_tokens_than_positions_are_refused():
    rows = {name: np.pad(x, ((0, 0), (0, 1))) for name, x in ROWS.items()}
    with pytest.raises(UserError, match=r"13 tokens .* model.context=12"):
        jax.eval_shape(BERT(SMALL).apply, {"params": params_of()}, **rows)
