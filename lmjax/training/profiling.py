"""The `jax.profiler` trace of a range of updates."""

import jax

from lmjax.training.inputs import LoopInputs


def start_profile(parts: LoopInputs, update: int) -> bool:
    """Start the trace of `train.profile` when its first update is next; return whether it started.

    The main process traces the updates first..last (counted from 1) into `<run>/profile`.
    """
    begins = bool(parts.train.profile) and update == parts.train.profile[0] - 1 and jax.process_index() == 0
    if begins:
        jax.profiler.start_trace(str(parts.run_dir / "profile"))
    return begins


def stop_profile(parts: LoopInputs, updates: int) -> bool:
    """Stop the trace after its last update; return whether it stopped."""
    ends = updates >= parts.train.profile[1]
    if ends:
        jax.profiler.stop_trace()
        parts.console.event(f"profile of updates {parts.train.profile}: {parts.run_dir / 'profile'}")
    return ends
