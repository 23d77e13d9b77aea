from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.models.attention.attend import attend
from lmjax.models.attention.blockwise import blockwise


def arrays(rng, B, T, S, G, R, K, dtype=np.float32):
    """Queries, keys, values and the gradient of what comes out."""
    shapes = (B, T, G * R, K), (B, S, G, K), (B, S, G, K), (B, T, G * R, K)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def expected(q, k, v, g, visible_BTS):
    """The output and the gradients of q, k and v, in float64, as the derivative of softmax is written down."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    G, R, scale = k.shape[2], q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    k, v = (np.repeat(x, R, axis=2) for x in (k, v))
    weights = np.exp(np.einsum("bthk,bshk->bhts", q, k) * scale) * visible_BTS[:, None]
    weights /= np.maximum(weights.sum(-1, keepdims=True), np.finfo(np.float64).tiny)  # without keys: zeros
    d_weights = np.einsum("bthk,bshk->bhts", g, v)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bhts,bthk->bshk", d_scores, q), np.einsum("bhts,bthk->bshk", weights, g)
    dk, dv = (x.reshape(*x.shape[:2], G, R, -1).sum(3) for x in (dk, dv))
    return np.einsum("bhts,bshk->bthk", weights, v), np.einsum("bhts,bshk->bthk", d_scores, k), dk, dv


@partial(jax.jit, static_argnames=("causal", "block", "dtype", "dropout_rate"))
def found(q, k, v, g, **how):
    out, pull = jax.vjp(partial(blockwise, **how), q, k, v)
    return out, *pull(g)


def close(ours, theirs, tolerance=1e-5):
    """float32 against float64: sums of a few dozen terms near 1."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 9),
    keys=st.integers(1, 9),
    block=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    causal=st.booleans(),
    masks=st.sets(st.sampled_from(["segments", "seen", "ends"])),
)
def test_values_and_gradients_equal_those_of_the_closed_form(seed, length, keys, block, heads, causal, masks):
    """Whatever the lengths and the blocks, with any masks, also where a query sees nothing."""
    rng, B = np.random.default_rng(seed), 2
    inputs = arrays(rng, B, length, keys, *heads, 4)
    places_T = np.arange(length)
    visible_BTS = np.ones((B, length, keys), bool) & ((not causal) | (places_T[:, None] >= np.arange(keys)))
    how = {}
    if "segments" in masks:
        of_queries, of_keys = (rng.integers(0, 2, (B, n)).astype(np.int32) for n in (length, keys))
        how["segments"] = of_queries, of_keys
        visible_BTS &= of_queries[:, :, None] == of_keys[:, None]
    if "seen" in masks:
        how["seen_BS"] = rng.integers(0, 2, (B, keys)).astype(np.int32)
        visible_BTS &= how["seen_BS"][:, None] != 0
    if "ends" in masks:
        how["ends_BS"] = rng.integers(0, length + 1, (B, keys)).astype(np.int32)
        visible_BTS &= places_T[:, None] < how["ends_BS"][:, None]
    close(found(*inputs, causal=causal, block=block, **how), expected(*inputs, visible_BTS))


def test_a_part_of_the_queries_has_its_part_of_the_result():
    """As on a mesh that divides sequences: where queries begin is known only when the program runs."""
    rng, (B, T, part) = np.random.default_rng(0), (2, 42, 14)
    q, k, v, g = arrays(rng, B, T, T, 2, 2, 8)
    segments = np.sort(rng.integers(0, 3, (B, T)), axis=1).astype(np.int32)
    ends = np.minimum(np.arange(T) + rng.integers(1, 30, (B, T)), T).astype(np.int32)
    visible = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None])
    theirs = expected(q, k, v, g, visible & (np.arange(T)[:, None] < ends[:, None]))
    parts = []
    for start in range(0, T, part):
        own, offset = slice(start, start + part), jnp.int32(start)
        how = {"segments": (segments[:, own], segments), "ends_BS": ends, "offset": offset, "block": 8}
        parts.append(found(q[:, own], k, v, g[:, own], causal=True, **how))
    out, dq, dk, dv = zip(*parts, strict=True)
    close([np.concatenate(out, 1), np.concatenate(dq, 1), sum(dk), sum(dv)], theirs)


