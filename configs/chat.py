"""After pretraining: a small model of number words and dates, and its fine-tuning to answer questions."""

from lmjax.config import (
    BatchConfig,
    ChatConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)


def facts() -> Config:
    """A small GPT on sentences about number words and ISO dates: the base model of `sft`; needs no download.

    Hardware: any CPU; 1.0e13 FLOP. Time: 125 s on 2 cores, everything included. Expect: 0.378 bits per byte on the
    validation split. Its vocabulary reserves the control tokens of conversations.
    """
    return Config(
        name="facts",
        data=DataConfig(
            source="numbers_and_dates",
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=512, reserved=8),
            validation_fraction=0.02,
            packed=True,
        ),
        model=small_llama(layers=4, width=128, heads=4, mlp_width=352, context=64),
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=3e-3),
        batch=BatchConfig(tokens=((0, 2048),), microbatch=32),
        train=TrainConfig(updates=900, evaluate_every=300, log_every=10, baselines=False),
        checkpoint=CheckpointConfig(every=100),
    )


def sft() -> Config:
    """Fine-tuning on questions with answers, from runs/facts or another model (`init_from=MODEL data.files=[...]`).

    Hardware: any CPU; 1.7e12 FLOP. Time: 36 s on 2 cores, everything included. Expect, from `facts`: 0.875 to 0.895 of
    200 held-out questions answered exactly (three seeds), from random parameters 0.015. No training question has the
    number or the date of a held-out one; the sentences of `facts` do.
    """
    return Config(
        name="sft",
        init_from="runs/facts",
        data=ChatConfig(limit=600, validation_fraction=0.2),
        model=small_llama(layers=4, width=128, heads=4, mlp_width=352, context=64),
        objective=SFTConfig(answer_tokens=32),
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.05, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 32 * 64),), microbatch=32),
        train=TrainConfig(updates=150, evaluate_every=50, log_every=10),
        checkpoint=CheckpointConfig(every=50),
    )
