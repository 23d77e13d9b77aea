import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import TransformerConfig, UserError
from lmjax.inference.beam import beam_search, greedy, search, translate
from lmjax.models.transformer import Transformer

V, T, BEGIN, END = 4, 4, 1, 2
COMMON = {"begin": BEGIN, "end": END, "max_length": T}


def models(rows, spread=1.5, seed=0):
    """One random model a row: logits by place and the two tokens before, a table (rows, T, V, V, V)."""
    return (spread * np.random.default_rng(seed).standard_normal((rows, T, V, V, V))).astype(np.float32)


def step(tokens_N, place, cache):
    """The tables are handed back untouched, the token before is what the cache remembers."""
    logits_NV = cache["tables"][jnp.arange(tokens_N.size), place, cache["before"], tokens_N]
    return logits_NV, {"tables": cache["tables"], "before": tokens_N}


def start(tables):
    return {"tables": tables, "before": jnp.zeros(len(tables), jnp.int32)}


def run(decode, tables, *, length_penalty=0.0, **settings):
    jitted = compiled(decode, tuple((COMMON | {"rows": len(tables)} | settings).items()))
    return [np.asarray(result) for result in jitted(tables, length_penalty)]


@functools.cache
def compiled(decode, settings):
    return jax.jit(lambda tables, power: decode(step, start(tables), **dict(settings), length_penalty=power))


def log_probabilities(table, ids):
    """Of each token of a hypothesis without its filling, in double precision."""
    logits = [table[t, a, b] for t, (a, b) in enumerate(itertools.pairwise([0, BEGIN, *ids[:-1]]))]
    logits = np.asarray(logits, np.float64)
    return [x[token] - np.log(np.exp(x).sum()) for x, token in zip(logits, ids, strict=True)]


def score(table, ids, length_penalty):
    ids = list(ids)
    ids = ids[: ids.index(END) + 1] if END in ids else ids
    return sum(log_probabilities(table, ids)) / ((5 + len(ids)) / 6) ** length_penalty


def every_hypothesis():
    """Filled up with END."""
    others = [token for token in range(V) if token != END]
    for length in range(T):
        for ids in itertools.product(others, repeat=length):
            yield (*ids, *[END] * (T - length))
    yield from itertools.product(others, repeat=T)


def plain_beam_search(table, beams, length_penalty):
    """As one would write it down: (score, ids) of the finished, best first; never stops before T."""
    live, done = [(0.0, ())], []
    for place in range(T):
        candidates = []
        for total, ids in live:
            for token in range(V):
                candidates.append((total + log_probabilities(table, [*ids, token])[-1], (*ids, token)))
        candidates = sorted(candidates, reverse=True)[: 2 * beams]
        live = []
        for total, ids in candidates:
            if ids[-1] == END or place + 1 == T:
                filled = (*ids, *[END] * (T - len(ids)))
                done.append((total / ((5 + len(ids)) / 6) ** length_penalty, filled))
            else:
                live.append((total, ids))
        live, done = live[:beams], sorted(done, reverse=True)[:beams]
    return done


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_an_exhaustive_beam_finds_the_best_of_all_sequences(length_penalty):
    beams = (V - 1) ** (T - 1)  # as many as unfinished hypotheses ever are before the last token
    tables = models(6)
    ids_BKT, scores_BK = run(beam_search, tables, beams=beams, length_penalty=length_penalty)
    for table, ids, scores in zip(tables, ids_BKT, scores_BK, strict=True):
        ranked = sorted(((score(table, x, length_penalty), x) for x in every_hypothesis()), reverse=True)[:beams]
        np.testing.assert_allclose(scores, [value for value, _ in ranked], atol=1e-5)  # float32 sums of 4 terms
        assert ids.tolist() == [list(x) for _, x in ranked]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_narrow_beam_finds_what_a_plain_one_without_early_stopping_finds(beams, length_penalty):
    tables = models(40, seed=1)
    ids_BKT, scores_BK = run(search, tables, beams=beams, length_penalty=length_penalty)
    for table, ids, scores in zip(tables, ids_BKT, scores_BK, strict=True):
        expected = plain_beam_search(table, beams, length_penalty)
        np.testing.assert_allclose(scores, [value for value, _ in expected], atol=1e-5)
        assert ids.tolist() == [list(x) for _, x in expected]


def test_greedy_takes_the_most_likely_token_each_time():
    tables = models(50)
    ids_BT, scores_B = run(greedy, tables, length_penalty=0.6)
    for table, ids, value in zip(tables, ids_BT, scores_B, strict=True):
        expected, before = [], (0, BEGIN)
        for t in range(T):
            expected.append(int(table[t, before[0], before[1]].argmax()) if END not in expected else END)
            before = before[1], expected[-1]
        assert ids.tolist() == expected
        assert value == pytest.approx(score(table, ids, 0.6), abs=1e-5)


def test_one_beam_is_greedy():
    """A search of that width would go on past a likely end, and find no worse."""
    tables = models(200)
    ids_BT, scores_B = run(greedy, tables, length_penalty=0.6)
    ids_BKT, scores_BK = run(beam_search, tables, beams=1, length_penalty=0.6)
    np.testing.assert_array_equal(ids_BKT[:, 0], ids_BT)
    np.testing.assert_array_equal(scores_BK[:, 0], scores_B)
    _, alone_BK = run(search, tables, beams=1, length_penalty=0.6)
    assert (alone_BK[:, 0] >= scores_B - 1e-6).all()


