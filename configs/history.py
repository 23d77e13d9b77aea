"""Models that precede GPT, sized for a laptop: feed-forward and recurrent, at character level."""

from lmjax.config import (
    BatchConfig,
    CausalConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    NNLMConfig,
    OptimizerConfig,
    RNNConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def nnlm() -> Config:
    """Bengio et al. 2003: a feed-forward model of the next token from the four previous tokens.

    Hardware: any CPU. Time: 377 s on 2 cores (AMD EPYC, Zen 5) that were busy otherwise, everything included.
    Expect, with Python 3.11: 2.15 bits per byte, where a Kneser-Ney 5-gram over the same tokens has 1.89: on 2.2 MB of
    docstrings, which repeat, counting is hard to beat for a model that sees four tokens.
    """
    return Config(
        name="nnlm",
        data=DataConfig(tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096), validation_fraction=0.1),
        model=NNLMConfig(order=5, width=60, hidden=100, context=64, dropout=0.1),
        objective=CausalConfig(),
        # The paper decays weights by 1e-4 and trains by stochastic gradient descent for weeks; AdamW takes minutes.
        optimizer=OptimizerConfig(beta2=0.99, weight_decay=0.1),
        schedule=ScheduleConfig(peak=2e-3, warmup=0.02, unit="updates"),
        batch=BatchConfig(tokens=((0, 2048),), microbatch=32),
        train=TrainConfig(updates=1500, evaluate_every=250, log_every=10, expect=(("val_bits_per_byte", 2.05, 2.18),)),
        checkpoint=CheckpointConfig(every=250),
    )


def char_rnn() -> Config:
    """A character-level recurrent network of two layers (Karpathy 2015): the simple tanh cell.

    Hardware: any CPU. Time: 60 s on 2 cores (AMD EPYC, Zen 5), everything included; memory 0.6 GB.
    Expect, with Python 3.11: 2.15 bits per byte; a Kneser-Ney 5-gram over the same bytes has 2.10.
    """
    return _characters("char_rnn", "tanh", peak=2e-3, bits=2.15)


def lstm() -> Config:
    """The character-level recurrent network with LSTM cells.

    Hardware: any CPU. Time: 186 s on 2 cores (AMD EPYC, Zen 5), everything included; memory 0.8 GB.
    Expect, with Python 3.11: 2.05 bits per byte; a Kneser-Ney 5-gram over the same bytes has 2.10.
    """
    return _characters("lstm", "lstm", peak=4e-3, bits=2.05)


def gru() -> Config:
    """The character-level recurrent network with GRU cells.

    Expect: about the result of the LSTM; no complete run exists.
    """
    return _characters("gru", "gru", peak=4e-3)


def _characters(name: str, cell: str, *, peak: float, bits: float = 0.0) -> Config:
    expect = (("val_bits_per_byte", round(bits - 0.1, 2), round(bits + 0.03, 2)),) if bits else ()
    return Config(
        name=name,
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.1),
        model=RNNConfig(cell=cell, layers=2, width=256, context=64),  # type: ignore[arg-type]
        # Gradients of recurrent networks explode: the clip is theirs (Pascanu et al. 2013).
        optimizer=OptimizerConfig(beta2=0.99, weight_decay=0.0, clip=1.0),
        schedule=ScheduleConfig(peak=peak, warmup=0.02, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 64),), microbatch=64),
        train=TrainConfig(updates=1500, evaluate_every=250, log_every=10, sample_tokens=300, expect=expect),
        checkpoint=CheckpointConfig(every=250),
    )
