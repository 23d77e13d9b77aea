"""The device mesh, and the placement of batches and parameter trees on it.

In a multi-process run every process executes the same program. Only the *main* process (process 0) writes files.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lmjax.config import ParallelConfig, UserError
from lmjax.parallel import axes
from lmjax.parallel.processes import alone
from lmjax.pytrees import nbytes
from lmjax.system import machine


def make_mesh(config: ParallelConfig, *, microbatch: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Create the mesh of a run with the axes `data`, `fsdp`, `sequence` and `tensor`.

    Neighbouring devices are placed along the last axis. On several TPU slices the slices shard the rows, so that only
    gradients cross between slices.

    Args:
        config: The requested sizes.
        microbatch: Number of sequences in a microbatch.
        devices: The devices to use; default: all devices of JAX.

    Raises:
        UserError: The sizes do not fit the devices, `microbatch` does not divide among the row axes, or a
            multi-process run does not use all devices.
    """
    every = list(jax.devices() if devices is None else devices)
    several = len({device.process_index for device in every}) > 1
    if config.devices > len(every):
        raise UserError(f"parallel.devices={config.devices}, but JAX sees {len(every)} device(s)")
    sizes = _sizes(config, config.devices or len(every), microbatch=microbatch, use_all=several or devices is not None)
    count = math.prod(sizes.values())
    if count < len(every) and several:
        raise UserError(
            f"parallel.mesh uses {count} device(s), but a multi-process run must use all {len(every)} devices"
        )
    rows = math.prod(sizes[axis] for axis in axes.ROWS)
    if microbatch % rows:
        raise UserError(
            f"batch.microbatch={microbatch} does not divide among {rows} devices (parallel.mesh, data x fsdp); "
            f"set batch.microbatch={-(-microbatch // rows) * rows}"
        )
    if config.form == "pmap" and (count != sizes["data"] or several):
        raise UserError(
            "parallel.form=pmap supports only data parallelism in one process; set parallel.form=mesh for other meshes"
        )
    names, shape = axes.MESH, tuple(sizes[axis] for axis in axes.MESH)
    auto = (AxisType.Auto,) * len(names)
    slices = len({getattr(device, "slice_index", 0) or 0 for device in every})
    if slices == 1 or count < len(every):
        return jax.make_mesh(shape, names, axis_types=auto, devices=every[:count])
    return Mesh(_hybrid(sizes, slices, every), names, axis_types=auto)


def here(config: ParallelConfig, *, microbatch: int) -> ParallelConfig:
    """The parallelism of a run, or the default if this machine lacks the devices for it."""
    try:
        make_mesh(config, microbatch=microbatch)
        return config
    except UserError:
        return ParallelConfig()


def _sizes(config: ParallelConfig, available: int, *, microbatch: int, use_all: bool) -> dict[str, int]:
    """The size of every axis; `use_all`: a -1 takes all remaining devices."""
    sizes = {axis: getattr(config.mesh, axis) for axis in axes.MESH}
    written = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    left = [axis for axis, size in sizes.items() if size == -1]
    if len(left) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"parallel.mesh=({written}): sizes must be 1 or more; at most one may be -1 (the remaining devices)"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > available:
        raise UserError(f"parallel.mesh=({written}) needs {fixed} devices, but there are {available}")
    if left:
        if available % fixed and (use_all or config.devices):
            raise UserError(f"parallel.mesh=({written}): {available} devices do not divide by {fixed}")
        axis, most = left[0], available // fixed
        if axis in axes.ROWS and not use_all and not config.devices:
            rows = math.prod(sizes[other] for other in axes.ROWS if other != axis)
            most = max((n for n in range(1, most + 1) if microbatch % (n * rows) == 0), default=1)
        sizes[axis] = most
    elif config.devices not in (0, fixed):
        raise UserError(f"parallel.mesh=({written}) needs {fixed} devices, but parallel.devices={config.devices}")
    return sizes


def _hybrid(sizes: dict[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Arrange the devices of several slices; slices along the first row axis that fits."""
    across = next((axis for axis in axes.ROWS if sizes[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"parallel.mesh: data={sizes['data']} does not divide among {slices} slices; set it to {slices}"
        )
    within = [size // slices if axis == across else size for axis, size in sizes.items()]
    return mesh_utils.create_hybrid_device_mesh(
        within, [slices if axis == across else 1 for axis in sizes], devices, allow_split_physical_axes=True
    )


def describe_mesh(mesh: Mesh) -> str:
    """The sizes of the mesh as text, like `data=2, fsdp=4`."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"


def local_mesh() -> Mesh:
    """A mesh of all devices of this process, for process-local computations."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that places the complete array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The sharding of an array whose axis number `leading` holds the rows."""
    return NamedSharding(
        mesh, PartitionSpec(*[None] * leading, tuple(axis for axis in axes.ROWS if axis in mesh.shape))
    )


def own_rows(mesh: Mesh, count: int) -> slice:
    """The range of the `count` rows of a microbatch that the devices of this process hold."""
    places = row_sharding(mesh).addressable_devices_indices_map((count,)).values()
    ranges = [index[0].indices(count) for index in places if index is not None]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def on_host(mesh: Mesh) -> bool:
    """Whether the mesh is a single CPU.

    Its programs read host arrays in place, at a tenth of the cost of a copy.
    """
    return alone() and mesh.size == 1 and mesh.devices.item().platform == "cpu"


def put_tree(tree: Any, sharding: Sharding) -> Any:
    """Copy host arrays, identical in every process, to the devices."""
    if alone():
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index]),
        tree,
    )


def put_batch(
    arrays: dict[str, np.ndarray], mesh: Mesh, *, leading: int = 1, own: slice | None = None, count: int = 0
) -> dict[str, jax.Array]:
    """Copy host arrays (K, m, ...) to the mesh and shard the m rows.

    Args:
        arrays: The arrays, by name.
        mesh: The mesh of the run.
        leading: Number of axes before the rows.
        own: The rows that the arrays hold, if they hold only those of this process (`own_rows`).
        count: Number of rows of a microbatch; only read with `own`.
    """
    sharding = row_sharding(mesh, leading=leading)
    if own is None or own == slice(0, count):
        return put_tree(arrays, sharding)

    def place(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:leading], count, *array.shape[leading + 1 :])

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[leading].indices(count)
            return array[(*index[:leading], slice(start - own.start, stop - own.start), *index[leading + 1 :])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(array) for name, array in arrays.items()}


def local_copy(tree: Any) -> Any:
    """Copy arrays that may be sharded to one device of this process, unsharded.

    Every process must call it. In a single-process run, a tree larger than a third of the device's memory is returned
    unchanged.
    """
    device = jax.local_devices()[0]
    if alone() and nbytes(tree) > machine.device_memory(device).get("limit", math.inf) / 3:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(leaf, device), gathered(tree))


def gathered(tree: Any) -> Any:
    """Gather arrays that may be sharded across processes into the memory of each host.

    Every process must call it. A device holds at most one complete array at a time. A single-process run returns the
    arrays unchanged.
    """
    return tree if alone() else jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        sharding: Any = leaf.sharding
        leaf = jax.jit(_same, out_shardings=replicated(sharding.mesh))(leaf).addressable_data(0)
    return np.asarray(leaf)


def _same(x: jax.Array) -> jax.Array:
    return x


def votes(mesh: Mesh, number: int) -> jax.Array:
    """Place `number` on each device of this process: int32 (devices).

    An update reduces the votes of all processes to their maximum.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(
        (mesh.size,), sharding, lambda index: np.full(mesh.size, number, np.int32)[index]
    )
