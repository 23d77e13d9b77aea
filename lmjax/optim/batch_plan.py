"""The batch size of every update."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from lmjax.config import BatchConfig, Config, TrainConfig, UserError
from lmjax.config.ranges import INT64, check_ranges

#: Largest number of updates of a run: the schedule is computed for all of them at the start.
MAX_UPDATES = 20_000_000
#: Largest number of batch sizes of a linear growth.
MAX_STEPS = 1_000_000


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batch size of every update of a run."""

    #: int64[updates]: sequences in the batch of each update.
    sequences: np.ndarray
    #: int64[updates]: tokens consumed before each update.
    tokens_before: np.ndarray
    #: Tokens of a sequence.
    context: int
    #: Sequences of a microbatch.
    microbatch: int

    @property
    def updates(self) -> int:
        """The number of updates of the run."""
        return len(self.sequences)

    @property
    def tokens(self) -> int:
        """The number of tokens that the run consumes."""
        return int(self.tokens_before[-1] + self.sequences[-1] * self.context)

    def part(self, start: int, stop: int) -> "BatchPlan":
        """Return the plan of the updates from `start` to `stop`; tokens count from `start`."""
        before = self.tokens_before[start:stop]
        return replace(self, sequences=self.sequences[start:stop], tokens_before=before - before[:1])

    @property
    def microbatches(self) -> np.ndarray:
        """int64[updates]: microbatches of each update; the maximum is the update step's K."""
        return self.sequences // self.microbatch

    @property
    def changes(self) -> np.ndarray:
        """The updates whose batch size differs from that of the previous update."""
        return np.flatnonzero(np.diff(self.sequences)) + 1

    @cached_property
    def jumps(self) -> np.ndarray:
        """The updates that change the batch size by a quarter or more.

        Each of them starts a new regime of the guard.
        """
        jumps, size = [], int(self.sequences[0])
        for update in self.changes.tolist():
            new_size = int(self.sequences[update])
            if 4 * new_size >= 5 * size or 5 * new_size <= 4 * size:
                jumps.append(update)
                size = new_size
        return np.asarray(jumps, np.int64)


def planned_tokens(train: TrainConfig) -> int:
    """Return the number of tokens that `train.tokens` or `train.epochs` gives (0: unknown)."""
    return math.ceil(min(train.epochs * train.epoch_tokens, 2.0**63)) if train.epochs else train.tokens


def with_any_length(config: Config) -> Config:
    """Return a configuration with some length, in place of one that only the data give.

    Every batch size occurs in it.
    """
    batch, train = config.batch, config.train
    if train.updates or not train.epochs or train.epoch_tokens:
        return config
    largest = max((size for _, size in batch.tokens), default=1)
    last_start = batch.tokens[-1][0] if batch.tokens else 0
    return replace(config, train=replace(train, epochs=0.0, tokens=last_start + 2 * largest))


