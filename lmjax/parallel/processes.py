"""Multi-process runs: initialization, consistency checks, barriers and broadcasts."""

import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.config import ParallelConfig, UserError

_ORDERED = "xla_cpu_enable_concurrency_optimized_scheduler"
_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


T = TypeVar("T")


def connect(config: ParallelConfig) -> None:
    """Connect the processes of a multi-process run.

    Call it before anything else queries JAX's devices. The processes find each other by the environment variables
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or, with
    `parallel.distributed`, by the settings of Slurm, Open MPI, Kubernetes or a TPU pod.

    Raises:
        UserError: The processes cannot connect.
    """
    if jax.distributed.is_initialized():
        return
    if config.distributed or _ADDRESS in os.environ:
        _join(config)
    elif jax.process_count() > 1:  # libtpu knows the other hosts of a pod by itself
        raise UserError("this is one of several hosts of a TPU pod: set parallel.distributed=true on all of them")


def _join(config: ParallelConfig) -> None:
    seconds = config.heartbeat_seconds
    # On CPUs, independent collectives of one program must run in the same order in every process.
    if _ORDERED not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_ORDERED}=false"
    try:
        count, number = (int(os.environ[name]) if name in os.environ else None for name in (_COUNT, _ID))
        # At shutdown a failed process and the others wait for each other; the second timeout ends this.
        bounds: Any = {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds}
        jax.distributed.initialize(num_processes=count, process_id=number, **bounds)
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        set_all = f"set {_ADDRESS} (host:port of process 0), {_COUNT} and {_ID} for each process"
        if _ADDRESS in os.environ:
            raise UserError(
                f"the processes of the run cannot connect ({first}): {set_all}, or unset them for a single process"
            ) from None
        raise UserError(
            f"parallel.distributed=true, but no Slurm, Open MPI, Kubernetes or TPU pod settings describe the processes "
            f"({first}): start the run with a launcher (srun, mpirun), or {set_all}; one process needs neither"
        ) from None


def overlooked() -> str:
    """A warning if a launcher started several processes and this run uses one; else empty."""
    for name, launcher in (("SLURM_STEP_NUM_TASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "Open MPI")):
        count = os.environ.get(name, "")
        if alone() and count.isdecimal() and int(count) > 1:
            return f"{launcher} started {count} processes, but this run uses one: set parallel.distributed=true"
    return ""


def alone() -> bool:
    """Whether the run has one process."""
    return jax.process_count() == 1


def is_main() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process reaches this barrier."""
    if not alone():
        multihost_utils.sync_global_devices(name)


def agree(**facts: str) -> None:
    """Check that all processes have the same facts; every process must call it.

    Raises:
        UserError: A fact of a process differs from that of process 0.
    """
    if alone():
        return
    own_digests = [list(hashlib.sha256(fact.encode()).digest()) for fact in facts.values()]
    digests = np.asarray(multihost_utils.process_allgather(np.asarray(own_digests, np.uint8)))  # processes, facts, 32
    for i, name in enumerate(facts):
        for process in range(len(digests)):
            if (digests[process, i] != digests[0, i]).any():
                raise UserError(f"process {process} has another {name} than process 0: start all of them with the same")


def main_first(name: str, make: Callable[[], T]) -> T:
    """Run `make()` in the main process, then in the others; wait until all processes are done."""
    result = make() if is_main() else None
    barrier(f"{name}: main")
    if not is_main():
        result = make()
    barrier(f"{name}: all")
    return result  # type: ignore[return-value]


def broadcast_from_main(make: Callable[[], str | None]) -> str | None:
    """Run `make()` in the main process and broadcast its result; every process must call it."""
    if alone():
        return make()
    line = np.zeros(1000, np.uint8)  # a fixed size; zeros after the text
    if is_main():
        text = (make() or "").encode()[: len(line)]
        line[: len(text)] = list(text)
    line = np.asarray(multihost_utils.broadcast_one_to_all(line))
    return bytes(line.tolist()).rstrip(b"\0").decode(errors="replace") or None
