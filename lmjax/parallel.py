"""Devices and processes: the mesh, how batches lie on it, and how the processes of a run act as one.

In a run of several processes each runs the same program on the same decisions; the *main* one (process 0) alone writes.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lmjax import axes, machine
from lmjax.config import ParallelConfig, UserError
from lmjax.pytrees import nbytes

T = TypeVar("T")
_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

_ORDERED = "xla_cpu_enable_concurrency_optimized_scheduler"


# ---- Processes ------------------------------------------------------------------------------------------------------


def connect(config: ParallelConfig) -> None:
    """Joins the processes of a run, if it has several; call before anything else asks JAX for devices.

    They find each other by the environment: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or, with `parallel.distributed`, by what Slurm, Open MPI, Kubernetes or a TPU pod provide.
    UserError: they cannot.
    """
    if jax.distributed.is_initialized():
        return
    if config.distributed or _ADDRESS in os.environ:
        _join(config)
    elif jax.process_count() > 1:  # libtpu knows the other hosts of a pod by itself
        raise UserError("this is one of several hosts of a TPU pod: set parallel.distributed=true on all of them")


def _join(config: ParallelConfig) -> None:
    seconds = config.heartbeat_seconds
    # On CPUs, collectives of one program that do not wait for each other must come in the same order everywhere.
    if _ORDERED not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_ORDERED}=false"
    try:
        count, number = (int(os.environ[name]) if name in os.environ else None for name in (_COUNT, _ID))
        # One that fails waits at its end for the others, which wait for it: that is what the second bound ends.
        bounds: Any = {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds}
        jax.distributed.initialize(num_processes=count, process_id=number, **bounds)
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        set_all = f"set {_ADDRESS} (host:port of process 0), {_COUNT} and {_ID} for each process"
        if _ADDRESS in os.environ:
            raise UserError(
                f"the processes of the run cannot be joined ({first}): {set_all}, or unset them for a run of one"
            ) from None
        raise UserError(
            f"parallel.distributed=true, but Slurm, Open MPI, Kubernetes or a TPU pod do not say what the processes of "
            f"the run are ({first}): start it by their launcher (srun, mpirun), or {set_all}; one process needs neither"
        ) from None


def overlooked() -> str:
    """A line on a launcher that has started several processes, where this run is of one; empty if there is none."""
    for name, launcher in (("SLURM_STEP_NUM_TASKS", "Slurm"), ("OMPI_COMM_WORLD_SIZE", "Open MPI")):
        count = os.environ.get(name, "")
        if alone() and count.isdecimal() and int(count) > 1:
            return f"{launcher} started {count} processes, this one runs alone: parallel.distributed=true joins them"
    return ""


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


def agree(**facts: str) -> None:
    """Compares what all processes must have alike; every process must call it. UserError: one has it otherwise."""
    if alone():
        return
    mine = [list(hashlib.sha256(fact.encode()).digest()) for fact in facts.values()]
    found = np.asarray(multihost_utils.process_allgather(np.asarray(mine, np.uint8)))  # (processes, facts, bytes)
    for i, name in enumerate(facts):
        for process in range(len(found)):
            if (found[process, i] != found[0, i]).any():
                raise UserError(f"process {process} has another {name} than process 0: start all of them with the same")


def main_first(name: str, make: Callable[[], T]) -> T:
    """`make()` by the main process, then by the others, and then all go on."""
    result = make() if is_main() else None
    barrier(f"{name}: main")
    if not is_main():
        result = make()
    barrier(f"{name}: all")
    return result  # type: ignore[return-value]


def told(make: Callable[[], str | None]) -> str | None:
    """What `make()` gives the main process, to all of them; every process must call it."""
    if alone():
        return make()
    line = np.zeros(1000, np.uint8)  # of a fixed size, zeros behind the text
    if is_main():
        text = (make() or "").encode()[: len(line)]
        line[: len(text)] = list(text)
    line = np.asarray(multihost_utils.broadcast_one_to_all(line))
    return bytes(line.tolist()).rstrip(b"\0").decode(errors="replace") or None


def local(tree: Any) -> Any:
    """Arrays that may be divided among devices, whole on one device of this process, to be used by it alone.

    Every process must call it. What is too large for that, a third of the device's memory, stays as it is in a run of
    one process.
    """
    device = jax.local_devices()[0]
    if alone() and nbytes(tree) > machine.device_memory(device).get("limit", math.inf) / 3:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(leaf, device), gathered(tree))


def gathered(tree: Any) -> Any:
    """Arrays that may be divided among processes, whole in the memory of each host; every process must call it.

    A device holds no more than one of them whole at a time. Of a single process they are left as they are.
    """
    return tree if alone() else jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        sharding: Any = leaf.sharding
        leaf = jax.jit(_same, out_shardings=replicated(sharding.mesh))(leaf).addressable_data(0)
    return np.asarray(leaf)


def _same(x: jax.Array) -> jax.Array:
    return x


# ---- Devices --------------------------------------------------------------------------------------------------------


def make_mesh(config: ParallelConfig, *, microbatch: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run: axes `data`, `fsdp`, `sequence`, `tensor`, near devices along the last.

    devices: default all of JAX's. Of several slices (TPU) the rows are divided first, so that only gradients cross from
    one to the other. UserError: the sizes do not go into the devices, or `microbatch` (sequences) not among those that
    divide the rows; of several processes all devices must take part.
    """
    every = list(jax.devices() if devices is None else devices)
    several = len({device.process_index for device in every}) > 1
    if config.devices > len(every):
        raise UserError(f"parallel.devices={config.devices}, but JAX sees {len(every)} device(s)")
    sizes = _sizes(config, config.devices or len(every), microbatch=microbatch, whole=several or devices is not None)
    count = math.prod(sizes.values())
    if count < len(every) and several:
        raise UserError(
            f"parallel.mesh takes {count} device(s), but a run of several processes takes all {len(every)} devices"
        )
    rows = math.prod(sizes[axis] for axis in axes.ROWS)
    if microbatch % rows:
        raise UserError(
            f"batch.microbatch={microbatch} does not divide among {rows} devices (parallel.mesh, data x fsdp); "
            f"set batch.microbatch={-(-microbatch // rows) * rows}"
        )
    if config.form == "pmap" and (count != sizes["data"] or several):
        raise UserError("parallel.form=pmap is data parallel, within one process; parallel.form=mesh does the rest")
    names, shape = axes.MESH, tuple(sizes[axis] for axis in axes.MESH)
    auto = (AxisType.Auto,) * len(names)
    slices = len({getattr(device, "slice_index", 0) or 0 for device in every})
    if slices == 1 or count < len(every):
        return jax.make_mesh(shape, names, axis_types=auto, devices=every[:count])
    return Mesh(_hybrid(sizes, slices, every), names, axis_types=auto)


