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
    model = NNLMConfig(order=9, width=48, hidden=1024, context=64, dropout=0.1, dtype="bfloat16")
    return _rung("ladder_nnlm", model, rows=32, updates=2156)


def ladder_rnn() -> Config:
    """Elman 1990."""
    model = RNNConfig(cell="tanh", layers=1, width=384, context=64, dtype="bfloat16")
    return _rung("ladder_rnn", model, rows=32, updates=4136)


def ladder_lstm() -> Config:
    """Hochreiter and Schmidhuber 1997."""
    model = RNNConfig(cell="lstm", layers=1, width=256, context=64, dtype="bfloat16")
    return _rung("ladder_lstm", model, rows=32, updates=2759)


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
    return _rung("ladder_gpt", model, rows=16, updates=1603)


def _rung(name: str, model: ModelConfig, *, rows: int, updates: int) -> Config:
    return Config(
        name=name,
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.1),
        model=model,
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=3e-3, warmup=0.02),
        batch=BatchConfig(tokens=((0, rows * model.context),), microbatch=rows),
        train=TrainConfig(updates=updates, evaluate_every=updates // 8, log_every=10),
        checkpoint=CheckpointConfig(every=updates // 8),
    )
