"""A resume with another length or schedule: what it changes, and from which update on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmjax.config import Config, UserError, codec
from lmjax.journal.history import History
from lmjax.optim.batch_plan import BatchPlan
from lmjax.optim.learning_rate import learning_rates
from lmjax.run import build
from lmjax.run.build import Run

_LENGTHS = ("updates", "epochs", "tokens")  # the first one that is set counts


def check_length(run: Run, saved: Config, past: History) -> None:
    """Check that a resume with another length has not applied more updates than it is to have.

    Args:
        run: The run with its new length.
        saved: The configuration so far.
        past: The history of the run.

    Raises:
        UserError: It has; the message names the key.
    """
    done, updates = max(past.saved, default=0), run.plan.updates
    if done <= updates:
        return
    before, now = saved.train, run.config.train
    name = next(name for name in _LENGTHS if getattr(now, name))
    key = f"train.{name}={getattr(now, name)}" if getattr(now, name) != getattr(before, name) else "batch.tokens"
    gives = "" if name == "updates" else f", and this gives it {updates}"
    raise UserError(f"{key}: the run has {done} updates already{gives}; raise it (with {done} the run ends there)")


def extend(run: Run, saved: Config, update: int) -> Run:
    """Start the schedule of a longer run again at `update`, by `schedule.on_extend`."""
    schedule, before = run.config.schedule, build.plan_batches(saved)
    if schedule.on_extend == "keep" or run.plan.updates <= before.updates:
        return run
    entry = (update, before.updates, schedule.on_extend)
    schedule = replace(schedule, extended=(*schedule.extended, entry))
    config = replace(run.config, schedule=schedule)
    return replace(run, config=config, rates=learning_rates(schedule, run.plan))


def describe(run: Run, saved: Config, update: int, cuts: Sequence[tuple[int, float, int]]) -> str:
    """Say how the learning rate of the next update changes, and why; empty if it does not.

    Args:
        run: The run as it continues.
        saved: The configuration so far.
        update: Number of updates applied.
        cuts: The cuts of the learning rate that the guard decided.
    """
    plan = build.plan_batches(saved)
    before = _rates(saved, plan, cuts)[min(update, plan.updates - 1)]
    if update == run.plan.updates or before == (now := _rates(run.config, run.plan, cuts)[update]):
        return ""
    reasons = _reasons(run, saved, plan)
    return f"learning rate at update {update + 1}: {before:.1e} -> {now:.1e}, because {' and '.join(reasons)}"


def _rates(config: Config, plan: BatchPlan, cuts: Sequence[tuple[int, float, int]]) -> np.ndarray:
    return learning_rates(replace(config.schedule, cuts=(*config.schedule.cuts, *cuts)), plan)


def _reasons(run: Run, saved: Config, plan: BatchPlan) -> list[str]:
    """Return what changed the learning rate, by the keys of `schedule` and the length."""
    now, before = run.config.schedule, saved.schedule
    given = [replace(schedule, extended=(), on_extend="keep") for schedule in (before, now)]
    reasons = [f"schedule.{line.replace(': ', ' is ')}" for line in codec.differences(*given)]
    if len(now.extended) > len(before.extended):
        how = "rises again from there" if now.extended[-1][2] == "rewarm" else "starts again"
        reasons.append(f"the {now.shape} {how} and ends at {run.plan.updates}")
    elif run.plan.updates != plan.updates:
        reasons.append(f"the {now.shape} now ends at {run.plan.updates}")
    return reasons or ["the batch size changed"]
