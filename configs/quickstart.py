"""The configuration behind a bare `python train.py`."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def quickstart() -> Config:
    """A small GPT on the English that comes with Python: needs no file, no download and no accelerator."""
    return Config(
        name="quickstart",
        data=DataConfig(source="docstrings", tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048)),
        model=GPTConfig(
            layers=4,
            width=256,
            heads=4,
            context=256,
            norm="rmsnorm",
            positions="rotary",
            activation="swiglu",
            mlp_width=704,
            bias=False,
            qk_norm=True,
        ),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(peak=2e-3, warmup=0.02),
        batch=BatchConfig(tokens=((0, 4096), (500_000, 8192)), microbatch=16),
        train=TrainConfig(updates=400, evaluate_every=100),
        checkpoint=CheckpointConfig(every=100),
    )
