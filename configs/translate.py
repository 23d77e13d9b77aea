"""Translation by the encoder-decoder Transformer of Vaswani et al. 2017: its two sizes, and one for a laptop."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    OptimizerConfig,
    RecordsConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
    TranslationConfig,
)


def translate() -> Config:
    """Written dates to ISO dates: a small encoder-decoder, one character at a time, on generated pairs.

    Hardware: any CPU. Time: 126 s on 2 cores (AMD EPYC, Zen 5), everything included; memory 1.6 GB.
    Expect: 0.998 of the held-out dates exactly right.
    """
    return Config(
        name="translate",
        data=RecordsConfig(source="dates", tokenizer=TokenizerConfig(kind="bytes")),
        model=TransformerConfig(layers=2, width=128, heads=4, context=48, dropout=0.0),
        objective=TranslationConfig(label_smoothing=0.0, beam=1, scored=1000),
        optimizer=OptimizerConfig(beta2=0.98, epsilon=1e-9, weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.05, unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 96),), microbatch=64),
        train=TrainConfig(updates=2000, evaluate_every=500, log_every=10, expect=(("val_exact", 0.99, 1.0),)),
        checkpoint=CheckpointConfig(every=250),
    )


def translate_pairs() -> Config:
    """A small encoder-decoder with its own BPE for pairs in data.files=[train.en,train.de].

    Hardware: any CPU. Time: 581 s on 2 cores (AMD EPYC, Zen 5) for 9,819 English-German pairs; memory 2.2 GB. Expect:
    BLEU 2.3 on 180 held-out pairs; useful translation needs hundreds of times as many pairs.
    """
    return Config(
        name="translate_pairs",
        data=RecordsConfig(tokenizer=TokenizerConfig(kind="bpe", vocab_size=8000), validation_fraction=0.02),
        model=TransformerConfig(layers=2, width=256, heads=4, context=64, dropout=0.2, dtype="bfloat16"),
        objective=TranslationConfig(label_smoothing=0.1, beam=4),
        optimizer=OptimizerConfig(beta2=0.98, epsilon=1e-9, weight_decay=0.0),
        schedule=ScheduleConfig(peak=1e-3, warmup=0.1, shape="inverse_sqrt", unit="updates"),
        batch=BatchConfig(tokens=((0, 64 * 128),), microbatch=64),
        train=TrainConfig(updates=1500, evaluate_every=250, log_every=10),
        checkpoint=CheckpointConfig(every=250),
    )


def transformer_base() -> Config:
    """The paper's base model: 6 + 6 layers, 512 wide, 8 heads; give it pairs with data.files. For 8 GPUs."""
    return _paper("transformer_base", width=512, heads=8, dropout=0.1, updates=100_000)


def transformer_big() -> Config:
    """The paper's big model: 6 + 6 layers, 1024 wide, 16 heads; give it pairs with data.files. For 8 GPUs."""
    return _paper("transformer_big", width=1024, heads=16, dropout=0.3, updates=300_000)


def _paper(name: str, *, width: int, heads: int, dropout: float, updates: int) -> Config:
    warmup = 4000  # updates; section 5.3: width^-0.5 min(s^-0.5, s warmup^-1.5), whose peak is (width warmup)^-0.5
    return Config(
        name=name,
        data=RecordsConfig(tokenizer=TokenizerConfig(kind="bpe", vocab_size=37_000)),
        model=TransformerConfig(
            layers=6, width=width, heads=heads, context=256, vocab_size=37_000, dropout=dropout, dtype="bfloat16"
        ),
        objective=TranslationConfig(label_smoothing=0.1, beam=4, length_penalty=0.6),
        optimizer=OptimizerConfig(name="adam", beta2=0.98, epsilon=1e-9, clip=0.0),
        schedule=ScheduleConfig(
            peak=(width * warmup) ** -0.5, warmup=warmup / updates, shape="inverse_sqrt", unit="updates"
        ),
        # The paper's batches hold about 25,000 source and as many target tokens; half of these places are padding.
        batch=BatchConfig(tokens=((0, 192 * 512),), microbatch=64),
        train=TrainConfig(updates=updates, evaluate_every=1000, log_every=10),
        checkpoint=CheckpointConfig(every=1000, keep=5),
    )
