"""A small copy of a configuration that trains in seconds."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from lmjax.config import (
    BatchConfig,
    ChatConfig,
    Config,
    DataConfig,
    MeshConfig,
    PreferenceConfig,
    TrackConfig,
    TrainConfig,
)
from lmjax.config.policies import PolicyConfig
from lmjax.models import registry
from lmjax.optim.batch_plan import with_any_length
from lmjax.run import build

#: Updates of the small copy, and updates between its checkpoints; the guard is armed after 64.
UPDATES, EVERY = 240, 20
#: An update with a checkpoint, and the number of that checkpoint (update 0 has the first).
MIDDLE, SAVES = UPDATES // 2, UPDATES // 2 // EVERY + 1
#: Upper limit of the microbatch, unless there are more devices.
MICROBATCH = 8
#: Lower limit of the peak learning rate: with less, the model learns too little for bad data to be visible.
PEAK = 1e-3
#: Updates between a spike and the next regime of the guard, or the end of the run.
ROOM = 24


def shrink(config: Config) -> Config:
    """Return a copy of `config` that trains in seconds: only its sizes are smaller.

    Events at a token or an update (batch growth, mixture changes, cuts of the learning rate) keep their share of the
    run.

    Raises:
        UserError: `config` has no length of the run, or its batches do not fit.
    """
    config = with_any_length(config)
    plan, is_policy = build.plan_batches(config), isinstance(config.objective, PolicyConfig)
    model = registry.shrink(config.model)
    if is_policy or isinstance(config.data, PreferenceConfig):  # they are never cut: a smaller context leaves few
        model = replace(model, context=config.model.context)
    batch, grown = _batch(config, build.tokens_of_sequence(replace(config, model=model)), plan.tokens)
    data = config.data
    if isinstance(data, DataConfig):
        changes = data.mixture_changes
        starts = _scaled([0, *(token for token, _ in changes)], grown / plan.tokens, model.context)[1:]
        changes = tuple((start, weights) for start, (_, weights) in zip(starts, changes, strict=True))
        data = replace(data, mixture_changes=changes)
    elif isinstance(data, ChatConfig) and model.context < config.model.context:
        data = replace(data, too_long="cut")  # else few conversations would be left
    share = UPDATES / plan.updates
    cuts = tuple((round(at * share), factor, max(1, round(over * share))) for at, factor, over in config.schedule.cuts)
    return replace(
        config,
        data=data,
        model=model,
        schedule=replace(config.schedule, peak=max(config.schedule.peak, 0 if is_policy else PEAK), cuts=cuts),
        batch=batch,
        train=TrainConfig(
            UPDATES, evaluate_every=MIDDLE, evaluate_batches=2, final_batches=50, sample_tokens=8, baselines=False
        ),
        checkpoint=replace(config.checkpoint, every=EVERY),
        parallel=replace(
            config.parallel, mesh=MeshConfig(), distributed=False
        ),  # small sizes divide among few devices only
        track=TrackConfig(),
    )


def _batch(config: Config, context: int, tokens: int) -> tuple[BatchConfig, int]:
    """Return the batch of the small copy and the copy's total tokens.

    The batch has one microbatch, or two where the real batch grows or has several.
    """
    batch, devices = config.batch, config.parallel.devices or 1
    shares = batch.microbatch // devices
    fitting = [n for n in range(1, shares + 1) if shares % n == 0 and n * devices <= MICROBATCH]
    microbatch = max(fitting, default=1) * devices
    unit = microbatch * context
    sizes = [size for _, size in batch.tokens]
    several = len(set(sizes)) > 1 or sizes[0] > batch.microbatch * build.tokens_of_sequence(config)
    counts = [1 + (several and 2 * size >= min(sizes) + max(sizes)) for size in sizes]
    if isinstance(config.objective, PolicyConfig):  # which divides its microbatches into minibatches
        counts = [max(config.objective.minibatches, *counts)] * len(counts)
    grown = UPDATES * unit * max(counts)
    starts = _scaled([start for start, _ in batch.tokens], grown / tokens, 1)
    points = tuple((start, count * unit) for start, count in zip(starts, counts, strict=True))
    return replace(batch, tokens=points, microbatch=microbatch), grown


def _scaled(numbers: Sequence[int], factor: float, step: int) -> list[int]:
    """Scale increasing numbers by `factor`, with differences of at least `step`."""
    return list(accumulate((round(n * factor) for n in numbers), lambda before, now: max(now, before + step)))


def spike_update(config: Config) -> int:
    """Return an update (from 1) with an armed guard and `ROOM` updates after it; 0 if none."""
    plan = build.plan_batches(config)
    announced = config.data.mixture_changes if isinstance(config.data, DataConfig) else ()
    changes = np.searchsorted(plan.tokens_before, [token for token, _ in announced])
    turns = sorted({0, plan.updates, *plan.jumps.tolist(), *changes.tolist()})
    begin, end = max(pairwise(turns), key=lambda pair: pair[1] - pair[0])
    return end - ROOM if end - ROOM - begin > config.guard.armed else 0
