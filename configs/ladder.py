"""The rungs of `lmjax ladder`: the history of language models on one text, each trained with the same compute."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    RNNConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def ladder_nnlm() -> Config:
    """Bengio et al. 2003: a feed-forward network."""
    model = NNLMConfig(order=11, width=32, hidden=512, direct=False, context=64, dtype="bfloat16")
    return _rung("ladder_nnlm", model, OptimizerConfig(beta2=0.99, weight_decay=0.0), peak=2e-3, rows=64, updates=3000)


def ladder_rnn() -> Config:
    """Elman 1990."""
    model = RNNConfig(cell="tanh", layers=1, width=384, context=64, dtype="bfloat16")
    return _rung("ladder_rnn", model, OptimizerConfig(beta2=0.99, weight_decay=0.0), peak=2e-3, rows=32, updates=3000)


def ladder_lstm() -> Config:
    """Hochreiter and Schmidhuber 1997."""
    model = RNNConfig(cell="lstm", layers=1, width=256, context=64, dtype="bfloat16")
    return _rung("ladder_lstm", model, OptimizerConfig(beta2=0.99, weight_decay=0.0), peak=4e-3, rows=32, updates=3000)


def ladder_gpt() -> Config:
    """GPT."""
    model = GPTConfig(
        layers=4,
        width=128,
        heads=4,
        mlp_width=384,
        context=128,
        norm="rmsnorm",
        positions="rotary",
        activation="swiglu",
        bias=False,
        qk_norm=True,
        scan=False,
        dtype="bfloat16",
    )
    return _rung("ladder_gpt", model, OptimizerConfig(name="muon"), peak=3e-3, rows=16, updates=3000)


def _rung(name: str, model: ModelConfig, optimizer: OptimizerConfig, *, peak: float, rows: int, updates: int) -> Config:
    return Config(
        name=name,
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.1),
        model=model,
        optimizer=optimizer,
        schedule=ScheduleConfig(peak=peak, warmup=0.02),
        batch=BatchConfig(tokens=((0, rows * model.context),), microbatch=rows),
        train=TrainConfig(updates=updates, evaluate_every=updates // 10, log_every=10),
        checkpoint=CheckpointConfig(every=updates // 10),
    )