def batch_plan(batch: BatchConfig, train: TrainConfig, context: int) -> BatchPlan:
    """Compute the batch size of every update of the run.

    The size of an update is the value of `batch.tokens` at the number of tokens consumed before it, rounded to an
    integer number of microbatches. With `train.tokens` or `train.epochs` the run ends with the first update that
    reaches this number.

    Raises:
        UserError: A key is out of range; the message names it.
    """
    unit = batch.microbatch * context
    _check_batch(batch, train, unit)
    levels = _levels(batch, unit)
    _check_length(levels, train, unit)
    ends = [start for start, _ in levels[1:]] + [0]
    tokens = updates = 0
    sizes, counts = [], []
    for (_, microbatches), end in zip(levels, ends, strict=True):
        size = microbatches * unit
        limits = (end,) if train.updates else (end, planned_tokens(train))
        room = [-((tokens - limit) // size) for limit in limits if limit]  # rounded up
        if train.updates:
            room.append(train.updates - updates)
        count = max(0, min(room))
        sizes.append(microbatches * batch.microbatch)
        counts.append(count)
        updates, tokens = updates + count, tokens + count * size
    sequences = np.repeat(np.array(sizes, np.int64), counts)
    return BatchPlan(sequences, (np.cumsum(sequences) - sequences) * context, context, batch.microbatch)


def _check_length(levels: list[tuple[int, int]], train: TrainConfig, unit: int) -> None:
    """Raise UserError if the run has more updates or tokens than can be planned."""
    smallest, largest = (pick(microbatches for _, microbatches in levels) * unit for pick in (min, max))
    tokens = planned_tokens(train)
    updates = train.updates or tokens // smallest
    if updates > MAX_UPDATES and (train.updates or tokens // largest > MAX_UPDATES):
        length = f"train.epochs = {train.epochs:g}, {tokens} tokens" if train.epochs else f"train.tokens = {tokens}"
        key = f"train.updates = {updates}" if train.updates else f"{length} in {updates} updates"
        raise UserError(
            f"{key}: the schedule of a run has at most {MAX_UPDATES} updates (more would need "
            f"{updates * 40 / 2**30:,.0f} GiB for it); lower it, or raise batch.tokens"
        )
    if updates * largest > INT64:
        raise UserError(
            f"train.updates = {updates} of {largest} tokens are more than 2^63 tokens; lower train.updates or "
            "batch.tokens"
        )


def _levels(batch: BatchConfig, unit: int) -> list[tuple[int, int]]:
    """Return the steps of the batch size, [(from_token, microbatches), ...], rounded half up."""
    levels = [(0, microbatches_of(batch.tokens[0][1], unit))]
    steps = sum(abs(b1 - b0) // unit for (_, b0), (_, b1) in pairwise(batch.tokens))
    if batch.growth == "linear" and steps > MAX_STEPS:
        raise UserError(
            f"batch.tokens grows in {steps} steps of a microbatch ({unit} tokens), at most {MAX_STEPS}: raise "
            "batch.microbatch, or set batch.growth=steps"
        )
    for (t0, b0), (t1, b1) in pairwise(batch.tokens):
        k0, k1 = microbatches_of(b0, unit), microbatches_of(b1, unit)
        if batch.growth == "linear":
            # b0 + (b1 - b0) (t - t0) / (t1 - t0) crosses (k - 1/2) unit upwards, (k + 1/2) unit down.
            scale = 2 * abs(b1 - b0)
            for k in range(k0 + 1, k1 + 1):
                levels.append((t0 - ((2 * b0 - (2 * k - 1) * unit) * (t1 - t0) // scale), k))
            for k in range(k0 - 1, k1 - 1, -1):
                levels.append((t0 + (2 * b0 - (2 * k + 1) * unit) * (t1 - t0) // scale + 1, k))
        levels.append((t1, k1))
    return levels


def microbatches_of(tokens: int, unit: int) -> int:
    """Return how many microbatches of `unit` tokens a batch becomes, rounded half up."""
    return (2 * tokens + unit) // (2 * unit)


def _check_batch(batch: BatchConfig, train: TrainConfig, unit: int) -> None:
    points = batch.tokens
    check_ranges(batch, "batch")
    check_ranges(train, "train")
    if train.updates == planned_tokens(train) == 0:
        if train.epochs:
            raise UserError(f"train.epochs = {train.epochs:g}: only the data say how many tokens an epoch has")
        raise UserError("train.updates, train.tokens and train.epochs are all 0; set one of them")
    if not points:
        raise UserError("batch.tokens is empty; give ((0, tokens), ...)")
    if points[0][0] != 0:
        raise UserError(f"batch.tokens must begin at token 0, not {points[0][0]}")
    starts = [start for start, _ in points]
    if any(a >= b for a, b in pairwise(starts)):
        raise UserError(f"batch.tokens must be sorted by strictly increasing first numbers; got {starts}")
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
            f"sequences of {context} tokens (the context) are {unit}; {advice}"
        )
