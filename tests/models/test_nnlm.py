import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import pytrees
from lmjax.config import NNLMConfig, UserError
from lmjax.models import nnlm, registry
from lmjax.models.nnlm import NNLM, context_ids, one_hot_features

SMALL = NNLMConfig(order=4, width=5, hidden=7, context=9, vocab_size=13)
OPTIONS = {
    "whole": SMALL,
    "indirect": dataclasses.replace(SMALL, direct=False),
    "linear": dataclasses.replace(SMALL, hidden=0),
    "bigram": dataclasses.replace(SMALL, order=2),
}
over_options = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
SEGMENTS = np.repeat([[1, 3, 2], [5, 6, 7]], [2, 3, 4], axis=1)


def ids(rows=2, T=9, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (rows, T)).astype(np.int32)


def rough(config, seed=0):
    """Parameters in which every leaf matters: none zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(NNLM(config).init, jax.random.key(0), ids())["params"]
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def apply(config, params, inputs, **keywords):
    return jax.jit(partial(NNLM(config).apply, **keywords))({"params": params}, inputs)


def written_out(config, params, inputs, segments=None):
    """The paper's y = b + W x + U tanh(d + H x), place by place in double precision."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table, logits = params["token_embedding"]["embedding"], np.zeros((*inputs.shape, config.vocab_size))
    for b, t in np.ndindex(inputs.shape):
        x = []
        for place in range(t, t - config.order + 1, -1):
            inside = place >= 0 and (segments is None or segments[b, place] == segments[b, t])
            x.append(table[inputs[b, place] if inside else config.vocab_size])
        x = np.concatenate(x)
        if config.direct:
            logits[b, t] += x @ params["direct"]["kernel"] + params["direct"].get("bias", 0)
        if config.hidden:
            hidden = np.tanh(params["hidden"]["bias"] + x @ params["hidden"]["kernel"])
            logits[b, t] += params["head"]["bias"] + hidden @ params["head"]["kernel"]
    return logits


@over_options
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["plain", "packed"])
def test_logits_are_those_of_the_paper(config, segments):
    params = rough(config)
    ours = apply(config, params, ids(), segments_BT=segments)
    # logits of size 10 in float32: sums of some twenty terms
    np.testing.assert_allclose(ours, written_out(config, params, ids(), segments), rtol=1e-5, atol=1e-5)


def test_one_hot_products_equal_the_look_up_bit_for_bit():
    table = rough(SMALL)["token_embedding"]["embedding"]
    seen = context_ids(jnp.asarray(ids()), SMALL)
    assert (seen == SMALL.vocab_size).any()
    np.testing.assert_array_equal(one_hot_features(table, seen), table[seen])


def test_a_token_is_felt_at_its_place_and_the_two_after_it():
    params, inputs, place = rough(SMALL), ids(), 4
    changed = inputs.copy()
    changed[:, place] = (changed[:, place] + 1) % SMALL.vocab_size
    before, after = apply(SMALL, params, inputs), apply(SMALL, params, changed)
    differs = (np.asarray(before) != after).any(axis=(0, 2))
    assert np.flatnonzero(differs).tolist() == [place, place + 1, place + 2]


def test_a_segment_is_as_if_alone():
    params, inputs = rough(SMALL), ids()
    packed = apply(SMALL, params, inputs, segments_BT=SEGMENTS)
    alone = np.concatenate([apply(SMALL, params, inputs[:, a:b]) for a, b in [(0, 2), (2, 5), (5, 9)]], axis=1)
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)  # products of fewer rows may add up otherwise


@over_options
def test_the_gradient_is_the_slope_of_the_paper(config):
    """Along a random direction of all parameters, for a random mix of logits.

    Central differences of 1e-5 in double precision, of the model written out; our gradient is float32.
    """
    params, direction, inputs = rough(config), rough(config, seed=1), ids()
    mix = np.random.default_rng(2).standard_normal((2, 9, 13)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(mix * NNLM(config).apply({"params": params}, inputs))))(params)
    ours = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))

    def at(step):
        moved = jax.tree.map(lambda p, d: p.astype(np.float64) + step * d, params, direction)
        return np.sum(mix * written_out(config, moved, inputs))

    assert ours == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-4)


def test_dropout_only_in_training():
    config, params, inputs = dataclasses.replace(SMALL, dropout=0.5), rough(SMALL), ids()
    plain = apply(SMALL, params, inputs)
    np.testing.assert_array_equal(apply(config, params, inputs), plain)
    dropped = apply(config, params, inputs, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(np.asarray(dropped) - plain).max() > 0.1


@over_options
def test_the_closed_forms_equal_the_model(config):
    params = jax.eval_shape(NNLM(config).init, jax.random.key(0), ids())["params"]
    assert nnlm.parameters(config)["total"] == pytrees.count(params)
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert nnlm.flops_per_token(config) == 6 * pytrees.count(kernels)
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(config, dtype=dtype)
        # differentiation keeps some arrays twice, which a compiled program merges
        assert 1 <= kept_bytes(NNLM(config), params) / nnlm.activation_bytes(config) < 2


def kept_bytes(model, params):
    """Bytes a token that differentiating the sum of the logits keeps."""

    def kept(T):
        def pull(params):
            return jax.vjp(lambda params: jnp.sum(model.apply({"params": params}, ids(2, T))), params)[1]

        return pytrees.nbytes(jax.eval_shape(pull, params))

    return (kept(32) - kept(16)) / (2 * 16)


@pytest.mark.parametrize(
    ("key", "value"), [("order", 1), ("width", 0), ("hidden", -1), ("init_std", -0.1), ("dropout", 1.0)]
)
def test_what_is_out_of_range_is_named(key, value):
    registry.check(SMALL)
    with pytest.raises(UserError, match=rf"model\.{key} = "):
        registry.check(dataclasses.replace(SMALL, **{key: value}))


def test_some_way_must_lead_to_the_output():
    with pytest.raises(UserError, match=r"set model\.direct=true"):
        registry.check(dataclasses.replace(SMALL, hidden=0, direct=False))
