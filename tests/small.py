"""The smallest run of every family."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config import (
    AnyDataConfig,
    BatchConfig,
    BERTConfig,
    CausalConfig,
    ChatConfig,
    CheckpointConfig,
    ClassificationConfig,
    Config,
    DataConfig,
    DirectConfig,
    GPTConfig,
    GuardConfig,
    MaskedConfig,
    ModelConfig,
    NNLMConfig,
    PreferenceConfig,
    RecordsConfig,
    RewardConfig,
    RNNConfig,
    ScheduleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
    TranslationConfig,
)
from lmjax.config.codec import apply_overrides
from lmjax.config.objectives import ObjectiveConfig
from lmjax.config.policies import PolicyConfig
from lmjax.data.store import preparation
from lmjax.objectives.objective import Objective
from lmjax.objectives.samples import Samples
from lmjax.run import build as run_build

MODELS: dict[str, ModelConfig] = {
    "nnlm": NNLMConfig(order=3, width=16, hidden=16, context=16, dropout=0.1),
    "lstm": RNNConfig(cell="lstm", layers=1, width=16, context=16, dropout=0.1),
    "gru": RNNConfig(cell="gru", layers=2, width=16, context=16),
    "tanh": RNNConfig(cell="tanh", layers=1, width=16, context=16, tied=True),
    "masked": BERTConfig(layers=1, width=16, heads=2, context=24, dropout=0.1, scan=False),
    "translation": TransformerConfig(layers=1, width=16, heads=2, context=32, dropout=0.1),
    "bert labels": BERTConfig(layers=1, width=16, heads=2, context=24, dropout=0.1, scan=False),
    "gpt labels": GPTConfig(layers=1, width=16, heads=2, context=24, dropout=0.1, scan=False),
    "chat": GPTConfig(layers=1, width=16, heads=2, context=64, dropout=0.1, scan=False),
    "packed chat": GPTConfig(layers=1, width=16, heads=2, context=96, dropout=0.1, scan=False),
    "reward": GPTConfig(layers=1, width=16, heads=2, context=256, scan=False),
    "dpo": GPTConfig(layers=1, width=16, heads=2, context=256, scan=False),
}
TEXT, RECORDS = ("nnlm", "lstm", "gru", "tanh", "masked"), ("translation", "bert labels", "gpt labels")
CHAT, PAIRS = ("chat", "packed chat"), ("reward", "dpo")
PIECES, BYTES = TokenizerConfig(kind="wordpiece", vocab_size=80), TokenizerConfig(kind="bytes")


def config(name: str, corpus: Path) -> Config:
    """32 updates of 8 rows in two microbatches, a save every 8; the guard is armed after 8 updates."""
    model = MODELS[name]
    rows_of = 8 * model.context * (2 if name == "translation" else 1)
    return Config(
        name=name.replace(" ", "-"),
        data=_data(name, corpus),
        model=model,
        objective=_objective(name),
        schedule=ScheduleConfig(peak=1e-2, warmup=0.1, unit="updates"),
        batch=BatchConfig(tokens=((0, rows_of),), microbatch=4),
        train=TrainConfig(
            updates=32, evaluate_every=16, evaluate_batches=2, final_batches=2, sample_tokens=4, baselines=False
        ),
        checkpoint=CheckpointConfig(every=8),
        guard=GuardConfig(
            window=16, armed=8, armed_hard=4, divergence_window=8, margin=4, horizon=4, skip_before=2, skip_after=2
        ),
    )


def _objective(name: str) -> ObjectiveConfig:
    if name in PAIRS:
        return RewardConfig() if name == "reward" else DirectConfig(answer_tokens=8)
    if name in CHAT:
        return SFTConfig(scored=4, answer_tokens=8)
    if name in ("masked", "translation"):
        return MaskedConfig() if name == "masked" else TranslationConfig(beam=1, scored=8)
    return ClassificationConfig() if name in RECORDS else CausalConfig()


def _data(name: str, corpus: Path) -> AnyDataConfig:
    cache, pieces = str(corpus.parent / "cache"), name in ("masked", "bert labels")
    tokenizer = PIECES if pieces else BYTES
    if name in TEXT:
        return DataConfig(files=(str(corpus),), tokenizer=tokenizer, validation_fraction=0.1, cache=cache)
    if name in CHAT:
        reserved = replace(BYTES, reserved=8)
        packed = name == "packed chat"
        return ChatConfig(
            limit=300, tokenizer=reserved, validation_fraction=0.02, buckets=2, packed=packed, cache=cache
        )
    if name in PAIRS:
        reserved = replace(BYTES, reserved=8)
        return PreferenceConfig(limit=200, tokenizer=reserved, validation_fraction=0.1, buckets=2, cache=cache)
    some = RecordsConfig(tokenizer=tokenizer, validation_fraction=0.1, buckets=1, cache=cache)
    if name == "translation":
        # Into the longer form: a fault that spoils the largest array then meets the weights of the targets.
        return replace(some, texts=("target", "source"), limit=300, validation_fraction=0.002, buckets=2)
    return replace(some, files=(str(labelled(corpus)),), texts=("text",), label="label")


def labelled(corpus: Path) -> Path:
    """300 lines of words of the corpus, and the animal that is in each, or none."""
    rng, path = random.Random(1), corpus.with_name("labels.jsonl")
    words, rows = sorted(set(corpus.read_text().replace(".", "").split()) - {"cat", "dog"}), []
    for _ in range(300):
        label = rng.choice(["cat", "dog", "none"])
        line = rng.sample(words, rng.randint(2, 6))
        rows.append({"text": " ".join(line if label == "none" else [*line, label]), "label": label})
    if not path.exists():  # it counts by its time of change
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def policy(config: Config, objective: PolicyConfig) -> Config:
    """Reinforcement learning of the model of "chat" in float32: eight prompts, two in a microbatch."""
    assert isinstance(config.model, GPTConfig)
    model = replace(config.model, dropout=0.0, dtype="float32")
    tokens = 8 * objective.group * model.context
    return replace(config, model=model, objective=objective, batch=BatchConfig(((0, tokens),), microbatch=2))


def build(name: str, corpus: Path, *changes: str) -> run_build.Run:
    """The parts of the run, with changes of its configuration."""
    changed = apply_overrides(config(name, corpus), changes)
    return run_build.build(changed, preparation.prepare(changed.data))


def rough(objective: Objective, seed: int = 0) -> Any:
    """Parameters of the objective's model in which every leaf matters, made without a program to compile."""
    inputs, named = objective.example()
    shapes: Any = jax.eval_shape(objective.model.init, jax.random.key(0), *inputs, **named)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"])


def rows(samples: Samples, count: int = 4, cursor: int = 0) -> Mapping[str, np.ndarray]:
    """The first batch of samples from a position on."""
    return samples.arrays(samples.order.take(cursor, count)[0])
