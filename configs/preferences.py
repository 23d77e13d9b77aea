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

    Hardware: any CPU. Time: 36 s on 2 cores, everything included. Expect: a validation loss of 0.495 to 0.499 nats
    (seeds 0 to 2). It is fine-tuning from random parameters, since the reviews have a small grammar.
    """
    return Config(
        name="reviews",
        data=ChatConfig(source="reviews", tokenizer=TokenizerConfig(vocab_size=420, reserved=8)),
        model=_model(),
        objective=SFTConfig(scored=20, answer_tokens=48),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=2e-3, shape="cosine", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 64),), microbatch=64),
        train=TrainConfig(updates=300, evaluate_every=100, log_every=10, expect=(("val_loss", 0.48, 0.52),)),
        checkpoint=CheckpointConfig(every=100),
    )


def reward() -> Config:
    """A reward model of reviews from runs/reviews, or from another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU. Time: 40 s on 2 cores, everything included. Expect, with seeds 0 to 2 of both stages: 0.867 to
    0.880 of the held-out pairs in the right order (best possible: 0.882), 0.939 to 0.950 against the true reward; slope
    1.06 to 1.17.
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
        train=TrainConfig(
            updates=80,
            evaluate_every=20,
            log_every=10,
            expect=(("val_accuracy", 0.84, 0.9), ("val_truth_accuracy", 0.9, 1.0), ("val_slope", 0.8, 1.25)),
        ),
        checkpoint=CheckpointConfig(every=40),
    )


def dpo() -> Config:
    """Direct preference optimization of runs/reviews, or of another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU. Time: 30 s on 2 cores, everything included. The model of init_from is the reference, too.
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