@pytest.mark.parametrize("length_penalty", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("beams", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_beam_never_scores_below_greedy(beams, length_penalty):
    """On a thousand random models, of which the search by itself is below greedy on some."""
    tables, how = models(1000, seed=2), {"beams": beams, "length_penalty": length_penalty}
    _, greedy_B = run(greedy, tables, length_penalty=length_penalty)
    ids_BKT, scores_BK = run(beam_search, tables, **how)
    assert (scores_BK[:, 0] >= greedy_B).all()
    assert (np.diff(scores_BK, axis=1) <= 0).all()
    for table, ids, value in zip(tables[:50], ids_BKT[:50, 0], scores_BK[:50, 0], strict=True):
        assert value == pytest.approx(score(table, ids, length_penalty), abs=1e-5)
    assert all(len({tuple(x) for x in ids}) == beams for ids in ids_BKT)
    _, alone_BK = run(search, tables, **how)
    assert (scores_BK >= alone_BK - 1e-6).all()
    assert beams > 2 or (alone_BK[:, 0] < greedy_B).any()


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours():
    tables = models(5, seed=3)
    together = run(beam_search, tables, beams=3, length_penalty=0.6)
    for i in range(5):
        for all_rows, alone in zip(
            together, run(beam_search, tables[i : i + 1], beams=3, length_penalty=0.6), strict=True
        ):
            np.testing.assert_array_equal(all_rows[i : i + 1], alone)


@pytest.mark.slow
def test_decoding_stops_when_nothing_better_can_come():
    """Of a model that ends at the third token almost surely, or else most likely at the first."""
    places = []

    def ending(tokens_N, place, cache):
        jax.debug.callback(lambda place: places.append(int(place)), place)
        logits_V = jnp.where(place == 2, jnp.array([0.0, 0.0, 20.0, 0.0]), jnp.array([0.0, 0.0, 10.0, 20.0]))
        return jnp.tile(logits_V, (tokens_N.size, 1)), cache

    settings = COMMON | {"rows": 2, "max_length": 50}
    ids_BT, _ = greedy(ending, {}, **settings)
    ids_BKT, _ = search(ending, {}, beams=2, **settings)
    jax.effects_barrier()
    assert ids_BT.tolist() == ids_BKT[:, 0].tolist() == [[3, 3, *[END] * 48]] * 2
    assert ids_BKT[:, 1].tolist() == [[END] * 50] * 2
    assert places == [0, 1, 2, 0, 1, 2]


def test_fewer_hypotheses_than_beams_leave_empty_places():
    ids_BKT, scores_BK = run(beam_search, models(2), beams=9, max_length=1)
    assert np.isfinite(scores_BK[:, :V]).all()
    assert (scores_BK[:, V:] == -np.inf).all()
    assert (ids_BKT[:, V:] == END).all()


# ---- Translation ------------------------------------------------------------------------------------------------

SMALL = TransformerConfig(layers=1, width=16, heads=2, mlp_width=24, context=8, vocab_size=9)


def rough():
    """A model, and parameters of which every one matters."""
    model, ids, rng = Transformer(SMALL), jnp.zeros((1, 1), jnp.int32), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    return model, jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.mark.slow
def test_translations_are_those_of_the_model_without_cache_and_padding():
    """Greedy token by token; and a beam's score, computed from all its tokens at once, is not below greedy's."""
    model, params = rough()
    source = np.random.default_rng(1).integers(0, 9, (6, 5))
    mask = (np.arange(5) < np.array([5, 4, 3, 2, 1, 5])[:, None]).astype(np.int32)
    logits = jax.jit(partial(model.apply, {"params": params}, source, source_mask_BS=mask))
    length, how = 7, {"begin": BEGIN, "end": END, "max_length": 7}

    def score(ids):
        inputs = np.concatenate([np.full((6, 1), BEGIN), ids[:, :-1]], axis=1)
        log_BTV = jax.nn.log_softmax(logits(inputs))
        log_BT = np.take_along_axis(np.asarray(log_BTV), ids[..., None], axis=2)[..., 0]
        counted = np.cumsum(ids == END, axis=1) - (ids == END) == 0
        return (log_BT * counted).sum(1) / ((5 + counted.sum(1)) / 6) ** 0.6

    expected = np.full((6, length), END)
    for t in range(length):
        inputs = np.concatenate([np.full((6, 1), BEGIN), expected[:, :-1]], axis=1)
        ended = (expected[:, :t] == END).any(axis=1)
        expected[:, t] = np.where(ended, END, np.asarray(logits(inputs)[:, t]).argmax(-1))
    padded, wider = (np.pad(x, ((0, 0), (0, 3)), constant_values=fill) for x, fill in ((source, 7), (mask, 0)))
    one, four = (translate(model, params, padded, wider, beams=beams, **how) for beams in (1, 4))
    np.testing.assert_array_equal(one, expected)
    assert (score(four) >= score(one) - 1e-5).all()
    assert (four != one).any()
    for wrong in (np.nan, np.inf):
        damaged = jax.tree.map(lambda x, wrong=wrong: np.where(x == x.max(), wrong, x), params)
        for beams in (1, 4):
            with pytest.raises(UserError, match="has a score that is not a finite number"):
                translate(model, damaged, padded, wider, beams=beams, **how)


@pytest.mark.parametrize(
    "change", [{"beams": 0}, {"max_length": 0}, {"length_penalty": -0.5}, {"length_penalty": np.inf}], ids=str
)
def test_settings_out_of_range_are_refused(change):
    settings = {"begin": BEGIN, "end": END, "max_length": 3} | change
    with pytest.raises(UserError, match=f"{next(iter(change))}={next(iter(change.values()))}"):
        translate(None, None, np.zeros((1, 2), int), np.ones((1, 2)), **settings)