@pytest.mark.slow
def test_the_form_of_attend_gives_what_the_other_gives():
    rng = np.random.default_rng(1)
    q, k, v, g = arrays(rng, 2, 300, 300, 1, 2, 8)
    how = {"causal": True, "segments_BT": np.sort(rng.integers(0, 4, (2, 300)), axis=1)}

    @partial(jax.jit, static_argnames=("form", "dtype"))
    def run(form, dtype="float32"):
        out, pull = jax.vjp(partial(attend, **how, form=form, dtype=dtype), q, k, v)
        return out, *pull(g)

    wide = run("xla")
    close(run("blockwise"), wide)
    for a, b in zip(run("blockwise", "bfloat16"), wide, strict=True):
        assert a.dtype == jnp.float32
        # two roundings of 2^-9 on each factor; the scores (standard deviation 1) make of theirs a relative error
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 4 * 2**-9


@pytest.mark.slow
def test_dropout_drops_weights_and_its_gradient_drops_the_same():
    """With the identity as values the weights themselves come out: each is nothing, or it is 1 / (1 - rate) of it."""
    rng, (T, H, rate) = np.random.default_rng(2), (48, 4, 0.25)
    with jax.enable_x64(True):
        q, k, _, g = (jnp.asarray(x) for x in arrays(rng, 1, T, T, H, 1, T, np.float64))
        v = jnp.broadcast_to(jnp.eye(T)[None, :, None], (1, T, H, T))
        how = {"causal": True, "block": 16}
        dropped = {"dropout_rate": rate, "dropout_key": jax.random.key(0)}
        out, dq, dk, dv = found(q, k, v, g, **how, **dropped)
        whole, *_ = expected(q, k, v, g, np.tril(np.ones((1, T, T), bool)))
        below, kept = whole[0] != 0, np.asarray(out[0] != 0)
        np.testing.assert_allclose(out[0], kept * whole[0] / (1 - rate), rtol=1e-12)
        assert abs(kept[below].mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / below.sum())  # standard errors
        assert len({kept[i : i + 16, :, i : i + 16].tobytes() for i in (0, 16, 32)}) == 3  # each block its own
        f = jax.jit(lambda q, k, v: jnp.sum(blockwise(q, k, v, **how, **dropped) * g))
        for i, gradient in enumerate((dq, dk, dv)):
            h = [jnp.zeros(x.shape) for x in (q, k, v)]
            h[i] = jnp.asarray(np.random.default_rng(7 + i).standard_normal(gradient.shape)) * 1e-5
            difference = float(f(q + h[0], k + h[1], v + h[2]) - f(q - h[0], k - h[1], v - h[2]))
            # central differences: h^2 = 1e-10 of truncation, 1e-16 / h = 1e-11 of rounding, on sums of 10^3 terms
            assert 2 * jnp.vdot(gradient, h[i]) == pytest.approx(difference, rel=1e-6)


@pytest.mark.slow
def test_memory_grows_with_the_length_and_the_program_does_not():
    def lowered(form, T):
        q = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
        f = jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, causal=True, form=form)), (0, 1, 2))
        return jax.jit(f).lower(q, q, q)

    growth = {}
    for form, length in (("xla", 512), ("blockwise", 2048)):
        programs = [lowered(form, T) for T in (length, 2 * length)]
        first, second = (program.compile().memory_analysis().temp_size_in_bytes for program in programs)
        growth[form] = second / first
        if form == "blockwise":
            lengths = [len(program.as_text().splitlines()) for program in programs]
            assert lengths[0] == lengths[1]
            assert second < 4096 * 4096  # a quarter of the scores of one head
    assert growth["blockwise"] < 2.1
    assert growth["xla"] > 3
