"""Batch sizes, learning rates and the optimizer: functions of small configs.

The batch size and the learning rate of every update are tables computed before the first update. The
optimizer itself holds no learning rate: the update multiplies its direction by minus the rate that comes with
the batch.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax

from lmjax.config import BatchConfig, OptimizerConfig, ScheduleConfig, TrainConfig, UserError
from lmjax.pytrees import path_name

# ---- Batch size --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batch of every update: `sequences` and `tokens_before`, both int64[updates]."""

    sequences: np.ndarray
    tokens_before: np.ndarray
    context: int
    microbatch: int

    @property
    def updates(self) -> int:
        return len(self.sequences)

    @property
    def tokens(self) -> int:
        return int(self.tokens_before[-1] + self.sequences[-1] * self.context)

    @property
    def microbatches(self) -> np.ndarray:
        """int64[updates]: how many microbatches an update accumulates; the maximum is the update step's K."""
        return self.sequences // self.microbatch

    @property
    def changes(self) -> np.ndarray:
        """The updates whose batch size differs from the one before."""
        return np.flatnonzero(np.diff(self.sequences)) + 1

    @cached_property
    def jumps(self) -> np.ndarray:
        """The changes by a quarter or more since the last such: what the guard takes for an announced change."""
        found, size = [], int(self.sequences[0])
        for update in self.changes.tolist():
            now = int(self.sequences[update])
            if 4 * now >= 5 * size or 5 * now <= 4 * size:
                found.append(update)
                size = now
        return np.asarray(found, np.int64)


