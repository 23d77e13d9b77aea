"""Logical axes: on which devices of the mesh each axis of a parameter or an activation lies.

Models name axes ("embed", "heads", "batch"); the two tables here say which axis of the mesh divides each of them. How a
parameter is kept (STORAGE) is apart from how it is computed with (COMPUTE): FSDP divides what is kept, and gathers the
weights of a layer only while the layer is computed (Zhao et al. 2023; ZeRO stage 3, Rajbhandari et al. 2020).
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

MESH = ("data", "fsdp", "sequence", "tensor")  # devices that are near each other lie along the last
ROWS = ("data", "fsdp")  # both divide the rows of a batch

Rules = Mapping[str, str | tuple[str, ...]]
# Megatron's division of matrices (Shoeybi et al. 2019): heads, the MLP's hidden features and the vocabulary.
_TENSOR: dict[str, str] = {"heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
STORAGE: Rules = {**_TENSOR, "embed": "fsdp"}
COMPUTE: Rules = {**_TENSOR, "batch": ROWS, "length": "sequence"}

Table = Mapping[str, tuple[str, ...]]  # "parent/leaf", or "leaf" of any other parent -> a name for each axis


class Held(NamedTuple):
    """Where a parameter lies between its uses, and where while it is used."""

    storage: NamedSharding
    compute: NamedSharding


@dataclass(frozen=True)
class Layout:
    """A mesh with the table of a family's parameters."""

    mesh: Mesh
    table: Table

    def size(self, axis: str) -> int:
        """The devices along an axis of the mesh."""
        return self.mesh.shape.get(axis, 1)


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


def current() -> Layout | None:
    """The layout for which a model is being traced; None: one device."""
    return _layout.get()


@contextmanager
def on(mesh: Mesh, table: Table) -> Iterator[None]:
    """While a model is traced: its axes lie on this mesh. On the one device there is it changes nothing."""
    here = mesh.size == 1 and mesh.devices.flat[0].platform == jax.default_backend()
    token = _layout.set(None if here else Layout(mesh, table))
    try:
        yield
    finally:
        _layout.reset(token)


def spec(names: Sequence[str | None], rules: Rules) -> PartitionSpec:
    """The mesh axes of an array whose axes have these names. AssertionError: a mesh axis would divide two of them."""
    parts = [None if name is None else rules.get(name) for name in names]
    used = [axis for part in parts if part for axis in ((part,) if isinstance(part, str) else part)]
    assert len(used) == len(set(used)), f"two of the axes {tuple(names)} lie on the same axis of the mesh: {used}"
    return PartitionSpec(*parts)


# ---- Inside a model -----------------------------------------------------------------------------------------------


def constrain(x: Array, *names: str | None) -> Array:
    """An activation, laid out by COMPUTE; an axis that does not divide stays whole."""
    layout = current()
    if layout is None:
        return x
    parts = [
        part if x.shape[i] % _size(layout.mesh, part) == 0 else None for i, part in enumerate(spec(names, COMPUTE))
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*parts)))


def held(module: str | None, leaf: str) -> Held | None:
    """Where the parameter `module/leaf` lies; None: on the one device there is."""
    layout = current()
    if layout is None:
        return None
    names = _names(f"{module}/{leaf}", layout.table)
    return Held(*(NamedSharding(layout.mesh, spec(names, rules)) for rules in (STORAGE, COMPUTE)))


def gathered(w: Array, where: Held | None) -> Array:
    """A parameter as it is computed with; the gradient goes back to where the parameter lies."""
    return w if where is None else _gathered(w, where)


def _gather(w: Array, where: Held) -> Array:
    return jax.lax.with_sharding_constraint(w, where.compute)


def stored(w: Array, where: Held | None) -> Array:
    """A parameter, or its gradient, as it is kept."""
    return w if where is None else jax.lax.with_sharding_constraint(w, where.storage)


# The gradient is first added up as the parameter is computed with: else the compiler would move activations about.
_gathered = jax.custom_vjp(_gather, nondiff_argnums=(1,))
_gathered.defvjp(lambda w, where: (_gather(w, where), None), lambda where, _, g: (stored(_gather(g, where), where),))


# ---- Around it ------------------------------------------------------------------------------------------------------


def specs(params: Any, table: Table) -> dict[str, PartitionSpec]:
    """How each parameter is kept, by the name of its leaf. "layers" stands before the axes of stacked leaves."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        names = _names(name, table)
        found[name] = spec((None,) * (len(leaf.shape) - len(names)) + names, STORAGE)
    return found


def shardings(tree: Any, params: Any, *, mesh: Mesh, table: Table) -> Any:
    """How the leaves of a tree that contains parameters, moments of parameters, averages and other things are kept.

    What has the name and the shape of a parameter lies as it does, all else whole on every device.
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
    parent_and_leaf = "/".join(path.split("/")[-2:])
    return table[parent_and_leaf] if parent_and_leaf in table else table[path.split("/")[-1]]


def _size(mesh: Mesh, part: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in ((part,) if isinstance(part, str) else part or ()))
