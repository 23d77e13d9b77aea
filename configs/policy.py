"""Reinforcement learning after fine-tuning: answers that are right become likelier."""

from dataclasses import replace

from lmjax.config import (
    BatchConfig,
    ChatConfig,
    CheckpointConfig,
    Config,
    GRPOConfig,
    GuardConfig,
    OptimizerConfig,
    PPOConfig,
    ScheduleConfig,
    TrainConfig,
    small_llama,
)


def grpo() -> Config:
    """GRPO on questions with known answers, from runs/sft or another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU. An answer gets a reward of 1 if its text is the expected one, else 0 (`objective.reward` selects
    numbers, regular expressions, JSON schemas or a function of your own).
    """
    return Config(
        name="grpo",
        init_from="runs/sft",
        data=ChatConfig(limit=600, validation_fraction=0.2),
        # In float32 the sampler and the learner agree up to rounding, which the canaries check.
        model=replace(small_llama(layers=4, width=128, heads=4, mlp_width=352, context=64), dtype="float32"),
        objective=GRPOConfig(group=8, answer_tokens=32),
        optimizer=OptimizerConfig(beta2=0.95, epsilon=1e-5, weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-4, warmup=0.3, shape="constant", unit="updates"),
        batch=BatchConfig(tokens=((0, 32 * 8 * 64),), microbatch=8),
        train=TrainConfig(updates=100, evaluate_every=20, log_every=1, baselines=False),
        checkpoint=CheckpointConfig(every=20),
        guard=GuardConfig(loss_floor_nats=0.1),
    )


def ppo() -> Config:
    """PPO with a value model on questions with known answers, from runs/sft or another model (`init_from=MODEL`).

    Hardware: any CPU. The reward is that of `grpo`, minus a KL penalty for each token.
    """
    return replace(
        grpo(),
        name="ppo",
        objective=PPOConfig(group=4, answer_tokens=32),
        batch=BatchConfig(tokens=((0, 32 * 4 * 64),), microbatch=8),
    )
