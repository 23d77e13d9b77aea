"""A model with a score: what it reads, and its parameters."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import registry, scalar
from lmjax.models.scalar import Scalar
from tests import small

V, T = 23, 12
CONFIGS = [
    replace(small.MODELS["reward"], vocab_size=V, context=T, scan=True),
    replace(small.MODELS["reward"], vocab_size=V, context=T, positions="rotary", tied=False),
]
LAST = np.asarray([4, 11], np.int32)


def example(config: Any, *, zero: bool = False) -> tuple[Scalar, Any, np.ndarray]:
    model, rng = Scalar(config, zero=zero), np.random.default_rng(0)
    arrays = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(lambda: model.init(jax.random.key(0), arrays, last_B=arrays[0]))()["params"]
    return model, params, rng.integers(0, V, (2, T)).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["learned, scanned", "rotary, untied"])
def test_the_score_is_a_product_with_the_features_of_the_last_token(config: Any) -> None:
    """Two programs in float32: 1e-5."""
    model, params, ids_BT = example(config)
    body = {name: leaf for name, leaf in params.items() if name not in ("score", "calibration")}
    features_BTD = jax.jit(lambda: registry.build(config).apply({"params": body}, ids_BT, head=False))()
    expected = np.asarray(features_BTD)[[0, 1], LAST] @ np.asarray(params["score"]["kernel"])[:, 0]
    scores_B = jax.jit(lambda: model.apply({"params": params}, ids_BT, last_B=LAST))()
    np.testing.assert_allclose(scores_B, expected, rtol=1e-5, atol=1e-5)
    every_BT = jax.jit(lambda: model.apply({"params": params}, ids_BT, method="at_every_place"))()
    np.testing.assert_allclose(np.asarray(every_BT)[[0, 1], LAST], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["learned, scanned", "rotary, untied"])
def test_padding_does_not_change_a_score(config: Any) -> None:
    model, params, ids_BT = example(config)
    scores = jax.jit(lambda ids: model.apply({"params": params}, ids, last_B=np.minimum(LAST, 4)))
    changed = ids_BT.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    np.testing.assert_array_equal(scores(ids_BT), scores(changed))  # what follows the text
    np.testing.assert_allclose(scores(ids_BT[:, :5]), scores(ids_BT), rtol=1e-5, atol=1e-6)  # float32, other widths
    changed[:, 4] = (changed[:, 4] + 1) % V
    assert (np.asarray(scores(changed)) != np.asarray(scores(ids_BT))).all()


@pytest.mark.slow
def test_parameters_are_those_of_the_pretrained_model_and_a_few() -> None:
    for config in CONFIGS:
        _, params, _ = example(config)
        pretrained = jax.eval_shape(
            registry.build(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32)
        )["params"]
        own = {name: leaf for name, leaf in params.items() if name not in ("score", "calibration")}
        expected = {name: leaf for name, leaf in pretrained.items() if name != "head"}
        assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, expected)
        assert scalar.parameters(config)["total"] == sum(leaf.size for leaf in jax.tree.leaves(params))
        axes = registry.logical_axes(config)
        assert all(f"{top}/{name}" in axes for top in ("score", "calibration") for name in params[top])
        assert (params["calibration"]["gain"], params["calibration"]["bias"]) == (1, 0)


@pytest.mark.slow
def test_gain_and_bias_set_mean_and_deviation_and_keep_raw_scores() -> None:
    model, params, ids_BT = example(CONFIGS[1])
    scores = jax.jit(lambda params, is_calibrated: model.apply(
        {"params": params}, ids_BT, last_B=LAST, calibrated=is_calibrated), static_argnums=1)  # fmt: skip
    raw = np.asarray(scores(params, False))
    changed = scalar.calibrated(params, mean=float(raw.mean()), deviation=float(raw.std()))
    np.testing.assert_array_equal(scores(changed, False), raw)
    np.testing.assert_allclose(scores(changed, True), (raw - raw.mean()) / raw.std(), rtol=1e-5)


@pytest.mark.slow
def test_a_value_function_begins_with_0() -> None:
    model, params, ids_BT = example(CONFIGS[1], zero=True)
    assert not np.asarray(jax.jit(lambda: model.apply({"params": params}, ids_BT, last_B=LAST))()).any()
