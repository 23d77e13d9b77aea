"""The learning rate of every update."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from lmjax.config import ScheduleConfig, UserError, extensions
from lmjax.config.errors import one_line
from lmjax.config.ranges import check_ranges
from lmjax.optim.batch_plan import BatchPlan


def learning_rates(schedule: ScheduleConfig, plan: BatchPlan) -> np.ndarray:
    """Compute the learning rate of every update, float32[updates].

    Progress s is measured at the *end* of an update, in updates or tokens, so that the first rate is not zero. W is
    the end of the warm-up (an integer number of updates, at least one), S the end of the run. The rate is peak s/W up
    to W. Then `cosine` and `linear` fall to `final` x peak at S, `wsd` stays at the peak and falls linearly over the
    last `decay` S, `inverse_sqrt` is peak sqrt(W/s) and `constant` is the peak. `range` rises from `final` x peak at W
    to the peak at S, by the same factor in each step (Smith 2017, section 3.3). Vaswani et al. 2017 (section 5.3),
    d^-0.5 min(s^-0.5, s W^-1.5), is `inverse_sqrt` with unit `updates` and peak (d W)^-0.5.

    Each entry (update, updates, how) of `extended` starts the schedule again: the rates before `update` are those of a
    run of `updates`; from there on, s counts from `update`, and S is the end of the run. `restart` rises from 0, as at
    the beginning, and `rewarm` from the rate before `update`.

    Each entry (update, factor, over) of `cuts` multiplies the rates from that update (counted from 0) by `factor`,
    which rises linearly to 1 over `over` updates.

    The table is computed in float64 on the host instead of with optax's float32 schedules: its bits depend on no
    backend, and the first of a million rates is not lost to rounding.

    Raises:
        UserError: A key of `schedule` is out of range; the message names it.
    """
    _check_schedule(schedule)
    rates = _with_extensions(schedule, plan)
    for at, factor, over in schedule.cuts:
        since = np.arange(plan.updates) - at
        rates *= np.where(since < 0, 1, factor + (1 - factor) * np.minimum(since / over, 1))
    return rates.astype(np.float32)


def _with_extensions(schedule: ScheduleConfig, plan: BatchPlan) -> np.ndarray:
    """The rates without cuts: those before the last extension, then its cycle."""
    if not schedule.extended:
        return _cycle(schedule, plan)
    *earlier, (update, updates, how) = schedule.extended
    if updates > plan.updates:
        raise UserError(
            f"schedule.extended: the run had {updates} updates before it was made longer, and has {plan.updates} now; "
            f"it needs at least {updates}"
        )
    before = _with_extensions(replace(schedule, extended=tuple(earlier)), plan.part(0, updates))[:update]
    lowest = before[-1] if how == "rewarm" and update else 0.0
    return np.concatenate([before, _cycle(schedule, plan.part(update, plan.updates), lowest=lowest)])


def _cycle(schedule: ScheduleConfig, plan: BatchPlan, *, lowest: float = 0.0) -> np.ndarray:
    """The rates of one schedule over a plan; the warm-up rises from `lowest`."""
    if not plan.updates:
        return np.zeros(0)
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
        case "range":
            share = schedule.final ** (1 - spent)
        case _:
            share = _registered_shape(schedule, ends / total, warmup / total)
    return (lowest + (schedule.peak - lowest) * np.minimum(ends / warmup, 1)) * share


def _registered_shape(schedule: ScheduleConfig, progress: np.ndarray, warmup: float) -> np.ndarray:
    """The share of the peak of each update, by a user's function."""
    extensions.check_name("schedule.shape", schedule.shape, extensions.OWN_SHAPES)
    key = f"schedule.shape={schedule.shape}"
    try:
        share = np.asarray(extensions.get("schedule.shape", schedule.shape)(progress.copy(), float(warmup), schedule))
        share = share.astype(np.float64, casting="same_kind" if share.dtype.kind == "f" else "safe")
    except Exception as error:
        raise UserError(f"{key}: {type(error).__name__}: {one_line(error)}") from error
    if share.shape != progress.shape:
        raise UserError(f"{key}: the function returned shape {share.shape}; it must return {progress.shape}")
    bad = np.flatnonzero(~(np.isfinite(share) & (share >= 0)))
    if len(bad):
        raise UserError(f"{key}: the share of the peak at update {bad[0] + 1} is {share[bad[0]]}; it must be >= 0")
    return share


def _check_schedule(schedule: ScheduleConfig) -> None:
    check_ranges(schedule, "schedule")
    if any(after[0] < before[0] for before, after in pairwise(schedule.extended)):
        raise UserError(f"schedule.extended must be sorted by update; got {schedule.extended}")
    if schedule.shape == "wsd" and schedule.warmup + schedule.decay > 1 + 1e-9:  # .1 + .9 may round above 1
        raise UserError(
            f"schedule.warmup = {schedule.warmup} and schedule.decay = {schedule.decay} together exceed the "
            "run; lower one of them"
        )
    if schedule.shape == "range" and not schedule.final:
        raise UserError("schedule.shape=range begins at schedule.final x schedule.peak: set schedule.final above 0")
