"""Filters of sampling: by rank, also among tokens with equal logits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.inference.sampling import Sampling, _filtered, choose

V = 12


@jax.jit
def filtered(logits_V: jax.Array, top_k: int, top_p: float, min_p: float) -> jax.Array:
    """Which tokens can be drawn."""
    return jnp.isfinite(_filtered(logits_V[None], top_k, top_p, min_p)[0])


def kept(logits: list[float], *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[int]:
    padded = np.full(V, -np.inf, np.float32)
    padded[: len(logits)] = logits
    return np.flatnonzero(filtered(padded, top_k, top_p, min_p)).tolist()


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"top_p": 0.45}, range(5)),
        ({"top_p": 0.5}, range(5)),
        ({"top_k": 3}, range(3)),
        ({"top_k": 6, "top_p": 0.5}, range(3)),
        ({"min_p": 1.0}, range(10)),
        ({"top_p": 0.01}, range(1)),
    ],
)
def test_equal_logits_are_filtered_by_rank(filters: dict[str, Any], ids: range) -> None:
    assert kept([0.0] * 10, **filters) == list(ids)


def test_ties_below_the_best_are_cut_among_themselves() -> None:
    logits = [1.0, 0.0, 2.0, 1.0, 1.0]
    assert kept(logits, top_k=2) == [0, 2]
    assert kept(logits, top_k=3) == [0, 2, 3]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-1, math.nan, math.inf, 1e-9, "1", None, True)),
        ("top_k", (-1, 2**31, 1.5, "5")),
        ("max_tokens", (-1, 2**40, 2.0, True)),
        ("top_p", (0, 1.1, math.nan, "0.9")),
        ("min_p", (-0.1, 2, math.nan)),
        ("repetition_penalty", (0, -1, math.inf, math.nan)),
    ],
)
def test_each_number_has_a_type_and_a_range(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^{name}=.* is out of range: {name} "):
            Sampling(**{name: value})
    for stop in ("end", (3,), ("",)):
        with pytest.raises(UserError, match="stop"):
            Sampling(stop=stop)  # pyright: ignore[reportArgumentType]
    assert Sampling(temperature=0, top_k=2**31 - 1, min_p=1, top_p=1, max_tokens=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [(True, False), (False, True), (False, False)])
def test_a_logit_that_is_not_finite_gives_no_token(kind: tuple[bool, bool]) -> None:
    for wrong in (np.nan, np.inf):
        logits_BV = np.zeros((2, V), np.float32)
        logits_BV[1, 3] = wrong
        ids_B = np.asarray(choose(logits_BV, jax.random.split(jax.random.key(0), 2), kind=kind))
        assert (ids_B == -1).tolist() == [False, True]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True])
def test_a_seed_out_of_range_is_refused(seed: object) -> None:
    with pytest.raises(UserError, match=r"is not an integer from 0 to 2\^64 - 1"):
        Sampling(seed=seed)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_number_of_tokens_is_that_of_transformers() -> None:
    """Logits with many ties. Probabilities near a threshold round differently: those are left out."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")

    def _of(logits_BV: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
        return np.where(np.asarray(filtered(logits_BV[0], top_k, top_p, min_p))[None], logits_BV, -np.inf)

    logits = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0]), min_size=V, max_size=V)

    @settings(max_examples=200, deadline=None)
    @given(logits, st.integers(1, V), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
    def compare(values: list[float], top_k: int, top_p: float, min_p: float) -> None:
        logits_BV = np.array([values], np.float32)
        p = np.exp(np.sort(values)[::-1]) / np.exp(values).sum()
        if np.abs(np.cumsum(p) - top_p).min() > 1e-5:
            theirs = transformers.TopPLogitsWarper(top_p)(None, torch.tensor(logits_BV)) if top_p < 1 else logits_BV
            chosen = np.isfinite(_of(logits_BV, 0, top_p, 0.0))
            assert chosen.sum() == np.isfinite(np.asarray(theirs)).sum()
            assert logits_BV[chosen].min() >= logits_BV[~chosen].max(initial=-9.0)
        if np.abs(p / p[0] - min_p).min() > 1e-5:
            theirs = transformers.MinPLogitsWarper(min_p)(None, torch.tensor(logits_BV))
            assert (np.isfinite(_of(logits_BV, 0, 1.0, min_p)) == np.isfinite(theirs.numpy())).all()
        ranked = np.sort(values)[::-1]
        chosen = np.isfinite(_of(logits_BV, top_k, 1.0, 0.0))
        assert chosen.sum() == top_k  # exactly: the warper of transformers keeps all ties of the last one
        if top_k == V or ranked[top_k - 1] != ranked[top_k]:
            theirs = transformers.TopKLogitsWarper(top_k)(None, torch.tensor(logits_BV))
            assert (chosen == np.isfinite(theirs.numpy())).all()

    compare()
