"""Profiling: the `jax.profiler` trace of a range of updates."""

import jax

from lmjax.config.errors import one_line
from lmjax.training.inputs import LoopInputs


def start_profile(inputs: LoopInputs, update: int) -> bool:
    """Start the trace of `train.profile` before its first update; return whether it started.

    The main process traces the updates first to last (counted from 1) and writes the trace to `profile/` of the run.
    """
    starts = bool(inputs.train.profile) and update == inputs.train.profile[0] - 1 and jax.process_index() == 0
    try:
        if starts:
            jax.profiler.start_trace(str(inputs.run_dir.absolute() / "profile"))
    except Exception as error:  # a profile is no reason to stop a run
        inputs.console.event(f"no profile: {one_line(error)}; training continues")
        return False
    return starts


def stop_profile(inputs: LoopInputs, updates: int) -> bool:
    """Stop the trace after its last update; return whether it stopped."""
    ends = updates >= inputs.train.profile[1]
    try:
        if ends:
            jax.profiler.stop_trace()
            inputs.console.event(f"profile of updates {inputs.train.profile}: {inputs.run_dir / 'profile'}")
    except Exception as error:  # no space, or a path that the profiler cannot be given
        inputs.console.event(f"no profile: {one_line(error)}; training continues")
    return ends
