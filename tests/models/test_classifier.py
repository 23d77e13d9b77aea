"""A classifier reads one place of its encoder, has the encoder's names, and does not see padding."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import ModelConfig
from lmjax.models import classifier, registry
from lmjax.models.classifier import Classifier
from lmjax.pytrees import count, leaf_names
from tests import small

V, T, CLASSES = 19, 8, 3
GPT, BERT = (
    replace(small.MODELS[name], vocab_size=V, context=T, dropout=0.0) for name in ("gpt labels", "bert labels")
)
LENGTHS = np.asarray([8, 5, 1])


def rows(seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, V, (len(LENGTHS), T)).astype(np.int32)
    real = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
    return {"inputs_BT": ids, "real_BT": real, "kinds_BT": (np.arange(T) >= 3) * real.astype(np.int32)}


def rough(config: ModelConfig) -> Any:
    shapes: Any = jax.eval_shape(Classifier(config, CLASSES).init, jax.random.key(0), **rows())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes["params"])


@pytest.mark.parametrize("config", [GPT, pytest.param(BERT, marks=pytest.mark.slow)], ids=["gpt", "bert"])
def test_logits_are_of_the_last_token_or_the_pooled_one_whatever_the_padding_holds(config: ModelConfig) -> None:
    params = rough(config)
    logits = jax.jit(lambda batch: Classifier(config, CLASSES).apply({"params": params}, **batch))
    batch = rows()
    other = batch | {"inputs_BT": np.where(batch["real_BT"] > 0, batch["inputs_BT"], rows(2)["inputs_BT"])}
    assert (other["inputs_BT"] != batch["inputs_BT"]).any()
    found = logits(batch)
    np.testing.assert_array_equal(found, logits(other))

    head, encoder = params.pop("classifier"), registry.build(config)
    if config.family == "gpt":
        x_BTD = jax.jit(lambda ids: encoder.apply({"params": params}, ids, head=False))(batch["inputs_BT"])
        x_BD = np.asarray(x_BTD)[np.arange(len(LENGTHS)), LENGTHS - 1]
    else:
        _, x_BD = jax.jit(lambda b: encoder.apply({"params": params}, **b, method="encode"))(batch)
    expected = np.asarray(x_BD) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32, summed in another order


@pytest.mark.parametrize("config", [GPT, replace(GPT, tied=False, scan=True), BERT, replace(BERT, scan=True)])
def test_parameters_have_the_names_they_have_in_the_pretrained_model(config: ModelConfig) -> None:
    one = np.zeros((1, 1), np.int32)
    named = {"kinds_BT": one, "real_BT": one} if config.family == "bert" else {}
    pretrained: Any = jax.eval_shape(registry.build(config).init, jax.random.key(0), one, **named)["params"]
    assert classifier.parameters(config, CLASSES)["total"] == count(rough(config))
    ours, theirs = set(leaf_names(rough(config))), set(leaf_names(pretrained))
    assert ours - theirs == {"classifier/kernel", "classifier/bias"}
    assert {name.partition("/")[0] for name in theirs - ours} <= {"head", "masked_head", "next_sentence"}
