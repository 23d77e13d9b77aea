import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lmjax import pytrees
from lmjax.config import CausalConfig, GPTConfig, OptimizerConfig, UserError
from lmjax.models import costs, registry
from lmjax.models.gpt import GPT, init_params
from lmjax.objectives import losses

GPT2 = GPTConfig(vocab_size=50_257)
LLAMA = GPTConfig(
    layers=32,
    width=4096,
    heads=32,
    mlp_width=11_008,
    vocab_size=32_000,
    norm="rmsnorm",
    positions="rotary",
    activation="swiglu",
    bias=False,
    tied=False,
)
PUBLISHED = {  # parameter counts as the publishers' own files have them
    "GPT-2 small": (GPT2, 124_439_808),
    "GPT-2 medium": (dataclasses.replace(GPT2, layers=24, width=1024, heads=16), 354_823_168),
    "GPT-2 large": (dataclasses.replace(GPT2, layers=36, width=1280, heads=20), 774_030_080),
    "GPT-2 xl": (dataclasses.replace(GPT2, layers=48, width=1600, heads=25), 1_557_611_200),
    "LLaMA 7B": (LLAMA, 6_738_415_616),
    "Llama 3.2 1B": (
        dataclasses.replace(
            LLAMA, layers=16, width=2048, key_heads=8, mlp_width=8192, vocab_size=128_256, rope_theta=5e5, tied=True
        ),
        1_235_814_400,
    ),
}


def real(config):
    return jax.eval_shape(lambda: init_params(GPT(config), 0))


