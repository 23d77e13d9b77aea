"""The step of a run: the updates of one dispatch, or an episode."""

from pathlib import Path

from lmjax.run import build, episodes
from lmjax.run.build import Run
from lmjax.run.calibration import with_calibration
from lmjax.training.state import State
from lmjax.training.step import Step


def step_function(run: Run, folder: Path, state: State | None = None) -> Step:
    """Return the step that the training loop calls.

    Args:
        run: The run.
        folder: Its checkpoints; that of update 0 is the reference of a policy.
        state: The current state; that of update 0 need not be saved.
    """
    if not run.objective.episodic:
        return with_calibration(run, build.step_function(run))
    return episodes.make_step(run, episodes.reference_of(run, folder, state))
