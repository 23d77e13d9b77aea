"""A run that cannot fit into the memory is refused before anything is allocated."""

from typing import Any

import pytest

from lmjax.config import BatchConfig, ChatConfig, Config, GPTConfig, GRPOConfig, PPOConfig, TrainConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.config.objectives import DirectConfig, RewardConfig, SFTConfig
from lmjax.config.preferences import PreferenceConfig
from lmjax.models import registry
from lmjax.run import build, plan
from lmjax.system import machine

SMALL = ("data.tokenizer.kind=bytes", "model.layers=1", "model.width=64", "model.heads=2", "model.context=32")


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 4 GiB without accelerators."""
    monkeypatch.setattr(machine, "device_memory", lambda device=None: {})
    monkeypatch.setattr(machine, "total_memory", lambda: 4 << 30)


def test_a_small_run_fits() -> None:
    plan.check_memory(apply_overrides(Config(), [*SMALL, "batch.tokens=((0,1024),)"]))


@pytest.mark.parametrize(
    "change",
    ["model.width=1048576", "model.layers=1000000", "model.vocab_size=2000000000", "model.mlp_width=100000000",
     "batch.microbatch=100000000"],
)  # fmt: skip
def test_a_run_that_is_much_too_large_is_refused_with_what_it_needs(change: str) -> None:
    config = apply_overrides(Config(), [*SMALL, change])
    with pytest.raises(UserError, match=r"needs more than the 4.0 GiB of memory here: parameters .* GiB, .* total"):
        plan.check_memory(config)


@pytest.mark.parametrize(("family", "bytes_per_parameter"), [("grpo", 20), ("ppo", 36)])
def test_a_policy_needs_its_reference_and_its_value_model(family: str, bytes_per_parameter: int) -> None:
    """Parameters, gradients and two moments are 16 bytes, twice for PPO; the reference is 4."""
    model = GPTConfig(layers=2, width=64, heads=4, key_heads=2, context=32, vocab_size=100, dtype="float32")
    objective = (GRPOConfig if family == "grpo" else PPOConfig)(group=2, answer_tokens=8, minibatches=1)
    batch = BatchConfig(((0, 4 * 2 * 32),), microbatch=4)
    settings = Config(data=ChatConfig(), model=model, objective=objective, batch=batch, train=TrainConfig(1))
    run = build.without_data(settings)
    (table,) = (table for table in plan.tables(run) if table.title.startswith("Memory"))
    sizes = plan._memory(run.config, {})
    assert [name for name, _ in table.rows] == list(sizes)
    fixed = sum(sizes[name] for name in sizes if name not in ("activations", "logits", "generation cache", "total"))
    assert fixed == bytes_per_parameter * registry.parameters(run.config.model)["total"]
    assert sizes["generation cache"] == 2 * 2 * (4 * 2 * 32) * 2 * 16 * 4  # keys and values of 2 layers and heads
    assert sizes["logits"] == 8 * 8 * 100 * 8
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")


def test_a_pair_of_answers_is_two_rows() -> None:
    """Memory and FLOPs of pairs are those of twice as many texts; a score has no logits."""
    model = GPTConfig(layers=2, width=64, heads=4, context=32, vocab_size=100, dtype="float32")

    def planned(objective: Any, rows: int) -> tuple[dict[str, float], str]:
        data = ChatConfig() if isinstance(objective, SFTConfig) else PreferenceConfig()
        batch = BatchConfig(((0, rows * 32),), microbatch=rows)
        run = build.without_data(Config(data=data, model=model, objective=objective, batch=batch, train=TrainConfig(3)))
        return plan._memory(run.config, {}), dict(plan._run(run))["FLOPs"]

    texts, dpo, reward = (planned(*case) for case in ((SFTConfig(), 8), (DirectConfig(), 4), (RewardConfig(), 4)))
    assert dpo == texts
    assert reward[1] == texts[1]
    assert reward[0] == texts[0] | {"logits": 0, "total": texts[0]["total"] - texts[0]["logits"]}
