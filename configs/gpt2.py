"""GPT-2's four sizes (Radford et al. 2019, table 2), trained with GPT-3's hyperparameters of the same size."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    MeshConfig,
    ParallelConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def gpt2_124m() -> Config:
    """GPT-2 small: 12 layers, 768 wide, 124,439,808 parameters; 10 billion tokens, for 8 GPUs or one TPU host."""
    return _gpt2("gpt2_124m", layers=12, width=768, heads=12, peak=6e-4)


def gpt2_350m() -> Config:
    """GPT-2 medium: 24 layers, 1024 wide, 354,823,168 parameters; 10 billion tokens, for 8 GPUs or a TPU slice."""
    return _gpt2("gpt2_350m", layers=24, width=1024, heads=16, peak=3e-4)


def gpt2_774m() -> Config:
    """GPT-2 large: 36 layers, 1280 wide, 774,030,080 parameters; 10 billion tokens, for 8 GPUs or a TPU slice."""
    return _gpt2("gpt2_774m", layers=36, width=1280, heads=20, peak=2.5e-4)


def gpt2_1558m() -> Config:
    """GPT-2 XL: 48 layers, 1600 wide, 1,557,611,200 parameters; 10 billion tokens, for 8 GPUs or a TPU slice."""
    return _gpt2("gpt2_1558m", layers=48, width=1600, heads=25, peak=2e-4)


def _gpt2(name: str, *, layers: int, width: int, heads: int, peak: float) -> Config:
    return Config(
        name=name,
        data=DataConfig(
            source="hub:HuggingFaceFW/fineweb:sample-10BT",
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=50257),
        ),
        model=GPTConfig(
            layers=layers,
            width=width,
            heads=heads,
            context=1024,
            vocab_size=50257,
            remat="dots",
            dtype="bfloat16",
        ),
        schedule=ScheduleConfig(peak=peak, warmup=0.005),
        # GPT-3 grows the batch linearly from 32k tokens over the first billions (Brown et al. 2020, section 2.3).
        batch=BatchConfig(tokens=((0, 32_768), (500_000_000, 524_288)), growth="linear", microbatch=32),
        train=TrainConfig(tokens=10_000_000_000, evaluate_every=500, evaluate_batches=64, log_every=10),
        checkpoint=CheckpointConfig(every=1000, keep_every=10_000),
        # From 774M on, parameters and optimizer state on every device would leave a TPU v5e no room.
        parallel=ParallelConfig(mesh=MeshConfig(data=1, fsdp=-1) if width >= 1280 else MeshConfig()),
    )
