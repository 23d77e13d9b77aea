"""Learning from preferences on generated reviews, whose true reward is known: fine-tuning, reward model and DPO."""

from dataclasses import replace

from lmjax.config import (
    BatchConfig,
    ChatConfig,
    CheckpointConfig,
    Config,
    DirectConfig,
    GPTConfig,
    OptimizerConfig,
    PreferenceConfig,
    RewardConfig,
    ScheduleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)


def _model() -> GPTConfig:
    # Differences of log-probabilities matter here, which bfloat16 would round.
    return replace(small_llama(layers=2, width=96, heads=4, mlp_width=256, context=64), dtype="float32")


def reviews() -> Config:
    """A small GPT that writes reviews of dishes: the first stage of `reward` and `dpo`; needs no download.

    Hardware: any CPU. It is fine-tuning from random parameters, since the reviews have a small grammar.
    """
    return Config(
        name="reviews",
        data=ChatConfig(source="reviews", tokenizer=TokenizerConfig(vocab_size=420, reserved=8)),
        model=_model(),
        objective=SFTConfig(scored=20, answer_tokens=48),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=2e-3, shape="cosine", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 64),), microbatch=64),
        train=TrainConfig(updates=300, evaluate_every=100, log_every=10),
        checkpoint=CheckpointConfig(every=100),
    )


def reward() -> Config:
    """A reward model of reviews from runs/reviews, or from another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU. The preferences are drawn from the true reward, so that accuracy and calibration can be compared
    with the best possible ones.
    """
    return Config(
        name="reward",
        init_from="runs/reviews",
        data=PreferenceConfig(validation_fraction=0.2),
        model=_model(),
        objective=RewardConfig(),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.05, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 64),), microbatch=64),
        train=TrainConfig(updates=80, evaluate_every=20, log_every=10),
        checkpoint=CheckpointConfig(every=40),
    )


def dpo() -> Config:
    """Direct preference optimization of runs/reviews, or of another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU. The model of init_from is the reference, too.
    """
    return Config(
        name="dpo",
        init_from="runs/reviews",
        data=PreferenceConfig(validation_fraction=0.2),
        model=_model(),
        objective=DirectConfig(answer_tokens=48),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-4, warmup=0.1, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 64),), microbatch=64),
        train=TrainConfig(updates=75, evaluate_every=25, log_every=5),
        checkpoint=CheckpointConfig(every=25),
    )