@pytest.mark.parametrize(("config", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_counts_equal_the_published_ones(config, count):
    assert costs.parameters(config)["total"] == count
    assert pytrees.count(real(config)) == count


@pytest.mark.parametrize(
    "change",
    [
        {"qk_norm": True, "key_heads": 2},
        {"bias": False, "tied": False, "head_dim": 5},
        {"norm": "rmsnorm", "activation": "swiglu", "mlp_width": 50},
        {"positions": "rotary", "activation": "swiglu", "qk_norm": True, "scan": False},
    ],
    ids=str,
)
def test_parameters_equal_the_real_ones_part_by_part(change):
    config = dataclasses.replace(GPTConfig(layers=3, width=24, heads=4, context=10, vocab_size=31), **change)
    counts = dict.fromkeys(costs.parameters(config), 0)
    for name, leaf in zip(pytrees.leaf_names(real(config)), jax.tree.leaves(real(config)), strict=True):
        part = next(
            part
            for key, part in {
                "token_embedding": "token embedding",
                "position_embedding": "position embedding",
                "norm": "norms",
                "attention": "attention",
                "mlp": "mlp",
                "head": "output layer",
            }.items()
            if key in name
        )
        counts[part] += leaf.size
        counts["total"] += leaf.size
    assert counts == costs.parameters(config)


def lowered(config, microbatch):
    """The gradient of the loss, traced only."""
    batch = {
        name: jax.ShapeDtypeStruct((microbatch, config.context), dtype)
        for name, dtype in {"inputs_BT": jnp.int32, "targets_BT": jnp.int32, "weights_BT": jnp.float32}.items()
    }

    def loss(params, batch):
        return losses.causal(GPT(config), params, batch, config=CausalConfig(), train=False)[0]

    return jax.jit(jax.grad(loss)).lower(real(config), batch)


@pytest.mark.parametrize("context", [128, 512])
@pytest.mark.parametrize(
    "style",
    [
        {},
        {
            "bias": False,
            "norm": "rmsnorm",
            "positions": "rotary",
            "activation": "swiglu",
            "key_heads": 2,
            "tied": False,
        },
    ],
    ids=["gpt2", "llama"],
)
def test_flops_equal_the_count_of_xla(style, context):
    """Wide enough that what is no matrix product (norms, softmax, activations) is under 2 % of the count."""
    config = GPTConfig(layers=2, width=1024, heads=8, context=context, vocab_size=4096, scan=False, **style)
    counted = lowered(config, 2).cost_analysis()["flops"]
    assert costs.flops_per_token(config) * 2 * context == pytest.approx(counted, rel=0.02)


def test_palm_counts_the_whole_square():
    """6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B), N without look-ups; we compute half of a long square."""
    config = dataclasses.replace(GPT2, context=4096)
    sizes = costs.parameters(dataclasses.replace(config, bias=False))
    weights = sizes["attention"] + sizes["mlp"] + sizes["token embedding"]
    whole = costs.flops_per_token(config, whole_square=True)
    assert whole == 6 * weights + 12 * 12 * 768 * 4096
    attention = whole - 6 * weights
    computed = (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) / 64  # eight blocks of queries
    assert costs.flops_per_token(config) - 6 * weights == pytest.approx(attention * computed)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_near_that_of_the_compiled_program(remat, dtype):
    """Scanned: without a scan XLA merges on CPU what remat computes twice. It also keeps bfloat16 as float32 there."""
    config = GPTConfig(layers=6, width=256, heads=4, context=256, vocab_size=512, remat=remat, dtype=dtype)
    compiled = lowered(config, 8).compile().memory_analysis()
    estimate = registry.memory(config, 8)
    assert compiled.argument_size_in_bytes == pytest.approx(estimate["parameters"], rel=0.01)
    assert compiled.output_size_in_bytes == pytest.approx(estimate["gradients"], rel=0.01)
    ratio = compiled.temp_size_in_bytes / (estimate["activations"] + estimate["logits"])
    assert 0.9 < ratio < 1.8


def test_memory_of_the_optimizer_and_of_accumulation():
    config = dataclasses.replace(GPT2, layers=2, width=64)
    count = costs.parameters(config)["total"]
    adam = registry.memory(config, 1)
    assert (adam["parameters"], adam["gradients"], adam["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert adam["total"] == sum(size for name, size in adam.items() if name != "total")
    assert registry.memory(config, 1, accumulate=True)["gradients"] == 8 * count
    assert registry.memory(config, 1, optimizer=OptimizerConfig(name="lion", ema=0.99))["optimizer"] == 4 * count
    assert registry.memory(config, 1, optimizer=OptimizerConfig(ema=0.99))["average"] == 4 * count
    assert registry.memory(config, 2)["activations"] == 2 * adam["activations"]
    assert count < registry.memory(config, 1, optimizer=OptimizerConfig(name="muon"))["optimizer"] / 4 < 2 * count
    assert registry.memory(config, 1, optimizer=OptimizerConfig(name="adafactor"))["optimizer"] < count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100, "heads": 12}, r"model\.width=100 .* model\.heads=12; .*head_dim"),
        ({"heads": 12, "key_heads": 5}, r"model\.heads=12 .* model\.key_heads=5"),
        ({"heads": 4, "key_heads": 8}, r"model\.heads=4 .* model\.key_heads=8"),
        ({"head_dim": 33, "positions": "rotary"}, r"rotary .* 33; set model\.head_dim"),
        ({"dropout": 1.0}, r"model\.dropout = 1\.0"),
        ({"dropout": -0.1}, r"model\.dropout = -0\.1"),
        ({"layers": 0}, r"model\.layers = 0"),
        ({"width": -768}, r"model\.width = -768"),
        ({"heads": 0}, r"model\.heads = 0"),
        ({"context": 0}, r"model\.context = 0"),
        ({"mlp_width": -1}, r"model\.mlp_width = -1"),
        ({"vocab_size": -5}, r"model\.vocab_size = -5"),
    ],
    ids=str,
)
def test_a_configuration_without_a_model_is_refused(change, message):
    config = dataclasses.replace(GPT2, **change)
    with pytest.raises(UserError, match=message) as caught:
        registry.check(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        init_params(GPT(config), 0)


@pytest.mark.parametrize(("config", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_every_published_configuration_passes_the_check(config, count):
    registry.check(config)
    registry.check(dataclasses.replace(config, vocab_size=0))


def test_closed_forms_need_no_jax():
    code = "import sys; import lmjax.models.costs; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