def here(config: ParallelConfig, *, microbatch: int) -> ParallelConfig:
    """What a run asks for, or, where such devices are not here, the default: what can be computed again with others."""
    try:
        make_mesh(config, microbatch=microbatch)
        return config
    except UserError:
        return ParallelConfig()


def _sizes(config: ParallelConfig, available: int, *, microbatch: int, whole: bool) -> dict[str, int]:
    """The size of every axis; `whole`: a -1 takes all the devices that are left, whatever the microbatch."""
    sizes = {axis: getattr(config.mesh, axis) for axis in axes.MESH}
    written = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"parallel.mesh=({written}): sizes are 1 or more, and one of them may be -1 (what is left)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > available:
        raise UserError(f"parallel.mesh=({written}) takes {fixed} devices, but there are {available}")
    if left:
        if available % fixed and (whole or config.devices):
            raise UserError(f"parallel.mesh=({written}): {available} devices do not divide by {fixed}")
        axis, most = left[0], available // fixed
        if axis in axes.ROWS and not whole and not config.devices:
            rows = math.prod(sizes[other] for other in axes.ROWS if other != axis)
            most = max((n for n in range(1, most + 1) if microbatch % (n * rows) == 0), default=1)
        sizes[axis] = most
    elif config.devices not in (0, fixed):
        raise UserError(f"parallel.mesh=({written}) takes {fixed} devices, but parallel.devices={config.devices}")
    return sizes


