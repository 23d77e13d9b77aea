"""Devices: the mesh, and how arrays lie on it.

One axis so far: `data`. Parameters and optimizer state are replicated, the rows of each microbatch are divided.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.config import ParallelConfig, UserError


def make_mesh(config: ParallelConfig, *, microbatch: int) -> Mesh:
    """A mesh of the devices that share each microbatch.

    UserError: more devices asked for than there are, or a number that does not divide `microbatch` (sequences).
    """
    available = jax.device_count()
    count = config.devices or max(n for n in range(1, available + 1) if microbatch % n == 0)
    if count > available:
        raise UserError(f"parallel.devices={count}, but JAX sees {available} device(s)")
    if microbatch % count:
        raise UserError(f"batch.microbatch={microbatch} does not divide among parallel.devices={count}")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The axis after `leading` others is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, "data"))


def put_batch(arrays: dict[str, np.ndarray], mesh: Mesh, *, leading: int = 1) -> dict[str, jax.Array]:
    """Host arrays (K, m, ...) onto the mesh, the m rows divided."""
    return jax.device_put(arrays, rows(mesh, leading=leading))
