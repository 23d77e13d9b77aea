"""The expected time of a run, from updates that were measured on this machine."""

import json
import time
from dataclasses import asdict
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.config import DataConfig, UserError
from lmjax.config.json_text import parse_json
from lmjax.display.format import duration
from lmjax.models import registry
from lmjax.parallel import mesh, processes
from lmjax.run import build, feed
from lmjax.run.build import Run
from lmjax.system import files, machine
from lmjax.system.json_files import write_json

#: Share of the machine's peak that a well-tuned run reaches (PaLM, table 3: 0.46).
EXPECTED_UTILISATION = 0.4
#: Share of the places of a batch that rows of various lengths fill, before the data are read (`translate`: 0.3).
EXPECTED_SHARE = 1 / 3
#: Seconds of an update above which it is not measured, and of training below which it is not remembered.
LONGEST, SHORTEST = 2.0, 5.0
_REPETITIONS = 5


class Pace(NamedTuple):
    """Measured seconds of an update."""

    #: Seconds of each update, whatever its size is: the optimizer.
    fixed: float
    #: Seconds of each microbatch of full-length rows.
    each: float
    #: Share of the places of a batch that was computed; 0 if it is not known.
    share: float = 0.0


def seconds(run: Run, update: int = 0) -> float:
    """Return the expected seconds of the updates after the first `update`."""
    return _expected(run, known(run), update)


def describe(run: Run, update: int = 0) -> str:
    """Return the expected time after the first `update` updates, and how it is known."""
    pace = known(run)
    source = "as measured here" if pace else f"at {EXPECTED_UTILISATION:.0%} of that"
    return f"{duration(_expected(run, pace, update))} {source}, without evaluations"


def flops(run: Run, update: int = 0) -> float:
    """Return the FLOPs of the updates after the first `update`, rows of full length."""
    sequences = int(run.plan.sequences[update:].sum())
    return run.flops_per_token * sequences * build.rows_of_sequence(run.config) * registry.tokens(run.config.model)


def _expected(run: Run, pace: Pace | None, update: int) -> float:
    share = pace.share if pace is not None and pace.share and run.store is None else _share(run)
    if pace is None:
        return flops(run, update) * share / (run.peak_flops * EXPECTED_UTILISATION)
    return pace.fixed * (run.plan.updates - update) + pace.each * share * int(run.plan.microbatches[update:].sum())


def _share(run: Run) -> float:
    """Return the share of a batch's places that is computed; of data, in the first batches."""
    if isinstance(run.config.data, DataConfig) or run.objective.episodic:
        return 1.0
    if run.store is None:
        return 1.0 if getattr(run.config.data, "packed", False) else EXPECTED_SHARE
    return float(np.mean([run.samples.share(rows) for _, _, rows in islice(feed.host_batches(run, 0, 0), 8)]))


# ---- Measured updates -----------------------------------------------------------------------------------------------


def known(run: Run) -> Pace | None:
    """Return what was measured of this model and batch on this machine; None if nothing was."""
    try:
        content = parse_json(_file(run).read_bytes(), "the pace")
        pace = Pace(float(content["fixed"]), float(content["each"]), float(content["share"]))
    except (OSError, UserError, ValueError, TypeError, KeyError):
        return None
    return pace if 0 <= pace.fixed < 1e9 and 0 < pace.each < 1e9 and 0 <= pace.share <= 2 else None


def remember(run: Run, *, tokens: float, seconds: float) -> None:
    """Keep the pace of the updates that a session applied: `tokens` places in `seconds`."""
    if seconds >= SHORTEST and tokens and processes.alone():
        _keep(run, Pace(0.0, seconds / tokens * run.config.batch.microbatch * run.plan.context, _share(run)))


def measure(run: Run) -> None:
    """Time updates of a run and keep its pace, unless it is known or they are too long.

    The update is compiled, which the run then finds in the cache of compiled programs.
    """
    largest = flops(run) / run.plan.updates / max(run.peak_flops * EXPECTED_UTILISATION, 1.0)
    if run.objective.episodic or known(run) or not largest < LONGEST or not processes.alone():
        return
    step, state, most = build.step_function(run), build.init(run), int(run.plan.microbatches.max())
    took: dict[int, float] = {}
    for microbatches in sorted({1, most}):
        batch, times = _blank(run, microbatches), []
        for _ in range(1 + _REPETITIONS):  # the first one compiles
            begun = time.perf_counter()
            state, metrics = step(state, [batch])
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - begun)
        took[microbatches] = min(times[1:])  # other work of the machine only makes it slower
    each = max(took[most] - took[1], 0.0) / (most - 1) if most > 1 else 0.0
    each = each or took[most] / most
    _keep(run, Pace(max(took[most] - each * most, 0.0), each))


def _blank(run: Run, microbatches: int) -> dict[str, Any]:
    """Return a batch of zeros on the devices."""
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract_batch)
    batch |= {"microbatches": np.int32(microbatches)}
    if mesh.on_host(run.mesh):
        return batch
    return jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), batch, run.abstract_batch)


def _keep(run: Run, pace: Pace) -> None:
    try:
        _file(run).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(run), pace._asdict())
    except (OSError, UserError):  # a cache that cannot be written
        return


def _file(run: Run) -> Path:
    """Return the file of the pace of a model, its batch and its optimizer on this machine."""
    config = run.config
    parts = (config.model, config.objective, config.optimizer, config.parallel)
    facts: list[Any] = [asdict(part) for part in parts]
    facts += [type(config.model).__name__, config.batch.microbatch, mesh.describe_mesh(run.mesh), machine.describe()]
    name = sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return files.cache_folder() / "pace" / f"{name}.json"
