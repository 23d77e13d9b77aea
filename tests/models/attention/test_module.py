from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.attention.attend import attend, attend_cached, attention_weights
from lmjax.models.costs import query_blocks

B, T, H, K = 2, 300, 4, 8  # three blocks of queries, the last shorter


def arrays(key_heads=H, T=T, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((B, T, heads, K)).astype(dtype) for heads in (H, key_heads, key_heads, H)]


def segments(T=T):
    return jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 6, (B, T)), axis=1))


def plain(q_BTHK, k_BSGK, v_BSGK, *, causal, segments_BT=None, seen_BS=None, ends_BS=None):
    """Softmax attention as one would write it down, every key head repeated."""
    T, S, repeats = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[2] // k_BSGK.shape[2]
    k_BSHK, v_BSHK = (jnp.repeat(x, repeats, axis=2) for x in (k_BSGK, v_BSGK))
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) / np.sqrt(K)
    visible_BTS = jnp.tril(jnp.ones((T, S), bool))[None] if causal else jnp.ones((1, T, S), bool)
    if segments_BT is not None:
        visible_BTS &= segments_BT[:, :, None] == segments_BT[:, None, :]
    if seen_BS is not None:
        visible_BTS &= seen_BS[:, None, :] != 0
    if ends_BS is not None:
        visible_BTS &= jnp.arange(T)[None, :, None] < ends_BS[:, None, :]
    weights_BHTS = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores_BHTS, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK)


def value_and_gradients(f, q, k, v, g):
    y, pull = jax.vjp(f, q, k, v)
    return y, *pull(g)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "key_heads", [4, pytest.param(2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_attend_and_its_gradients_equal_those_of_jax(key_heads, causal, packed):
    given = arrays(key_heads)
    how = {"causal": causal, "segments_BT": segments() if packed else None}
    ours = jax.jit(partial(value_and_gradients, partial(attend, **how)))(*given)
    theirs = jax.jit(partial(value_and_gradients, partial(plain, **how)))(*given)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def shown(S):
    """Keys of which three in four are seen, the first always."""
    return (np.random.default_rng(2).random((B, S)) < 0.75).astype(np.int32) | (np.arange(S) == 0)


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "S"), [pytest.param(True, 300, marks=pytest.mark.slow), (False, 40)])
def test_hidden_keys_of_another_sequence_and_the_gradients_equal_those_of_jax(causal, S):
    q, k, v, g = arrays(2)
    how = {"causal": causal, "seen_BS": shown(S)}
    given = q, k[:, :S], v[:, :S], g
    ours = jax.jit(partial(value_and_gradients, partial(attend, **how)))(*given)
    theirs = jax.jit(partial(value_and_gradients, partial(plain, **how)))(*given)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
    weights_BHTS = attention_weights(*given[:2], **how)
    mixed = jnp.einsum("bhts,bshk->bthk", weights_BHTS, jnp.repeat(given[2], 2, axis=2))
    np.testing.assert_allclose(ours[0], mixed, rtol=1e-5, atol=1e-5)


def test_places_of_a_tree_see_what_they_continue_and_the_gradients_equal_those_of_jax():
    given = arrays(2)
    ends_BS = np.minimum(np.arange(T) + np.random.default_rng(3).integers(1, 200, (B, T)), T)  # each sees itself
    how = {"causal": True, "ends_BS": ends_BS}
    ours = jax.jit(partial(value_and_gradients, partial(attend, **how)))(*given)
    theirs = jax.jit(partial(value_and_gradients, partial(plain, **how)))(*given)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("key_heads", [pytest.param(4, marks=pytest.mark.slow), 2, 1])
