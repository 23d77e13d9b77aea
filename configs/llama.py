"""LLaMA-style models: rotary positions, RMSNorm, SwiGLU, no biases."""

import dataclasses

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


def llama_1b() -> Config:
    """The shape of Llama 3.2 1B: 16 layers, 2048 wide, 1,235,814,400 parameters; 25 billion tokens, for a TPU slice."""
    return _llama(
        "llama_1b",
        GPTConfig(
            layers=16,
            width=2048,
            heads=32,
            key_heads=8,
            mlp_width=8192,
            context=2048,
            vocab_size=128_256,
            rope_theta=500_000.0,
        ),
        peak=4e-4,
        # OLMo 2 1B: 4e-4 at 2.1M tokens (OLMo et al. 2025).
        batch=((0, 524_288), (5_000_000_000, 2_097_152)),
        tokens=25_000_000_000,
    )


def llama_7b() -> Config:
    """LLaMA 7B (Touvron et al. 2023): 32 layers, 4096 wide, 6,738,415,616 parameters; 1 trillion tokens, for a pod."""
    return _llama(
        "llama_7b",
        GPTConfig(
            layers=32,
            width=4096,
            heads=32,
            mlp_width=11_008,
            context=2048,
            vocab_size=32_000,
            tied=False,
            norm_epsilon=1e-6,
        ),
        peak=3e-4,
        batch=((0, 4_194_304),),
        tokens=1_000_000_000_000,
    )


def _llama(name: str, model: GPTConfig, *, peak: float, batch: tuple[tuple[int, int], ...], tokens: int) -> Config:
    return Config(
        name=name,
        data=DataConfig(
            source="hub:HuggingFaceFW/fineweb:sample-100BT",
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=model.vocab_size),
        ),
        model=dataclasses.replace(
            model,
            norm="rmsnorm",
            positions="rotary",
            activation="swiglu",
            bias=False,
            remat="full",
            dtype="bfloat16",
        ),
        schedule=ScheduleConfig(peak=peak, warmup=0.005),
        batch=BatchConfig(tokens=batch, growth="linear", microbatch=64),
        train=TrainConfig(tokens=tokens, evaluate_every=1000, evaluate_batches=64, log_every=10),
        checkpoint=CheckpointConfig(every=1000, keep_every=20_000),
        parallel=ParallelConfig(mesh=MeshConfig(data=1, fsdp=-1)),
    )
