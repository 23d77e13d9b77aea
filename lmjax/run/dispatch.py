"""How the updates of a run are sent off to its devices: one by one, or several small ones at once."""

import time
from collections.abc import Sequence
from typing import Any

import jax

from lmjax.models import registry
from lmjax.parallel import mesh
from lmjax.run import build
from lmjax.run.build import Run
from lmjax.training.state import State
from lmjax.training.step import Step, make_step

_LARGE = 1e10  # FLOP of a microbatch whose activations take some tens of MB
# Seconds. A CPU gives back what an update worked in some 0.2 ms after its results are there. The next, sent off before
# that, takes as much again, which the process keeps: gigabytes, and pages that take as long as the update.
_REST = 3e-4
_MOST, _AT_ONCE = 8, 1e11  # updates, and FLOP: half a second of a laptop, for which a signal may have to wait


def large(run: Run) -> bool:
    """Whether the activations of a microbatch take memory to speak of."""
    return _flops(run, run.config.batch.microbatch) > _LARGE


def together(run: Run) -> int:
    """How many updates are sent off at once."""
    if not (mesh.on_host(run.mesh) and run.task.apart):  # else batches differ in shape
        return 1
    fitting = 1 if large(run) else int(_AT_ONCE / _flops(run, int(run.plan.sequences.max())))
    return run.config.runtime.updates_at_once or min(max(fitting, 1), _MOST)


def step(run: Run) -> Step:
    """The update as a run is trained by it, for 1 to `together` batches in turn."""
    most = together(run)
    update = make_step(build.update_function(run, at_once=most > 1), most)

    def after_a_rest(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, jax.Array]]:
        time.sleep(_REST)
        return update(state, batches)

    return after_a_rest if large(run) and mesh.on_host(run.mesh) else update


def _flops(run: Run, sequences: int) -> float:
    return registry.flops_per_token(run.config.model) * sequences * run.plan.context
