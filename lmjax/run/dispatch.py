"""Choice of how the updates of a run are dispatched: one or several in a call."""

import jax
from jax.sharding import Mesh

from lmjax.config import Config
from lmjax.optim.batch_plan import BatchPlan
from lmjax.parallel.mesh import on_host
from lmjax.training.dispatch import Dispatch

# FLOP of a microbatch above which its activations take tens of MB, so that memory decides, not the cost of a dispatch.
_LARGE = 1e10
# Seconds. A CPU returns the memory of an update about 0.2 ms after its results are ready. An update dispatched earlier
# takes as much memory again, and the process keeps it: gigabytes, whose pages cost as much time as the update.
_PAUSE = 3e-4
# Updates and FLOP of one dispatch. A signal may have to wait for it: half a second on a laptop.
_MAX_UPDATES, _MAX_FLOP = 8, 1e11


def choose_dispatch(
    config: Config, plan: BatchPlan, mesh: Mesh, *, flops_per_token: float, rows_independent: bool
) -> Dispatch:
    """Choose how to dispatch the updates of a run.

    Args:
        config: the configuration; `runtime.updates_at_once` > 0 sets the number of updates in one call.
        plan: sizes of all batches.
        mesh: devices of the run.
        flops_per_token: training FLOPs of a token.
        rows_independent: batches have one shape; otherwise each update is dispatched alone.
    """
    flops_per_token = max(flops_per_token, 1.0)  # a model without matrix products
    large = flops_per_token * config.batch.microbatch * plan.context > _LARGE
    updates = 1
    if on_host(mesh) and rows_independent:
        fitting = 1 if large else int(_MAX_FLOP / (flops_per_token * int(plan.sequences.max()) * plan.context))
        updates = config.runtime.updates_at_once or min(max(fitting, 1), _MAX_UPDATES)
    return Dispatch(
        updates_per_dispatch=updates,
        pause=_PAUSE if large and on_host(mesh) else 0.0,
        serialize=large and jax.default_backend() == "cpu",
    )
