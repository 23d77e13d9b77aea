"""Devices and processes: the mesh, how arrays lie on it, and how the processes of a run act as one.

One axis so far: `data`. Parameters and optimizer state are replicated, the rows of each microbatch are divided.

In a run of several processes each runs the same program on the same decisions; the *main* one (process 0) alone writes.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.config import ParallelConfig, UserError

T = TypeVar("T")
_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


# ---- Processes ------------------------------------------------------------------------------------------------------


def connect(config: ParallelConfig) -> None:
    """Joins the processes of a run, if it has several; call before anything else asks JAX for devices.

    They find each other by the environment: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or, with `parallel.distributed`, by what Slurm, Open MPI, Kubernetes or a TPU pod provide.
    UserError: they cannot.
    """
    if not config.distributed and _ADDRESS not in os.environ:
        return
    if jax.distributed.is_initialized():
        return
    try:
        count, number = (int(os.environ[name]) if name in os.environ else None for name in (_COUNT, _ID))
        jax.distributed.initialize(
            num_processes=count, process_id=number, heartbeat_timeout_seconds=config.heartbeat_seconds
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run cannot be joined ({str(error).splitlines()[0]}); set {_ADDRESS}, {_COUNT} and "
            f"{_ID}, or unset them for a run of one process"
        ) from None


def alone() -> bool:
    """Whether the run has one process."""
    return jax.process_count() == 1


def is_main() -> bool:
    """Whether this process writes what the run writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if not alone():
        multihost_utils.sync_global_devices(name)


def main_first(name: str, make: Callable[[], T]) -> T:
    """`make()` by the main process, then by the others, and then all go on."""
    result = make() if is_main() else None
    barrier(f"{name}: main")
    if not is_main():
        result = make()
    barrier(f"{name}: all")
    return result  # type: ignore[return-value]


def local(tree: Any) -> Any:
    """Replicated arrays as arrays of one device of this process, to be used by it alone."""
    return tree if alone() else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def gathered(tree: Any) -> Any:
    """Arrays that are divided among processes, whole in each."""
    return tree if alone() else multihost_utils.process_allgather(tree, tiled=True)


# ---- Devices --------------------------------------------------------------------------------------------------------


def make_mesh(config: ParallelConfig, *, microbatch: int) -> Mesh:
    """A mesh of the devices that share each microbatch.

    UserError: more devices asked for than there are, or a number that does not divide `microbatch` (sequences); of
    several processes all devices must take part.
    """
    available = jax.device_count()
    divisors = [n for n in range(1, available + 1) if microbatch % n == 0]
    count = config.devices or (max(divisors) if alone() else available)
    if count > available:
        raise UserError(f"parallel.devices={count}, but JAX sees {available} device(s)")
    if count < available and not alone():
        raise UserError(f"parallel.devices={count}, but a run of several processes takes all {available} devices")
    if microbatch % count:
        raise UserError(f"batch.microbatch={microbatch} does not divide among parallel.devices={count}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def local_mesh() -> Mesh:
    """All devices of this process, for what each process computes alone."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The axis after `leading` others is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, "data"))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same in every process, onto the devices."""
    if alone():
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index]),
        tree,
    )


def put_batch(arrays: dict[str, np.ndarray], mesh: Mesh, *, leading: int = 1) -> dict[str, jax.Array]:
    """Host arrays (K, m, ...) onto the mesh, the m rows divided."""
    return put(arrays, rows(mesh, leading=leading))


def votes(mesh: Mesh, number: int) -> jax.Array:
    """int32 (devices), each process's `number` at its devices: their maximum, taken by an update, is known to all."""
    shape, sharding = (mesh.size,), rows(mesh)
    return jax.make_array_from_callback(shape, sharding, lambda index: np.full(shape, number, np.int32)[index])
