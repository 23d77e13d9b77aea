"""What is told of every family of models by its configuration alone."""

import dataclasses
from typing import Any

import jax
import pytest

from lmjax import pytrees
from lmjax.config import (
    BERTConfig,
    GPTConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    RNNConfig,
    TransformerConfig,
)
from lmjax.models import registry
from lmjax.optim.optimizer import make_optimizer
from tests import small

CONFIGS = {
    name: dataclasses.replace(model, vocab_size=37) for name, model in small.MODELS.items() if "bert" not in name
}
over_families = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
LARGE = {
    "gpt": GPTConfig(vocab_size=100, layers=24, width=768, heads=12, key_heads=4, activation="swiglu", mlp_width=2048),
    "nnlm": NNLMConfig(vocab_size=100, width=300, hidden=500, context=500),
    "rnn": RNNConfig(vocab_size=100, layers=4, width=1024, context=500),
    "transformer": TransformerConfig(vocab_size=100, mlp_width=2048),
    "bert": BERTConfig(vocab_size=100, layers=24, width=1024, heads=16),
}


def shapes(config: ModelConfig) -> Any:
    one: Any = jax.numpy.zeros((1, 1), "int32")
    inputs: Any = (one, one) if config.family == "transformer" else (one,)
    named: Any = {"kinds_BT": one, "real_BT": one} if config.family == "bert" else {}
    return jax.eval_shape(registry.build(config).init, jax.random.key(0), *inputs, **named)["params"]


@over_families
def test_the_closed_forms_are_those_of_the_model(config: ModelConfig) -> None:
    """Parameters by count, and the optimizer's state by what optax makes."""
    registry.check(config)
    params = shapes(config)
    sizes = registry.parameters(config)
    assert sizes["total"] == pytrees.count(params) == sum(sizes.values()) - sizes["total"]
    assert registry.flops_per_token(config) > 2 * 3 * config.width
    for name in ("adamw", "lion"):
        optimizer = OptimizerConfig(name=name, ema=0.9)  # type: ignore[arg-type]
        made = jax.eval_shape(make_optimizer(optimizer).init, params)
        told = registry.memory(config, 4, optimizer=optimizer, accumulate=True)
        counters = sum(leaf.ndim == 0 for leaf in jax.tree.leaves(made))
        assert told["optimizer"] == pytrees.nbytes(made) - 4 * counters, name
        assert (told["parameters"], told["gradients"]) == (pytrees.nbytes(params), 2 * pytrees.nbytes(params))
        assert told["average"] == told["parameters"]
        assert min(told.values()) > 0
        assert told["total"] == sum(told.values()) - told["total"]


@pytest.mark.parametrize("config", LARGE.values(), ids=LARGE)
def test_a_small_copy_is_smaller_in_every_size_and_the_same_in_all_else(config: ModelConfig) -> None:
    small = registry.shrink(config)
    registry.check(small)
    sizes = {"layers", "width", "heads", "key_heads", "head_dim", "mlp_width", "hidden", "context"}
    for field in dataclasses.fields(config):
        before, after = getattr(config, field.name), getattr(small, field.name)
        assert after <= before if field.name in sizes else after == before, field.name
    assert registry.parameters(small)["total"] == pytrees.count(shapes(small))
    assert registry.memory(small, 1)["total"] < registry.memory(config, 1)["total"] / 4
    assert registry.shrink(small) == small


def test_a_pair_counts_for_both_its_texts() -> None:
    assert registry.tokens(LARGE["transformer"]) == 2 * LARGE["transformer"].context
    assert all(registry.tokens(config) == config.context for name, config in LARGE.items() if name != "transformer")