def batch_plan(batch: BatchConfig, train: TrainConfig, context: int) -> BatchPlan:
    """The batch size of every update of the run.

    An update's size is what `batch.tokens` says at the tokens seen before it, rounded to whole microbatches.
    With `train.tokens` the run ends with the first update that reaches that many tokens. UserError: names the
    wrong key.
    """
    unit = batch.microbatch * context
    _check_batch(batch, train, unit)
    levels = _levels(batch, unit)
    ends = [start for start, _ in levels[1:]] + [0]
    tokens = updates = 0
    sizes, counts = [], []
    for (_, microbatches), end in zip(levels, ends, strict=True):
        size = microbatches * unit
        limits = (end,) if train.updates else (end, train.tokens)
        room = [-((tokens - limit) // size) for limit in limits if limit]  # rounded up
        if train.updates:
            room.append(train.updates - updates)
        count = max(0, min(room))
        sizes.append(microbatches * batch.microbatch)
        counts.append(count)
        updates, tokens = updates + count, tokens + count * size
    sequences = np.repeat(np.array(sizes, np.int64), counts)
    return BatchPlan(sequences, (np.cumsum(sequences) - sequences) * context, context, batch.microbatch)


def _levels(batch: BatchConfig, unit: int) -> list[tuple[int, int]]:
    """((from_token, microbatches), ...): the batch size, rounded half up, is constant between them."""
    levels = [(0, _microbatches(batch.tokens[0][1], unit))]
    for (t0, b0), (t1, b1) in pairwise(batch.tokens):
        k0, k1 = _microbatches(b0, unit), _microbatches(b1, unit)
        if batch.growth == "linear":
            # b0 + (b1 - b0) (t - t0) / (t1 - t0) crosses (k - 1/2) unit upwards, (k + 1/2) unit down.
            scale = 2 * abs(b1 - b0)
            for k in range(k0 + 1, k1 + 1):
                levels.append((t0 - ((2 * b0 - (2 * k - 1) * unit) * (t1 - t0) // scale), k))
            for k in range(k0 - 1, k1 - 1, -1):
                levels.append((t0 + (2 * b0 - (2 * k + 1) * unit) * (t1 - t0) // scale + 1, k))
        levels.append((t1, k1))
    return levels


def _microbatches(tokens: int, unit: int) -> int:
    return (2 * tokens + unit) // (2 * unit)


def _check_batch(batch: BatchConfig, train: TrainConfig, unit: int) -> None:
    points = batch.tokens
    for key, value in (("train.updates", train.updates), ("train.tokens", train.tokens)):
        if value < 0:
            raise UserError(f"{key} = {value} must not be negative")
    if train.updates == train.tokens == 0:
        raise UserError("how long is the run? set train.updates or train.tokens")
    if batch.microbatch < 1:
        raise UserError(f"batch.microbatch = {batch.microbatch} must be at least 1 sequence")
    if not points:
        raise UserError("batch.tokens is empty; give ((0, tokens), ...)")
    if points[0][0] != 0:
        raise UserError(f"batch.tokens must begin at token 0, not {points[0][0]}")
    starts = [start for start, _ in points]
    if any(a >= b for a, b in pairwise(starts)):
        raise UserError(f"batch.tokens must be sorted by its first numbers, each once; got {starts}")
    smallest = min(tokens for _, tokens in points)
    if smallest < unit:
        context = unit // batch.microbatch
        advice = (
            f"lower batch.microbatch to {smallest // context}"
            if smallest >= context
            else f"one sequence has {context} tokens"
        )
        raise UserError(
            f"batch.tokens = {smallest} is less than one microbatch: batch.microbatch = {batch.microbatch} "
            f"sequences of {context} tokens are {unit}; {advice}"
        )


# ---- Learning rate -----------------------------------------------------------------------------------------


def learning_rates(schedule: ScheduleConfig, plan: BatchPlan) -> np.ndarray:
    """The learning rate of every update, float32[updates].

    Progress s is what has been consumed at the *end* of an update, in updates or tokens, so that the first
    rate is not zero. With W the end of the warm-up (a whole number of updates, at least one) and S the end of
    the run: peak s/W up to W; then `cosine` and `linear` fall to `final` x peak at S, `wsd` stays at the peak
    and falls linearly over the last `decay` S, `inverse_sqrt` is peak sqrt(W/s) and `constant` is the peak.
    Vaswani et al. 2017 (section 5.3), d^-0.5 min(s^-0.5, s W^-1.5), is `inverse_sqrt` with unit `updates` and
    peak (d W)^-0.5. Each of `cuts`, (update, factor, over), multiplies the rates from that update (counted from
    0) on by `factor`, rising linearly to 1. Computed in float64 on the host, not by optax's float32 schedules: the
    table's bits then depend on no backend, and the first of a million rates is not lost to rounding.
    """
    _check_schedule(schedule)
    if schedule.unit == "tokens":
        ends = plan.tokens_before + plan.sequences * plan.context
    else:
        ends = np.arange(1, plan.updates + 1)
    total = ends[-1]
    warmup = ends[np.argmin(np.abs(ends - schedule.warmup * total))]
    start = max(warmup, (1 - schedule.decay) * total) if schedule.shape == "wsd" else warmup
    spent = np.clip((ends - start) / ((total - start) or 1), 0, 1)
    match schedule.shape:
        case "cosine":
            share = schedule.final + (1 - schedule.final) * (1 + np.cos(np.pi * spent)) / 2
        case "linear" | "wsd":
            share = 1 - (1 - schedule.final) * spent
        case "inverse_sqrt":
            share = np.sqrt(np.minimum(warmup / ends, 1))
        case "constant":
            share = 1.0
    rates = schedule.peak * np.minimum(ends / warmup, 1) * share
    for at, factor, over in schedule.cuts:
        since = np.arange(plan.updates) - at
        rates *= np.where(since < 0, 1, factor + (1 - factor) * np.minimum(since / over, 1))
    return rates.astype(np.float32)


def _check_schedule(schedule: ScheduleConfig) -> None:
    if not (math.isfinite(schedule.peak) and schedule.peak > 0):
        raise UserError(f"schedule.peak = {schedule.peak} must be a positive number")
    for key in ("warmup", "decay"):
        if not 0 <= getattr(schedule, key) <= 1:
            raise UserError(f"schedule.{key} = {getattr(schedule, key)} is a share of the run, from 0 to 1")
    if not 0 <= schedule.final <= 1:
        raise UserError(f"schedule.final = {schedule.final} is a share of the peak, from 0 to 1")
    for at, factor, over in schedule.cuts:
        if at < 0 or not 0 < factor <= 1 or over < 1:
            raise UserError(
                f"schedule.cuts: {(at, factor, over)} is not (update, factor in (0, 1], updates to rise over)"
            )
    if schedule.shape == "wsd" and schedule.warmup + schedule.decay > 1 + 1e-9:  # .1 + .9 may round above 1
        raise UserError(
            f"schedule.warmup = {schedule.warmup} and schedule.decay = {schedule.decay} together exceed the "
            "run; lower one of them"
        )


# ---- Optimizer ---------------------------------------------------------------------------------------------


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: those named `kernel`, however many layers are stacked in
    them.

    Biases, the scales of norms, embeddings and positions have other names.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients to a direction of descent; the new parameters are `params - learning_rate * direction`.

    Order: clip by global norm, precondition, add decoupled weight decay (Loshchilov and Hutter 2019) under
    `decay_mask`. `adam` has no decay. `adafactor` scales by the parameters' RMS and clips each leaf's update
    RMS at 1 (Shazeer and Stern 2018, algorithm 4); it has no use for the betas. `muon` is Jordan's (2024) on
    the matrices of the blocks and AdamW on all else. `freeze` leaves parameters as they are, and out of the norm.
    UserError: a number out of its range, and at `init` a pattern of `freeze` that matches no parameter.
    """
    _check_optimizer(config)
    if config.freeze:
        moving = optimizer(dataclasses.replace(config, freeze=()))
        return optax.partition({"moving": moving, "frozen": optax.set_to_zero()}, partial(_frozen, config.freeze))
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    match config.name:
        case "adamw":
            return optax.chain(clip, adam, decay)
        case "adam":
            return optax.chain(clip, adam)
        case "lion":
            return optax.chain(clip, optax.scale_by_lion(config.beta1, config.beta2), decay)
        case "adafactor":
            rms = (
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
            return optax.chain(clip, *rms, decay)
        case "muon":
            muon = optax.chain(
                _scale_by_muon(config.muon_momentum), decay, optax.scale(config.muon_learning_rate_ratio)
            )
            return optax.chain(clip, optax.partition({"muon": muon, "adamw": optax.chain(adam, decay)}, _muon_labels))


def _check_optimizer(config: OptimizerConfig) -> None:
    for key in ("beta1", "beta2", "ema", "muon_momentum"):
        if not 0 <= getattr(config, key) < 1:
            raise UserError(f"optimizer.{key} = {getattr(config, key)} must be at least 0 and below 1")
    for key in ("epsilon", "muon_learning_rate_ratio"):
        value = getattr(config, key)
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"optimizer.{key} = {value} must be a positive number")
    for key in ("weight_decay", "clip"):
        value = getattr(config, key)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"optimizer.{key} = {value} must be a finite number, 0 (off) or more")


def _frozen(patterns: Sequence[str], params: Any) -> Any:
    """For each leaf, whether it is `frozen` or `moving`."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"optimizer.freeze: no parameter matches '{pattern}'; there are {', '.join(names)}")

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        return "frozen" if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) else "moving"

    return jax.tree_util.tree_map_with_path(label, params)


def _is_matrix(path: tuple[Any, ...]) -> bool:
    return path_name(path[-1:]) == "kernel"


# ---- Muon --------------------------------------------------------------------------------------------------

STACKED = "blocks"  # under this name `nn.scan` stacks the layers along a first axis
HEAD = "head"  # the output matrix, which Muon leaves to AdamW
MERGED_INPUTS = ("output",)  # modules whose kernel contracts all axes but the last: (heads, head_dim, width)


def _rows_and_columns(path: tuple[Any, ...], ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a kernel that are its matrix's rows and columns; each stacked layer is its own matrix."""
    names = path_name(path).split("/")
    axes = tuple(range(int(STACKED in names), ndim))
    split = len(axes) - 1 if len(names) > 1 and names[-2] in MERGED_INPUTS else 1
    return axes[:split], axes[split:]


def _muon_dimensions(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers(*_rows_and_columns(path, len(leaf.shape))),
        params,
    )


def _muon_labels(params: Any) -> Any:
    def label(path: tuple[Any, ...], _: Any) -> str:
        return "muon" if _is_matrix(path) and HEAD not in path_name(path).split("/") else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Momentum with Nesterov, orthogonalised by 5 Newton-Schulz steps (Jordan 2024, optax's defaults),
    scaled by 0.2 sqrt(max(rows, columns)) so that its RMS is AdamW's and both can share a learning rate (Liu
    et al. 2025, 2.2).
    """

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        sizes = [math.prod(update.shape[axis] for axis in axes) for axes in _rows_and_columns(path, update.ndim)]
        return update * (0.2 * math.sqrt(max(sizes)))

    return optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_muon_dimensions),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
    )
