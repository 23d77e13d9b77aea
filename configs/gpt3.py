"""The eight models of GPT-3 (Brown et al. 2020, table 2.1): shapes, learning rates and batch sizes of that table.

Two shapes follow reproductions, since the paper's shapes are inconsistent: 1.3B has 16 heads of 128 (the paper
says 24), 13B is 5120 wide (the paper says 5140). The batch grows linearly from 32k tokens over the first 4 to 12
billion tokens, the learning rate rises over 375 million and falls by a cosine to a tenth; 300 billion tokens.
"""

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


def gpt3_125m() -> Config:
    """GPT-3 Small: 12 layers, 768 wide; a pod slice."""
    return _gpt3("gpt3_125m", layers=12, width=768, heads=12, peak=6e-4, batch=524_288)


def gpt3_350m() -> Config:
    """GPT-3 Medium: 24 layers, 1024 wide; a pod slice."""
    return _gpt3("gpt3_350m", layers=24, width=1024, heads=16, peak=3e-4, batch=524_288)


def gpt3_760m() -> Config:
    """GPT-3 Large: 24 layers, 1536 wide; a pod slice."""
    return _gpt3("gpt3_760m", layers=24, width=1536, heads=16, peak=2.5e-4, batch=524_288)


def gpt3_1300m() -> Config:
    """GPT-3 XL: 24 layers, 2048 wide; a pod slice."""
    return _gpt3("gpt3_1300m", layers=24, width=2048, heads=16, peak=2e-4, batch=1_048_576)


def gpt3_2700m() -> Config:
    """GPT-3 2.7B: 32 layers, 2560 wide; a pod."""
    return _gpt3("gpt3_2700m", layers=32, width=2560, heads=32, peak=1.6e-4, batch=1_048_576)


def gpt3_6700m() -> Config:
    """GPT-3 6.7B: 32 layers, 4096 wide; a pod."""
    return _gpt3("gpt3_6700m", layers=32, width=4096, heads=32, peak=1.2e-4, batch=2_097_152)


def gpt3_13b() -> Config:
    """GPT-3 13B: 40 layers, 5120 wide; a pod."""
    return _gpt3("gpt3_13b", layers=40, width=5120, heads=40, peak=1e-4, batch=2_097_152)


def gpt3_175b() -> Config:
    """GPT-3 175B: 96 layers, 12288 wide; several pods."""
    return _gpt3("gpt3_175b", layers=96, width=12_288, heads=96, peak=0.6e-4, batch=3_276_800)


def _gpt3(name: str, *, layers: int, width: int, heads: int, peak: float, batch: int) -> Config:
    growth = {524_288: 4, 1_048_576: 6, 2_097_152: 10, 3_276_800: 12}[batch] * 1_000_000_000
    return Config(
        name=name,
        data=DataConfig(
            source="hub:HuggingFaceFW/fineweb:sample-350BT",
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=50257),
        ),
        model=GPTConfig(
            layers=layers,
            width=width,
            heads=heads,
            context=2048,
            vocab_size=50257,
            remat="full",
            dtype="bfloat16",
        ),
        schedule=ScheduleConfig(peak=peak, warmup=375e6 / 300e9, unit="tokens"),
        batch=BatchConfig(tokens=((0, 32_768), (growth, batch)), growth="linear", microbatch=16),
        train=TrainConfig(tokens=300_000_000_000, evaluate_every=1000, evaluate_batches=64, log_every=10),
        checkpoint=CheckpointConfig(every=1000, keep_every=20_000),
        # From 760M on, parameters and optimizer state on every device would leave a TPU v5e no room.
        parallel=ParallelConfig(mesh=MeshConfig(data=1, fsdp=-1) if width >= 1536 else MeshConfig()),
    )
