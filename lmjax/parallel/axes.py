"""Logical axes: which mesh axis shards each axis of a parameter or an activation.

Models name axes ("embed", "heads", "batch"). Two tables map each name to the mesh axis that shards it. Parameters are
stored by STORAGE and computed with by COMPUTE: FSDP shards the stored parameters and gathers the weights of a layer
only while the layer is computed (Zhao et al. 2023; ZeRO stage 3, Rajbhandari et al. 2020).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.pytrees import path_name

MESH = ("data", "fsdp", "sequence", "tensor")  # neighbouring devices are placed along the last axis
ROWS = ("data", "fsdp")  # both shard the rows of a batch

Rules = Mapping[str, str | tuple[str, ...]]
# Megatron's tensor parallelism (Shoeybi et al. 2019) shards heads, the MLP's hidden features and the vocabulary.
_TENSOR: dict[str, str] = {"heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
STORAGE: Rules = {**_TENSOR, "embed": "fsdp"}
COMPUTE: Rules = {**_TENSOR, "batch": ROWS, "length": "sequence"}

Table = Mapping[str, tuple[str, ...]]  # "parent/leaf", or "leaf" under any other parent -> a name for each axis
OTHERS = "*"  # in a table: all parameters that it does not name


class Held(NamedTuple):
    """The two shardings of a parameter."""

    #: Sharding of the stored parameter and of its gradient.
    storage: NamedSharding
    #: Sharding while a product reads the parameter.
    compute: NamedSharding


@dataclass(frozen=True)
class Layout:
    """A mesh with the table of a family's parameters."""

    #: The mesh of devices.
    mesh: Mesh
    #: The logical axes of each parameter of the model family.
    table: Table

    def size(self, axis: str) -> int:
        """The number of devices along an axis of the mesh."""
        return self.mesh.shape.get(axis, 1)


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


def current() -> Layout | None:
    """The layout of the model that is being traced, or None on a single device."""
    return _layout.get()


@contextmanager
def on(mesh: Mesh, table: Table) -> Iterator[None]:
    """Trace models for this mesh inside the context; no effect on a single default device."""
    single_device = mesh.size == 1 and mesh.devices.flat[0].platform == jax.default_backend()
    token = _layout.set(None if single_device else Layout(mesh, table))
    try:
        yield
    finally:
        _layout.reset(token)


def spec(names: Sequence[str | None], rules: Rules) -> PartitionSpec:
    """The mesh axes of an array whose axes have these names.

    Raises:
        AssertionError: One mesh axis would shard two axes of the array.
    """
    parts = [None if name is None else rules.get(name) for name in names]
    used = [axis for part in parts if part for axis in ((part,) if isinstance(part, str) else part)]
    assert len(used) == len(set(used)), f"two of the axes {tuple(names)} map to the same axis of the mesh: {used}"
    return PartitionSpec(*parts)


# ---- Inside a model -----------------------------------------------------------------------------------------------


def constrain(x: Array, *names: str | None) -> Array:
    """Shard an activation by COMPUTE; an axis that does not divide evenly is replicated."""
    layout = current()
    if layout is None:
        return x
    parts = [
        part if x.shape[i] % _size(layout.mesh, part) == 0 else None for i, part in enumerate(spec(names, COMPUTE))
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*parts)))


def held(module: str | None, leaf: str) -> Held | None:
    """The shardings of the parameter `module/leaf`, or None on a single device."""
    layout = current()
    if layout is None:
        return None
    names = _names(f"{module}/{leaf}", layout.table)
    return Held(*(NamedSharding(layout.mesh, spec(names, rules)) for rules in (STORAGE, COMPUTE)))


def gathered(w: Array, where: Held | None) -> Array:
    """Gather a parameter for computation; its gradient returns in the storage sharding."""
    return w if where is None else _gathered(w, where)


def _gather(w: Array, where: Held) -> Array:
    return jax.lax.with_sharding_constraint(w, where.compute)


def stored(w: Array, where: Held | None) -> Array:
    """A parameter, or its gradient, in the storage sharding."""
    return w if where is None else jax.lax.with_sharding_constraint(w, where.storage)


# The gradient is first summed in the compute sharding; otherwise the compiler would reshard activations.
_gathered = jax.custom_vjp(_gather, nondiff_argnums=(1,))
_gathered.defvjp(lambda w, where: (_gather(w, where), None), lambda where, _, g: (stored(_gather(g, where), where),))


# ---- Shardings of parameter trees -----------------------------------------------------------------------------------


def specs(params: Any, table: Table) -> dict[str, PartitionSpec]:
    """The storage partition of each parameter, by leaf name; the axis of layers is replicated."""
    by_name = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        names = _names(name, table)
        by_name[name] = spec((None,) * (len(leaf.shape) - len(names)) + names, STORAGE)
    return by_name


def shardings(tree: Any, params: Any, *, mesh: Mesh, table: Table) -> Any:
    """The shardings of a tree of parameters, optimizer moments, averages and other arrays.

    A leaf with the name and the shape of a parameter has the sharding of that parameter. All other leaves are
    replicated.
    """
    by_name = specs(params, table)
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: Any, leaf: Any) -> NamedSharding:
        parts = path_name(path).split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        own = next((name for name in names if shapes.get(name) == leaf.shape), None)
        return NamedSharding(mesh, by_name[own] if own else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _names(path: str, table: Table) -> tuple[str, ...]:
    keys = "/".join(path.split("/")[-2:]), path.split("/")[-1], OTHERS
    return table[next((key for key in keys if key in table), keys[0])]


def _size(mesh: Mesh, part: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in ((part,) if isinstance(part, str) else part or ()))
