"""In-context learning: only the examples in the prompt determine the answer."""

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    InContextConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    small_llama,
)


def in_context() -> Config:
    """A small GPT that looks up pairs of letters in its prompt, including pairs not in training.

    Every document has its own random map from 8 small to 8 capital letters, so the weights cannot store the meaning of
    a letter. A quarter of all 26 x 26 pairs occurs in no document, and the evaluation uses only these. Hardware: any
    CPU. Time: 115 s on 2 cores (AMD EPYC, Zen 5), everything included; memory 1.5 GB.
    Expect: of the 8 letters of a map the right one in 15 % of 100 questions with 0 examples (guessing: 12.5 %), 21 %
    with 1, 28 % with 2, 60 % with 4 and all with 8, which always hold the answer (k hold it in k / 8 of all cases).
    1.71 bits per byte, where an interpolated Kneser-Ney 5-gram has 2.35. The validation loss stays near 1.57 nats until
    the ability appears, between updates 400 and 800 in both seeds tried, then falls to 1.17.
    """
    return Config(
        name="in_context",
        data=DataConfig(
            source="in_context",
            in_context=InContextConfig(
                tasks=("random_map",),
                documents=40_000,
                # Only letters that come again teach looking up: in 24 pairs each of the 8 comes three times.
                shots=((0, 1.0), (1, 1.0), (8, 2.0), (24, 12.0)),
                described=0.0,
            ),
            tokenizer=TokenizerConfig(kind="bytes"),
            validation_fraction=0.02,
        ),
        model=small_llama(layers=2, width=128, heads=4, mlp_width=256, context=128),
        optimizer=OptimizerConfig(name="muon"),
        schedule=ScheduleConfig(peak=3e-3, shape="wsd"),
        batch=BatchConfig(tokens=((0, 16 * 128),), microbatch=16),
        train=TrainConfig(
            updates=1500,
            evaluate_every=100,
            evaluate_batches=8,
            log_every=10,
            sample_prompt="k R\nx W\nb F\nx",
            sample_tokens=4,
            expect=(
                ("val_bits_per_byte", 1.65, 1.8),
                ("val_random_map_0_shot", 0.0, 0.25),
                ("val_random_map_8_shot", 0.9, 1.0),
            ),
        ),
        evaluate=EvaluateConfig(tasks=("random_map",), shots=(0, 1, 2, 4, 8)),
        checkpoint=CheckpointConfig(every=500),
    )
