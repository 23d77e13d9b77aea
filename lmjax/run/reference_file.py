"""The file of a run with what its objective takes from its reference.

The reference is the model that the run starts as. The file is written before the first update, and its hash is a field
of the journal. A file that is missing is computed again from the same parameters and must have the same hash.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from lmjax.config import UserError
from lmjax.config.regular_files import read_regular
from lmjax.display.console import Console
from lmjax.journal.history import Record
from lmjax.objectives import reference, reward_calibration
from lmjax.objectives.direct import DirectPreference
from lmjax.objectives.reward import RewardModel
from lmjax.objectives.samples import Batch
from lmjax.parallel import mesh, processes
from lmjax.run import transfer
from lmjax.run.build import Run, on_mesh
from lmjax.system.files import write_bytes
from lmjax.training.state import State

FIELD = "reference_sha256"  # of the first record of the journal


def begin(run: Run, run_dir: Path, state: State, console: Console) -> tuple[Run, dict[str, str]]:
    """Write the file of a run that starts.

    Returns the run with what it takes from the reference, and the field of the journal. Every process must call this.

    Args:
        run: The run.
        run_dir: Its directory.
        state: The state before the first update.
        console: Prints the progress.
    """
    if not isinstance(run.objective, DirectPreference | RewardModel):
        return run, {}
    path = run_dir / run.objective.reference_name
    content = _computed(run, state, console)
    if processes.is_main():
        write_bytes(path, content)
    processes.barrier("reference")
    if not processes.is_main():  # all use the numbers of one process
        content = read_regular(path)
    return _with_content(run, path, content), {FIELD: hashlib.sha256(content).hexdigest()}


def recorded(run: Run, run_dir: Path, start: Record, console: Console, *, write: bool = True) -> Run:
    """Return a run with what it takes from the reference, as the journal records it.

    Every process must call this.

    Args:
        run: The run.
        run_dir: Its directory.
        start: The first record of its journal.
        console: Prints the progress.
        write: Write a missing file again.

    Raises:
        UserError: The file was damaged or edited; or it is missing, and cannot be computed again.
    """
    if not isinstance(run.objective, DirectPreference | RewardModel):
        return run
    path = run_dir / run.objective.reference_name
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return _again(run, path, start, console, write=write)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; bring it back as it was") from None
    if hashlib.sha256(content).hexdigest() != start.get(FIELD):
        raise UserError(
            f"'{path}' was damaged or edited: the journal records another hash; delete it to compute it again from "
            "init_from, or bring it back as it was"
        )
    return _with_content(run, path, content)


def _again(run: Run, path: Path, start: Record, console: Console, *, write: bool) -> Run:
    """Compute a missing file again."""
    console.event(f"{path} is missing: computing it again")
    content = _computed(run, transfer.begin_again(run, start, report=console.event), console)
    if hashlib.sha256(content).hexdigest() != start.get(FIELD):
        raise UserError(
            f"{path} is missing, and is not the same when computed again (on other devices or with another version of "
            "JAX its last digits differ); bring it back from a copy of the run"
        )
    if write and processes.is_main():
        write_bytes(path, content)
    return _with_content(run, path, content)


def _with_content(run: Run, path: Path, content: bytes) -> Run:
    assert isinstance(run.objective, DirectPreference | RewardModel)
    try:
        return replace(run, objective=run.objective.with_reference(content))
    except ValueError as error:  # and UserError
        raise UserError(f"'{path}' is not of this run: {error}; bring it back as it was") from None


# ---- The content ----------------------------------------------------------------------------------------------------


def _computed(run: Run, state: State, console: Console) -> bytes:
    """Return the content of the file, a pure function of configuration and state."""
    objective = run.objective
    if isinstance(objective, DirectPreference):
        with console.phase("computing log-probabilities of the reference"):
            return reference.from_table(objective.reference_logprobs(_logprobs(run, state.params)))
    assert isinstance(objective, RewardModel)
    policy = mesh.local_copy(transfer.policy(run, state.params))
    with console.phase("sampling answers of the reference"):
        return reference.from_samples(reward_calibration.reference_samples(objective, policy))


def _logprobs(run: Run, params: Any) -> Callable[[Batch], np.ndarray]:
    """Return the program for the log-probabilities (B, 2) of a microbatch."""
    objective = run.objective
    assert isinstance(objective, DirectPreference)

    @partial(jax.jit, out_shardings=mesh.replicated(run.mesh))
    def program(params: Any, batch: Mapping[str, Array]) -> Array:
        with on_mesh(run):
            return objective.logprobs(params, batch)[0]

    return lambda batch: np.asarray(program(params, mesh.put_batch(batch, run.mesh, leading=0)))
