"""Long contexts, for which attention must not materialize its scores."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)


def long_context() -> Config:
    """A small GPT that reads 8192 bytes at once: blockwise attention with memory linear in the context.

    Hardware: any CPU. Time: 157 s on 2 cores (AMD EPYC, Zen 5), everything included; memory 1.5 GB.
    Expect: 3.9 bits per byte on the validation split, after 150 updates of one row each; a byte unigram has 5.04.
    """
    return Config(
        name="long_context",
        data=DataConfig(source="docstrings", tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.1),
        model=small_llama(layers=2, width=128, heads=2, mlp_width=384, context=8192),
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=3e-3, warmup=0.02),
        batch=BatchConfig(tokens=((0, 8192),), microbatch=1),
        train=TrainConfig(
            updates=150, evaluate_every=50, evaluate_batches=4, expect=(("val_bits_per_byte", 3.7, 4.1),)
        ),
        checkpoint=CheckpointConfig(every=50),
    )
