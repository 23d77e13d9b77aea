"""The `jax.profiler` trace of a range of updates."""

import jax

from lmjax.training.inputs import LoopInputs


def start_profile(parts: LoopInputs, update: int) -> bool:
    """Traces the updates first..last of `train.profile` (counted from 1), as the main process has them, into
    `<run>/profile`; whether it begins."""
    begins = bool(parts.train.profile) and update == parts.train.profile[0] - 1 and jax.process_index() == 0
    if begins:
        jax.profiler.start_trace(str(parts.run_dir / "profile"))
    return begins


def stop_profile(parts: LoopInputs, updates: int) -> bool:
    """Whether the trace has ended."""
    ends = updates >= parts.train.profile[1]
    if ends:
        jax.profiler.stop_trace()
        parts.console.event(f"profile of updates {parts.train.profile}: {parts.run_dir / 'profile'}")
    return ends
