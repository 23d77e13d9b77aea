import dataclasses
import importlib.util
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import pytrees
from lmjax.config import RNNConfig, UserError
from lmjax.models import registry, rnn
from lmjax.models.rnn import RNN, begin, gradient_by_lag, recur, unrolled
from tests import FIXTURES

SMALL = RNNConfig(layers=2, width=6, context=8, vocab_size=11)
over_cells = pytest.mark.parametrize("cell", rnn.GATES)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ids(rows=3, T=8, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (rows, T)).astype(np.int32)


def rough(config, seed=0):
    """Parameters in which every leaf matters: none zero."""
    shapes = jax.eval_shape(RNN(config).init, jax.random.key(0), ids())["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([0.5 * normal(*leaf.shape, seed=seed + i) for i, leaf in enumerate(leaves)])


def apply(config, params, inputs, **keywords):
    return jax.jit(lambda params, inputs, keywords: RNN(config).apply({"params": params}, inputs, **keywords))(
        params, inputs, keywords
    )


def state(config, rows=3):
    return {name: normal(*leaf.shape, seed=7) for name, leaf in begin(config, rows).items()}


def assert_close(ours, theirs, tolerance=1e-6):
    """States and logits are of size 1, and the same sums of at most 24 float32 terms, perhaps in another order."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), ours, theirs)


# ---- Against independent implementations ------------------------------------------------------------------------


@over_cells
@pytest.mark.parametrize("source", ["fixture", pytest.param("live", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of torch
def test_logits_states_and_gradients_equal_those_of_pytorch(cell, source):
    spec = importlib.util.spec_from_file_location("rnn_torch", FIXTURES / "rnn_torch.py")
    assert spec is not None
    assert spec.loader is not None
    given = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(given)
    if source == "live":
        pytest.importorskip("torch")
        expected = given.make()
    else:
        with np.load(FIXTURES / "rnn_torch.npz", allow_pickle=False) as file:
            expected = dict(file)
    config, inputs, weights = dataclasses.replace(SMALL, cell=cell), given.inputs(), given.weights(cell)
    carry = {name: inputs[name].swapaxes(0, 1) for name in begin(config, 1)}

    def total(params):
        logits, carry_after = RNN(config).apply({"params": params}, inputs["ids"], carry=carry)
        return jnp.sum(logits * inputs["gradient"]), (logits, carry_after)

    params = from_torch(cell, weights)
    gradients, (logits, carry_after) = jax.jit(jax.grad(total, has_aux=True))(params)
    # float32 against float64: logits and states of size 1; gradients are sums over 21 steps, by their largest value
    np.testing.assert_allclose(logits, expected[f"{cell}/logits"], rtol=1e-5, atol=1e-5)
    for name, leaf in carry_after.items():
        np.testing.assert_allclose(leaf.swapaxes(0, 1), expected[f"{cell}/{name}"], rtol=1e-5, atol=1e-5)
    theirs = from_torch(cell, {name: expected[f"{cell}/gradient/{name}"] for name in weights}, gradients=True)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6 * largest), gradients, theirs)


def from_torch(cell, named, *, gradients=False):
    """PyTorch's names and (out, in) matrices to ours. Its two biases are one of ours, but for a GRU's candidate:
    our weight is their sum, our gradient that of either."""
    params = {
        "token_embedding": {"embedding": named["embedding.weight"]},
        "head": {"kernel": named["head.weight"].T, "bias": named["head.bias"]},
    }
    for i in range(SMALL.layers):
        from_input, from_state = (named[f"rnn.bias_{x}_l{i}"].copy() for x in ("ih", "hh"))
        recurrent = {"kernel": named[f"rnn.weight_hh_l{i}"].T}
        if cell == "gru":
            recurrent["bias"] = from_state[-SMALL.width :].copy()
            from_state[-SMALL.width :] = 0
        params[f"layer_{i}"] = {
            "input": {"kernel": named[f"rnn.weight_ih_l{i}"].T},
            "recurrent": recurrent,
            "bias": from_input if gradients else from_input + from_state,
        }
    return params


@over_cells
def test_the_own_gradient_equals_that_of_the_scan(cell):
    T, B, H = 9, 3, 5
    G = rnn.GATES[cell] * H
    carry = {name: normal(B, H, seed=i) for i, name in enumerate(["h", "c"] if cell == "lstm" else ["h"])}
    given = normal(T, B, G, seed=3), 0.5 * normal(H, G, seed=4), normal(G, seed=5), carry
    keep = (normal(T, B, seed=6) > -1).astype(np.float32)
    d_h, d_last = normal(T, B, H, seed=8), {name: normal(B, H, seed=9) for name in carry}

    def both(f):
        value, pull = jax.vjp(f, *given)
        return value, pull((d_h, d_last))

    ours = jax.jit(lambda: both(lambda *args: recur(cell, "float32", *args, keep)))()
    plain = jax.jit(lambda: both(lambda *args: unrolled(cell, *args, keep)[:2]))()
    assert_close(ours, plain, 1e-5)  # gradients of size 10


# ---- The state --------------------------------------------------------------------------------------------------


@over_cells
def test_halves_that_carry_the_state_on_equal_the_whole(cell):
    """To 1e-6: the products of half as many rows may add up in another order."""
    config, inputs = dataclasses.replace(SMALL, cell=cell), ids()
    params, first = rough(config), state(config)
    whole, last = apply(config, params, inputs, carry=first)
    left, between = apply(config, params, inputs[:, :4], carry=first)
    right, end = apply(config, params, inputs[:, 4:], carry=between)
    assert_close((np.concatenate([left, right], 1), end), (whole, last))
    from_zero, _ = apply(config, params, inputs, carry=begin(config, 3))
    np.testing.assert_array_equal(apply(config, params, inputs), from_zero)
    assert np.abs(np.asarray(whole) - from_zero).max() > 0.1


def test_no_gradient_flows_into_the_carry():
    params, total = rough(SMALL), lambda out: jnp.sum(out[0]) + jnp.sum(out[1]["c"])
    gradient = jax.grad(lambda carry: total(apply(SMALL, params, ids(), carry=carry)))(state(SMALL))
    assert not any(leaf.any() for leaf in gradient.values())


def test_segments_are_as_if_alone():
    inputs, params, first = ids(), rough(SMALL), state(SMALL)
    segments = np.broadcast_to(np.repeat([4, 2, 9], [3, 1, 4]), inputs.shape)
    packed, end = apply(SMALL, params, inputs, carry=first, segments_BT=segments)
    begun, _ = apply(SMALL, params, inputs[:, :3], carry=first)  # the first segment is that of the window before
    alone = apply(SMALL, params, inputs[:, 3:4])
    last, last_end = apply(SMALL, params, inputs[:, 4:], carry=begin(SMALL, 3))
    assert_close((packed, end), (np.concatenate([begun, alone, last], 1), last_end))


# ---- Options ----------------------------------------------------------------------------------------------------


def test_dropout_only_in_training_and_never_from_step_to_step():
    config, inputs = dataclasses.replace(SMALL, dropout=0.5), ids()
    params, keywords = rough(config), {"carry": state(config)}
    logits, end = apply(config, params, inputs, **keywords)
    np.testing.assert_array_equal(logits, apply(SMALL, params, inputs, **keywords)[0])
    training = jax.jit(partial(RNN(config).apply, train=True, rngs={"dropout": jax.random.key(0)}))
    dropped, dropped_end = training({"params": params}, inputs, **keywords)
    assert np.abs(np.asarray(logits) - dropped).max() > 0.1
    assert_close(dropped_end["h"][:, 0], end["h"][:, 0])  # the first layer has no dropout before it
    assert np.abs(np.asarray(dropped_end["h"] - end["h"])[:, 1]).max() > 0.01


def test_bfloat16_rounds_and_no_more():
    params, inputs = rough(SMALL), ids()
    rounded = apply(dataclasses.replace(SMALL, dtype="bfloat16"), params, inputs)
    assert rounded.dtype == jnp.float32
    gap = np.abs(np.asarray(rounded) - apply(SMALL, params, inputs)).max()
    assert 1e-4 < gap < 0.05  # inputs to 8 bits: 2^-8 a factor, logits of size 1


@over_cells
@pytest.mark.parametrize("tied", [False, True])
def test_the_closed_forms_equal_the_model(cell, tied):
    config = dataclasses.replace(SMALL, cell=cell, tied=tied, layers=3, width=16)
    params = jax.eval_shape(RNN(config).init, jax.random.key(0), ids())["params"]
    assert rnn.parameters(config)["total"] == pytrees.count(params)
    layers = {name: leaf for name, leaf in params.items() if "layer" in name}
    assert rnn.parameters(config)["layers"] == pytrees.count(layers)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    products = sum(math.prod(leaf.shape) for leaf in kernels) - (0 if tied else config.vocab_size * config.width)
    assert rnn.flops_per_token(config) == 6 * products
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(config, dtype=dtype)
        assert rnn.activation_bytes(config) == pytest.approx(kept_bytes(RNN(config), params), rel=0.02)


def kept_bytes(model, params):
    """Bytes a token that differentiating the sum of the logits keeps."""

    def kept(T):
        def pull(params):
            return jax.vjp(lambda params: jnp.sum(model.apply({"params": params}, ids(2, T))), params)[1]

        return pytrees.nbytes(jax.eval_shape(pull, params))

    return (kept(32) - kept(16)) / (2 * 16)


@pytest.mark.slow
def test_the_start_is_that_of_the_table():
    config = dataclasses.replace(SMALL, width=64, vocab_size=200, forget_bias=2.5)
    layer = jax.jit(RNN(config).init)(jax.random.key(0), ids())["params"]["layer_1"]
    bias = np.asarray(layer["bias"]).reshape(4, 64)
    assert (bias[1] == 2.5).all()
    assert not bias[[0, 2, 3]].any()
    gates = np.asarray(layer["recurrent"]["kernel"]).reshape(64, 4, 64).transpose(1, 0, 2)
    np.testing.assert_allclose(gates @ gates.swapaxes(1, 2), np.broadcast_to(np.eye(64), (4, 64, 64)), atol=1e-5)
    assert np.abs(gates[0] - gates[1]).max() > 0.1
    assert np.std(layer["input"]["kernel"]) == pytest.approx(1 / 8, rel=0.03)  # 16,384 draws: 5 standard errors


def test_tied_is_the_same_model_with_the_scaled_table_on_both_sides():
    tied = rough(dataclasses.replace(SMALL, tied=True))
    table, scale = tied["token_embedding"]["embedding"], math.sqrt(SMALL.width)
    head = {"kernel": table.T, "bias": np.zeros(SMALL.vocab_size, np.float32)}
    untied = tied | {"token_embedding": {"embedding": scale * table}, "head": head}
    assert_close(apply(dataclasses.replace(SMALL, tied=True), tied, ids()), apply(SMALL, untied, ids()))


@pytest.mark.parametrize(
    ("key", "value"), [("layers", 0), ("width", 0), ("vocab_size", -1), ("dropout", 1.0), ("forget_bias", math.inf)]
)
def test_what_is_out_of_range_is_named(key, value):
    registry.check(SMALL)
    with pytest.raises(UserError, match=rf"model\.{key} = "):
        registry.check(dataclasses.replace(SMALL, **{key: value}))


# ---- How far back a prediction is felt --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", [pytest.param(0.3, marks=pytest.mark.slow), 1.0, 1.6])
def test_gradients_vanish_or_explode_like_the_powers_of_the_recurrent_weights(scale):
    """With nothing coming in every state is 0, where tanh is the identity: the gradient is U's power times the last's.

    U is `scale` times an orthogonal matrix. At scale 0.3 the smallest norm is 1e-31, whose square float32 has not.
    """
    config, T = dataclasses.replace(SMALL, cell="tanh", layers=1), 60
    params = jax.tree.map(jnp.zeros_like, rough(config))
    head, orthogonal = normal(6, 11), np.linalg.qr(normal(6, 6, seed=1))[0]
    params["head"]["kernel"] = jnp.asarray(head)
    params["layer_0"]["recurrent"]["kernel"] = jnp.asarray(scale * orthogonal)
    targets = np.array([3, 8])
    norms = gradient_by_lag(RNN(config), params, ids(2, T), targets_B=targets)
    last = (np.full((2, 11), 1 / 11) - np.eye(11)[targets]) @ head.T / 2
    # 1e-5: sixty products of float32 in a row
    np.testing.assert_allclose(norms, np.linalg.norm(last) * scale ** np.arange(T), rtol=1e-5)


@pytest.mark.slow
@over_cells
def test_the_gradient_by_lag_is_the_slope_of_the_loss(cell):
    """Central differences of 1e-2 in float32: their error is some 1e-4 by curvature, and 1e-5 by rounding."""
    config, T, lag = dataclasses.replace(SMALL, cell=cell), 6, 2
    model, params, inputs, targets = RNN(config), rough(config), ids(1, T), np.array([4])

    @jax.jit
    @jax.vmap
    def loss(nudge_LTBH):
        return -jax.nn.log_softmax(model.apply({"params": params}, inputs, nudge_LTBH=nudge_LTBH)[0, -1])[4]

    units = np.eye(2 * 6, dtype=np.float32).reshape(12, 2, 1, 6)
    steps = np.zeros((12, 2, T, 1, 6), np.float32)
    steps[:, :, T - 1 - lag] = 1e-2 * units
    slopes = (loss(steps) - loss(-steps)) / 2e-2
    norms = jax.jit(partial(gradient_by_lag, model))(params, inputs, targets_B=targets)
    assert norms[lag] == pytest.approx(float(np.linalg.norm(slopes)), rel=1e-3)
