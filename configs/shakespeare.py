"""Character-level Shakespeare in the shapes and budgets of nanoGPT, so that results compare."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def _characters() -> DataConfig:
    return DataConfig(
        document="file",
        tokenizer=TokenizerConfig(kind="characters"),
        validation="tail",
        validation_fraction=0.1,
    )


def shakespeare_char() -> Config:
    """Six layers, 384 wide, context 256: 5000 updates of 64 sequences (nanoGPT's recipe, 1.47 nats there).

    Give it Tiny Shakespeare: `data.files=[input.txt]`; without a file it reads the embedded corpus. Hardware: a GPU; on
    2 CPU cores 4.2 s an update. Expect: 1.47 nats, as nanoGPT reports; no complete run exists.
    """
    return Config(
        name="shakespeare_char",
        data=_characters(),
        model=GPTConfig(
            layers=6, width=384, heads=6, context=256, bias=False, dropout=0.2, activation="gelu", scan=False
        ),
        optimizer=OptimizerConfig(beta2=0.99),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.02, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 256),), microbatch=16),
        train=TrainConfig(updates=5000, evaluate_every=250, sample_tokens=500),
        checkpoint=CheckpointConfig(every=250),
    )


def shakespeare_char_cpu() -> Config:
    """Four layers, 128 wide, context 64: 2000 updates of 12 sequences (nanoGPT's recipe for a laptop).

    Give it Tiny Shakespeare: `data.files=[input.txt]`; without a file it reads the embedded corpus. Time: 67 s on 2
    CPU cores. Expect: 1.90 nats on the complete validation split (the last tenth); the same recipe in PyTorch 1.92.
    """
    return Config(
        name="shakespeare_char_cpu",
        data=_characters(),
        model=GPTConfig(layers=4, width=128, heads=4, context=64, bias=False, activation="gelu", scan=False),
        optimizer=OptimizerConfig(beta2=0.99),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.05, unit="updates"),
        batch=BatchConfig(tokens=((0, 12 * 64),), microbatch=12),
        train=TrainConfig(updates=2000, evaluate_every=250, log_every=10, sample_tokens=500),
        checkpoint=CheckpointConfig(every=500),
        runtime=RuntimeConfig(allocator="keep"),
    )
