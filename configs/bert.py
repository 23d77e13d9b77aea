"""BERT (Devlin et al. 2019): its two sizes, one for a laptop, and the fine-tuning of a classifier."""

from lmjax.config import (
    BatchConfig,
    BERTConfig,
    CheckpointConfig,
    ClassificationConfig,
    Config,
    DataConfig,
    MaskedConfig,
    OptimizerConfig,
    RecordsConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)


def bert_tiny() -> Config:
    """A small BERT on the English that comes with Python: fills in masked words and recognizes next sentences.

    Hardware: any CPU. Time: 4m18s on 2 cores (AMD EPYC, Zen 5), everything included; memory 1.5 GB.
    Expect, with Python 3.11: 0.44 of the masked tokens right (the most frequent token: 0.06) and 0.87 of the next
    sentences (always the same answer: 0.51). It uses context 64 and Muon: with longer rows and
    fewer updates, the model stayed on a plateau where it guesses full stops; docs/lab.md has the runs.
    """
    return Config(
        name="bert_tiny",
        data=DataConfig(
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=4096), validation_fraction=0.1, document="file"
        ),
        model=BERTConfig(
            layers=2, width=128, heads=4, mlp_width=512, context=64, dropout=0.0, scan=False, dtype="bfloat16"
        ),
        objective=MaskedConfig(),
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=4e-3, warmup=0.05, unit="updates"),
        batch=BatchConfig(tokens=((0, 4096),), microbatch=64),
        train=TrainConfig(
            updates=3000,
            evaluate_every=500,
            log_every=10,
            expect=(("val_masked_accuracy", 0.40, 0.47), ("val_next_accuracy", 0.83, 0.90)),
        ),
        checkpoint=CheckpointConfig(every=500),
    )


def bert_base() -> Config:
    """BERT base: 12 layers, 768 wide, 110,106,428 parameters with both heads; for a TPU slice or 8 GPUs."""
    return _paper("bert_base", layers=12, width=768, heads=12)


def bert_large() -> Config:
    """BERT large: 24 layers, 1024 wide, 336,226,108 parameters with both heads; for a TPU slice or 8 GPUs."""
    return _paper("bert_large", layers=24, width=1024, heads=16)


def _paper(name: str, *, layers: int, width: int, heads: int) -> Config:
    # Appendix A.2: 256 sequences of 512 tokens, 1,000,000 updates, 10,000 of them rising, then linearly to 0.
    return Config(
        name=name,
        data=DataConfig(
            source="hub:wikimedia/wikipedia:20231101.en",
            document="file",
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=30_522),
        ),
        model=BERTConfig(layers=layers, width=width, heads=heads, vocab_size=30_522, remat="dots", dtype="bfloat16"),
        objective=MaskedConfig(),
        optimizer=OptimizerConfig(beta2=0.999, epsilon=1e-6, weight_decay=0.01),
        schedule=ScheduleConfig(peak=1e-4, warmup=0.01, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 256 * 512),), microbatch=32),
        train=TrainConfig(updates=1_000_000, evaluate_every=10_000, evaluate_batches=64, log_every=100),
        checkpoint=CheckpointConfig(every=10_000),
    )


def classify() -> Config:
    """A classifier on a pretrained model (`init_from=RUN`): which part of Python a passage is from.

    Hardware: any CPU. Time: 20 s on 2 cores (AMD EPYC, Zen 5). Expect, from `bert_tiny`: 0.81 of the passages right (8
    labels; 0.77 to 0.84 over three seeds), from scratch with as many updates 0.10.
    """
    return Config(
        name="classify",
        data=RecordsConfig(
            source="docstrings",
            texts=("text",),
            label="label",
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=4096),
            validation_fraction=0.2,
        ),
        model=BERTConfig(layers=2, width=128, heads=4, mlp_width=512, context=64, dropout=0.1, scan=False),
        objective=ClassificationConfig(),
        # Appendix A.3: 3 epochs, rates from 2e-5 to 5e-5 for the large models; small ones learn faster.
        optimizer=OptimizerConfig(beta2=0.999, epsilon=1e-6, weight_decay=0.01),
        schedule=ScheduleConfig(peak=3e-4, warmup=0.1, shape="linear", final=0.0, unit="updates"),
        batch=BatchConfig(tokens=((0, 16 * 64),), microbatch=16),
        train=TrainConfig(updates=150, evaluate_every=50, log_every=10),
        checkpoint=CheckpointConfig(every=50),
    )