def _hybrid(sizes: dict[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """The devices of several slices as a mesh: slices along the first axis of rows that they divide."""
    across = next((axis for axis in axes.ROWS if sizes[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"parallel.mesh: data={sizes['data']} does not divide among {slices} slices; set it to {slices}"
        )
    within = [size // slices if axis == across else size for axis, size in sizes.items()]
    return mesh_utils.create_hybrid_device_mesh(
        within, [slices if axis == across else 1 for axis in sizes], devices, allow_split_physical_axes=True
    )


def describe(mesh: Mesh) -> str:
    """Like `data=2, fsdp=4`."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"


def local_mesh() -> Mesh:
    """All devices of this process, for what each process computes alone."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The axis after `leading` others is divided over the devices that divide rows."""
    return NamedSharding(
        mesh, PartitionSpec(*[None] * leading, tuple(axis for axis in axes.ROWS if axis in mesh.shape))
    )


def own_rows(mesh: Mesh, count: int) -> slice:
    """Which of the `count` rows of a microbatch this process has a device for; together, all of them and no gap."""
    places = rows(mesh).addressable_devices_indices_map((count,)).values()
    found = [index[0].indices(count) for index in places if index is not None]
    return slice(min(start for start, _, _ in found), max(stop for _, stop, _ in found))


def on_host(mesh: Mesh) -> bool:
    """Whether the mesh is one CPU, whose programs read host arrays where they are, at a tenth of the cost of `put`."""
    return alone() and mesh.size == 1 and mesh.devices.item().platform == "cpu"


def put(tree: Any, sharding: Sharding) -> Any:
    """Host arrays, the same in every process, onto the devices."""
    if alone():
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index]),
        tree,
    )


def put_batch(
    arrays: dict[str, np.ndarray], mesh: Mesh, *, leading: int = 1, own: slice | None = None, count: int = 0
) -> dict[str, jax.Array]:
    """Host arrays (K, m, ...) onto the mesh, the m rows divided.

    own: the arrays have only these rows of the `count` that a microbatch has (`own_rows`).
    """
    sharding = rows(mesh, leading=leading)
    if own is None or own == slice(0, count):
        return put(arrays, sharding)

    def place(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:leading], count, *array.shape[leading + 1 :])

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[leading].indices(count)
            return array[(*index[:leading], slice(start - own.start, stop - own.start), *index[leading + 1 :])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(array) for name, array in arrays.items()}


def votes(mesh: Mesh, number: int) -> jax.Array:
    """int32 (devices), each process's `number` at its devices: their maximum, taken by an update, is known to all."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(
        (mesh.size,), sharding, lambda index: np.full(mesh.size, number, np.int32)[index]
    )


def mapped(update: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`update(state, batch)`, mapped by `jax.pmap` over the devices of the mesh under the axis name `data`.

    Each device has its share of the rows (axis 1) of the batch's `arrays` and of the state's `carry`; all else is the
    same on all of them, before and after: the update has to add up over `data` what it sums over rows.
    """
    count = mesh.size

    def cut(array: jax.Array) -> jax.Array:
        return array.reshape(array.shape[0], count, -1, *array.shape[2:])

    def join(array: jax.Array) -> jax.Array:
        return array.reshape(array.shape[0], -1, *array.shape[3:])

    def over_devices(state: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        state = state.replace(carry=jax.tree.map(cut, state.carry))
        batch = batch | {"arrays": jax.tree.map(cut, batch["arrays"])}
        fields = {field.name: None for field in dataclasses.fields(state)}
        of_state: Any = type(state)(**fields | {"carry": None if state.carry is None else 1})
        of_batch = {name: 1 if name == "arrays" else None for name in batch}
        devices = list(mesh.devices.flat)
        each = jax.pmap(update, "data", in_axes=(of_state, of_batch), out_axes=(of_state, None), devices=devices)
        state, metrics = each(state, batch)
        return state.replace(carry=jax.tree.map(join, state.carry)), metrics

    return over_devices
