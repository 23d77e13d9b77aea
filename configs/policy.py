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
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)
from lmjax.config.rewards import LearnedRewardConfig


def sorting() -> Config:
    """Fine-tuning to sort seven digits, stopped early: the policy that `grpo` improves; needs no download.

    Hardware: any CPU. Time: 17 s on 2 cores, everything included. Expect: 0.39 to 0.43 of sampled answers and 0.75 to
    0.82 of greedy ones right (three seeds).
    """
    return Config(
        name="sorting",
        data=ChatConfig(
            source="sorting", validation_fraction=0.2, tokenizer=TokenizerConfig(kind="characters", reserved=8)
        ),
        model=small_llama(layers=2, width=96, heads=4, mlp_width=256, context=32),
        objective=SFTConfig(answer_tokens=10),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=3e-3, warmup=0.05, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 32),), microbatch=64),
        train=TrainConfig(updates=75, log_every=5),
        checkpoint=CheckpointConfig(every=25),
    )


def grpo() -> Config:
    """GRPO on a task with verifiable answers: seven digits to sort, from runs/sorting (`init_from=MODEL` for others).

    Hardware: any CPU. Time: 45 s on 2 cores, everything included. Expect, from `sorting`: 0.61 to 0.69 of sampled
    answers right, 0.18 to 0.27 more than before (three seeds). An answer gets a reward of 1 if its text is the expected
    one, else 0 (`objective.reward` selects numbers, regular expressions, JSON schemas or a function of your own).
    """
    base = sorting()
    return replace(
        base,
        name="grpo",
        init_from="runs/sorting",
        # In float32 the sampler and the learner agree up to rounding, which the canaries check.
        model=replace(base.model, dtype="float32"),
        objective=GRPOConfig(group=8, answer_tokens=10, scored=224),
        optimizer=OptimizerConfig(beta2=0.95, epsilon=1e-5, weight_decay=0.0),
        schedule=ScheduleConfig(peak=2e-4, warmup=0.1, shape="constant", unit="updates"),
        batch=BatchConfig(tokens=((0, 32 * 8 * 32),), microbatch=32),
        train=TrainConfig(updates=120, evaluate_every=40, log_every=1, baselines=False),
        checkpoint=CheckpointConfig(every=40),
        guard=GuardConfig(loss_floor_nats=0.1),
    )


def ppo() -> Config:
    """PPO against the reward model runs/reward: reviews of dishes from runs/reviews (`init_from=MODEL` for others).

    Hardware: any CPU. Time: 58 s on 2 cores, everything included. The reward is the score of the reward model, minus a
    KL penalty for each token. The true reward of the reviews is known: each evaluation measures it, and the policy
    never sees it. Expect, for held-out prompts: from -0.3 to -0.6 before to 1.6 to 2.5 after, at a KL divergence of 4
    to 7 nats. `objective.kl_coefficient=0` shows how a policy exploits a reward model.
    """
    return Config(
        name="ppo",
        init_from="runs/reviews",
        data=ChatConfig(source="reviews"),
        model=replace(small_llama(layers=2, width=96, heads=4, mlp_width=256, context=56), dtype="float32"),
        objective=PPOConfig(
            reward=LearnedRewardConfig(run="runs/reward"),
            answer_tokens=40,
            unfinished_penalty=1.0,
            kl_coefficient=0.05,
            scored=224,
        ),
        optimizer=OptimizerConfig(beta2=0.95, epsilon=1e-5, weight_decay=0.0),
        schedule=ScheduleConfig(peak=2e-4, shape="constant", unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 56),), microbatch=32),
        train=TrainConfig(
            updates=60, evaluate_every=5, log_every=1, baselines=False, expect=(("val_true_reward", 1.4, 2.8),)
        ),
        checkpoint=CheckpointConfig(every=20),
        guard=GuardConfig(loss_floor_nats=0.1),
    )