def test_attention_to_a_cache_is_attention_to_the_keys_that_are_there(key_heads):
    q, k, v, _ = arrays(key_heads, T=20)
    seen_BS = shown(20)
    spoilt = np.where(seen_BS[..., None, None] != 0, k, 1e30)  # what is not seen may be anything finite
    expected = plain(q[:, :3], k, v, causal=False, seen_BS=seen_BS)
    found = attend_cached(q[:, :3], spoilt.swapaxes(1, 2), v.swapaxes(1, 2), seen_BS != 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_row_without_keys_gives_zeros_and_no_gradient():
    *given, g = arrays(T=20)
    seen_BS = np.stack([np.zeros(20), np.ones(20)])
    hidden = value_and_gradients(partial(attend, causal=False, seen_BS=seen_BS), *given, g)
    free = value_and_gradients(partial(attend, causal=False), *given, g)
    for a, b in zip(hidden, free, strict=True):
        np.testing.assert_array_equal(a[0], 0)
        np.testing.assert_array_equal(a[1], b[1])
    assert not attention_weights(*given[:2], causal=False, seen_BS=seen_BS)[0].any()


@pytest.mark.slow
def test_bfloat16_is_float32_within_rounding():
    given = arrays()
    narrow = jax.jit(partial(value_and_gradients, partial(attend, causal=True, dtype="bfloat16")))(*given)
    wide = jax.jit(partial(value_and_gradients, partial(attend, causal=True)))(*given)
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.float32
        # two roundings of 2^-9 on each factor; the scores (standard deviation 1) make of theirs a relative error
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 4 * 2**-9


def test_a_changed_future_leaves_the_past_bit_identical():
    q, k, v, _ = arrays()
    f = jax.jit(partial(attend, causal=True))
    for t in (1, 127, 128, 129, 299):
        changed = [np.concatenate([x[:, :t], x[:, t:] + 100 * np.sign(x[:, t:])], 1) for x in (q, k, v)]
        np.testing.assert_array_equal(f(*changed)[:, :t], f(q, k, v)[:, :t])


@pytest.mark.parametrize("causal", [False, True])
def test_a_changed_document_leaves_its_neighbours_bit_identical(causal):
    q, k, v, _ = arrays()
    f, ids = jax.jit(partial(attend, causal=causal, segments_BT=segments())), np.asarray(segments())
    mine = (ids == 2)[..., None, None]
    assert mine.any(axis=1).all()
    changed = f(*(np.where(mine, x + 100, x) for x in (q, k, v)))
    np.testing.assert_array_equal(np.where(mine, 0, changed), np.where(mine, 0, f(q, k, v)))


@pytest.mark.slow
def test_dropout_is_a_function_of_its_key_and_right_on_average():
    q, k, v, _ = arrays(T=20)
    dropped = jax.jit(lambda key: attend(q, k, v, causal=True, dropout_rate=0.4, dropout_key=key))
    keys = jax.random.split(jax.random.key(0), 2000)
    np.testing.assert_array_equal(dropped(keys[0]), dropped(keys[0]))
    assert (dropped(keys[0]) != dropped(keys[1])).any()
    samples = jax.lax.map(dropped, keys, batch_size=100)
    error = (samples.mean(0) - attend(q, k, v, causal=True)) / (samples.std(0) / np.sqrt(len(keys)) + 1e-9)
    assert np.abs(error).max() < 6  # standard errors, of 1280 means


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gradients_equal_finite_differences(rate):
    with jax.enable_x64(True):
        q, k, v, g = (jnp.asarray(x) for x in arrays(2, T=140, dtype=np.float64))
        key = jax.random.key(3) if rate else None
        how = {"causal": True, "segments_BT": segments(140), "dropout_rate": rate, "dropout_key": key}
        f = jax.jit(lambda q, k, v: jnp.sum(attend(q, k, v, **how) * g))
        gradients = jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v)
        for i, gradient in enumerate(gradients):
            h = [jnp.zeros(x.shape) for x in (q, k, v)]
            h[i] = jnp.asarray(np.random.default_rng(7 + i).standard_normal(gradient.shape)) * 1e-5
            difference = float(f(q + h[0], k + h[1], v + h[2]) - f(q - h[0], k - h[1], v - h[2]))
            # central differences: h^2 = 1e-10 of truncation, 1e-16 / h = 1e-11 of rounding, on sums of 10^3 terms
            assert 2 * jnp.vdot(gradient, h[i]) == pytest.approx(difference, rel=1e-6)


@pytest.mark.slow
def test_attention_weights_are_those_that_attend_mixes_with():
    q, k, v, _ = arrays(2)
    weights_BHTS = attention_weights(q, k, causal=True, segments_BT=segments())
    np.testing.assert_allclose(weights_BHTS.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights_BHTS, 1).any()
    mixed = jnp.einsum("bhts,bshk->bthk", weights_BHTS, jnp.repeat(v, 2, axis=2))
    np.testing.assert_allclose(attend(q, k, v, causal=True, segments_BT=segments()), mixed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300, 1024, 5000])
def test_blocks_cover_every_query_once(length):
    blocks = query_blocks(length, length, True)
    assert [start for start, _, _ in blocks] == [0, *(end for _, end, _ in blocks[:-1])]
    assert blocks[-1][1] == length
    assert all(seen == end for _, end, seen in blocks)
    assert len(blocks) <= 8
    assert query_blocks(length, 2 * length, False) == [(0, length, 2 * length)]


@pytest.mark.slow
def test_dropout_in_bfloat16_keeps_the_mean():
    """1 / 0.9 itself rounded would be 0.16 % too small everywhere; weights rounded one by one err to both sides."""
    q, k, v, _ = arrays()
    how = {"causal": True, "dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
    narrow, wide = (attend(q, k, np.ones_like(v), **how, dtype=dtype).mean() for dtype in ("bfloat16", "float32"))
    assert abs(narrow / wide - 1) < 2e-4
