"""The plan of a run: tables of what it will do and need; nothing is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmjax.config import ClassificationConfig, Config
from lmjax.data import tokenizer
from lmjax.display.format import duration, quantity
from lmjax.models import classifier, registry
from lmjax.optim import batch_plan, learning_rate
from lmjax.optim.batch_plan import BatchPlan

#: Share of the machine's peak that a well-tuned run reaches (PaLM, table 3: 0.46).
EXPECTED_UTILISATION = 0.4


class Table(NamedTuple):
    """A table as `Console.table` takes it."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


def tables(
    config: Config,
    *,
    peak_flops: float,
    devices: int,
    corpus_tokens: int = 0,
    mesh: Mapping[str, int] | None = None,
) -> list[Table]:
    """Plan a resolved configuration (with a known vocabulary).

    Args:
        config: the resolved configuration.
        peak_flops: FLOP/s of all devices together.
        devices: number of devices.
        corpus_tokens: number of tokens in the training split; 0 if unknown.
        mesh: the size of each axis (`lmjax.parallel.axes`). None: all devices divide the rows.
    """
    plan = batch_plan.batch_plan(config.batch, config.train, registry.tokens(config.model))
    rates = learning_rate.learning_rates(config.schedule, plan)
    return [
        Table(
            "Parameters",
            [(name, f"{count:,}") for name, count in _parameters(config).items()],
            ("", "count"),
        ),
        Table("Run", _run(config, plan, peak_flops=peak_flops, devices=devices, corpus_tokens=corpus_tokens)),
        Table("Milestones", _milestones(config, plan, rates), ("update", "tokens", "batch", "learning rate", "")),
        Table(
            "Memory of a device",
            [(name, f"{size / 2**30:.2f} GiB") for name, size in _memory(config, mesh or {"data": devices}).items()],
            ("", "closed form"),
        ),
    ]


def _parameters(config: Config) -> dict[str, int]:
    if isinstance(config.objective, ClassificationConfig):
        return classifier.parameters(config.model, len(config.objective.labels))
    return registry.parameters(config.model)


def _memory(config: Config, mesh: Mapping[str, int]) -> dict[str, float]:
    data, fsdp, tensor, sequence = (mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor", "sequence"))
    rows = config.batch.microbatch // (data * fsdp)
    chunk = -(-getattr(config.objective, "chunk", 0) // (data * fsdp))
    sizes = registry.memory(
        config.model, rows, optimizer=config.optimizer, accumulate=_accumulates(config), chunk=chunk
    )
    divisors = {"activations": tensor * sequence, "logits": tensor * sequence}
    parts = {name: size / divisors.get(name, fsdp * tensor) for name, size in sizes.items() if name != "total"}
    return parts | {"total": sum(parts.values())}


def _accumulates(config: Config) -> bool:
    return max(tokens for _, tokens in config.batch.tokens) > config.batch.microbatch * registry.tokens(config.model)


def _run(
    config: Config, plan: BatchPlan, *, peak_flops: float, devices: int, corpus_tokens: int
) -> list[tuple[str, str]]:
    per_token = registry.flops_per_token(config.model)
    total = per_token * plan.tokens
    seconds = total / (peak_flops * EXPECTED_UTILISATION)
    epochs = f" ({plan.tokens / corpus_tokens:.2f} epochs of {quantity(corpus_tokens)})" if corpus_tokens else ""
    every, evaluate_every = config.checkpoint.every, config.train.evaluate_every
    saves = _times(plan.updates - 1, every) + 1
    evaluations = _times(plan.updates - 1, evaluate_every) + 1
    return [
        ("updates", f"{plan.updates:,}"),
        ("tokens", f"{plan.tokens:,}{epochs}"),
        ("FLOPs", f"{total:.3g} ({quantity(per_token)} a token)"),
        ("devices", f"{devices}, together {quantity(peak_flops)}FLOP/s at most"),
        ("expected time", f"{duration(seconds)} at {EXPECTED_UTILISATION:.0%} of that, without evaluations"),
        ("checkpoints", f"{saves}: {_when(every)}"),
        ("evaluations", f"{evaluations}: {_when(evaluate_every)}"),
    ]


def _when(every: int) -> str:
    return f"every {every:,} updates and at the end" if every else "at the end"


def _times(updates: int, every: int) -> int:
    return updates // every if every else 0


def _milestones(config: Config, plan: BatchPlan, rates: np.ndarray, *, most: int = 8) -> list[tuple[str, ...]]:
    """Return every update at which the schedule or the batch changes; a long batch growth shows a few steps only."""
    grows = plan.changes
    if len(grows) > most:
        grows = grows[np.linspace(0, len(grows) - 1, most).astype(int)]
    events: dict[int, list[str]] = {0: ["first update"]}
    for update in grows.tolist():
        up = plan.sequences[update] > plan.sequences[update - 1]
        events.setdefault(update, []).append("batch grows" if up else "batch shrinks")
    at_peak = np.flatnonzero(rates == rates.max())
    events.setdefault(int(at_peak[0]), []).append("warm-up ends")
    if config.schedule.shape == "wsd" and at_peak[-1] < plan.updates - 1:
        events.setdefault(int(at_peak[-1]) + 1, []).append("decay begins")
    for share in (0.25, 0.5, 0.75):
        events.setdefault(int(plan.updates * share), []).append(f"{share:.0%} of the updates")
    events.setdefault(plan.updates - 1, []).append("last update")
    return [
        (
            f"{update + 1:,}",
            quantity(float(plan.tokens_before[update])),
            f"{plan.sequences[update] * plan.context:,}",
            f"{rates[update]:.3g}",
            ", ".join(what),
        )
        for update, what in sorted(events.items())
    ]


def expected_vocabulary(config: Config) -> int:
    """Return the size of the vocabulary before any text is read; for characters it is an estimate."""
    choice = config.data.tokenizer
    if config.model.vocab_size:
        return config.model.vocab_size
    if choice.kind == "file":
        return tokenizer.load_tokenizer(Path(choice.path)).vocab_size
    return {"bytes": 257, "characters": 100}.get(choice.kind, choice.vocab_size)
