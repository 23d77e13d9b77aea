"""Reinforcement learning of a policy: the configuration of its objectives. Imports no JAX."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmjax.config.ranges import nonnegative, positive, share, size
from lmjax.config.rewards import AnyRewardConfig, ExactMatchConfig


@dataclass(frozen=True)
class GRPOConfig:
    """Group relative policy optimization (Shao et al. 2024).

    Answers that get more reward than the others to the same prompt become likelier. An update samples `group` answers
    to each prompt of the batch, rewards them and learns from them. `batch.tokens` and `batch.microbatch` count prompts;
    a prompt has `group` times the tokens of the context. The reference of the KL divergence is the initial model.
    """

    #: Selects this member of the union.
    family: Literal["grpo"] = "grpo"
    #: What an answer is rewarded for.
    reward: AnyRewardConfig = field(default_factory=ExactMatchConfig)
    #: Answers to each prompt.
    group: Annotated[int, size(2)] = 8
    #: Maximum number of tokens of an answer. Prompts have the rest of the context.
    answer_tokens: Annotated[int, size(1)] = 32
    #: Temperature at which answers are sampled, and of all log-probabilities.
    temperature: Annotated[float, positive()] = 1.0
    #: Passes over the answers of an update.
    epochs: Annotated[int, size(1)] = 1
    #: Optimizer steps in a pass; each has an equal part of the microbatches.
    minibatches: Annotated[int, size(1)] = 1
    #: Largest decrease of the probability ratio below 1 that is rewarded.
    clip_low: Annotated[float, nonnegative()] = 0.2
    #: Largest increase above 1. More than `clip_low` lets rare tokens become likely (Yu et al. 2025, section 3.1).
    clip_high: Annotated[float, nonnegative()] = 0.28
    #: Advantage of an answer: its reward minus the group's mean, this divided by the group's standard deviation, or its
    #: reward minus the mean of the others. Division magnifies prompts that are nearly always or never solved.
    advantage: Literal["mean", "deviation", "leave_one_out"] = "mean"
    #: What the loss of the tokens is divided by: the largest possible number of tokens, their number, or the length of
    #: each answer. `sequence` favours long wrong answers.
    average: Literal["constant", "token", "sequence"] = "constant"
    #: Coefficient of the KL divergence to the reference in the loss (0: none).
    kl_coefficient: Annotated[float, nonnegative()] = 0.0
    #: Estimator of this divergence.
    kl: Literal["k3_ratio", "k2", "k3"] = "k3_ratio"
    #: Reward that an answer loses if it does not end within `answer_tokens`.
    unfinished_penalty: Annotated[float, nonnegative()] = 0.0
    #: Number of validation prompts that are answered at each evaluation (0: all).
    scored: Annotated[int, size(0)] = 200
    #: Smallest mean reward of sampled answers with which a run begins, for rewards of 0 or 1 (0: any). With less, there
    #: is too little to reinforce.
    least_reward: Annotated[float, share()] = 0.1


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimization (Schulman et al. 2017; Ziegler et al. 2019).

    Each token learns from the reward that a value model did not expect. The value model starts as a copy of the policy,
    with values of 0. The reference of the KL divergence is the initial model. `batch.tokens` and `batch.microbatch`
    count prompts, as in `GRPOConfig`.
    """

    #: Selects this member of the union.
    family: Literal["ppo"] = "ppo"
    #: What an answer is rewarded for.
    reward: AnyRewardConfig = field(default_factory=ExactMatchConfig)
    #: Answers to each prompt.
    group: Annotated[int, size(1)] = 1
    #: Maximum number of tokens of an answer. Prompts have the rest of the context.
    answer_tokens: Annotated[int, size(1)] = 32
    #: Temperature at which answers are sampled, and of all log-probabilities.
    temperature: Annotated[float, positive()] = 1.0
    #: Passes over the answers of an update.
    epochs: Annotated[int, size(1)] = 2
    #: Optimizer steps in a pass; each has an equal part of the microbatches.
    minibatches: Annotated[int, size(1)] = 2
    #: Largest decrease of the probability ratio below 1 that is rewarded.
    clip_low: Annotated[float, nonnegative()] = 0.2
    #: Largest increase above 1.
    clip_high: Annotated[float, nonnegative()] = 0.2
    #: Largest difference of a value to that at the time of sampling, in units of the reward (0: no limit).
    value_clip: Annotated[float, nonnegative()] = 0.2
    #: Learning rate of the value model as a multiple of the policy's.
    value_rate: Annotated[float, positive()] = 5.0
    #: Discount of later rewards (gamma).
    discount: Annotated[float, share()] = 1.0
    #: Weight of longer estimates of the advantage (lambda).
    decay: Annotated[float, share()] = 0.95
    #: Coefficient of the KL divergence to the reference, which each token pays from its reward.
    kl_coefficient: Annotated[float, nonnegative()] = 0.05
    #: KL divergence of an answer, in nats, to which the coefficient adapts (0: the coefficient is fixed).
    kl_target: Annotated[float, nonnegative()] = 0.0
    #: Number of answers in which the largest error changes the coefficient by about a fifth.
    kl_horizon: Annotated[float, positive()] = 10_000.0
    #: Reward that an answer loses if it does not end within `answer_tokens`.
    unfinished_penalty: Annotated[float, nonnegative()] = 0.0
    #: Number of validation prompts that are answered at each evaluation (0: all).
    scored: Annotated[int, size(0)] = 200
    #: Smallest mean reward of sampled answers with which a run begins, for rewards of 0 or 1 (0: any). With less, there
    #: is too little to reinforce.
    least_reward: Annotated[float, share()] = 0.1


#: An objective whose updates sample answers and learn from their rewards.
PolicyConfig = GRPOConfig | PPOConfig
