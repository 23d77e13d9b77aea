"""The rungs of `lmjax ladder`: the history of language models on one text, each trained with equal compute.

The text is the English that comes with Python, in bytes, with a tenth of its documents for validation. All rungs
share the optimizer, the schedule and the dtype; only the model differs. `train.updates` spends 2e13 training FLOPs.

Hardware: any CPU. Time: 21 minutes together on 2 cores (AMD EPYC, Zen 5) under other load.
Expect (bits per byte, Python 3.11): GPT 1.90, LSTM 2.01, RNN 2.08, an interpolated Kneser-Ney 5-gram 2.10 and 4-gram
2.37; the feed-forward network stays between the two (2.24). Docstrings repeat, and counting remembers repetitions.
"""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    NNLMConfig,
    OptimizerConfig,
    RNNConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)


def ladder_nnlm() -> Config:
    """The ladder's feed-forward network (Bengio et al. 2003): the next byte from the eight previous bytes.

    Expect: 2.24 bits per byte after 2e13 FLOPs.
    """
    model = NNLMConfig(order=9, width=48, hidden=1024, context=256, dropout=0.1, dtype="bfloat16")
    return _rung("ladder_nnlm", model, rows=8, updates=2156)


def ladder_rnn() -> Config:
    """The ladder's simple recurrent network (Elman 1990), which carries its state through the text.

    Expect: 2.08 bits per byte after 2e13 FLOPs.
    """
    model = RNNConfig(cell="tanh", layers=1, width=384, context=64, dtype="bfloat16")
    return _rung("ladder_rnn", model, rows=32, updates=4136)


def ladder_lstm() -> Config:
    """The ladder's LSTM (Hochreiter and Schmidhuber 1997), which carries its state through the text.

    Expect: 2.01 bits per byte after 2e13 FLOPs.
    """
    model = RNNConfig(cell="lstm", layers=1, width=256, context=64, dtype="bfloat16")
    return _rung("ladder_lstm", model, rows=32, updates=2759)


def ladder_gpt() -> Config:
    """The ladder's Transformer (Vaswani et al. 2017) as a decoder alone (Radford et al. 2018), in LLaMA's form.

    Expect: 1.90 bits per byte after 2e13 FLOPs.
    """
    model = small_llama(layers=4, width=128, heads=4, mlp_width=384, context=256)
    return _rung("ladder_gpt", model, rows=8, updates=1553)


def _rung(name: str, model: ModelConfig, *, rows: int, updates: int) -> Config:
    return Config(
        name=name,
        data=DataConfig(tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.1),
        model=model,
        # Of 1e13 FLOPs the LSTM (at 4e-3) made 2.28 bits per byte with AdamW, and 2.16 with Muon.
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=3e-3, warmup=0.02),
        batch=BatchConfig(tokens=((0, rows * model.context),), microbatch=rows),
        train=TrainConfig(updates=updates, evaluate_every=updates // 8, log_every=10),
        checkpoint=CheckpointConfig(every=updates // 8),
    )
