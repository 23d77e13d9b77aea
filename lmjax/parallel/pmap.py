"""Data-parallel updates over the devices of one process with `jax.pmap`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh


def pmap_update(update: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map `update(state, batch)` over the devices of the mesh with `jax.pmap`.

    The axis is named `data`. Each device gets its shard of the rows (axis 1) of the batch's `arrays` and of the state's
    `carry`. All other values are replicated: the update must reduce its sums over rows over the axis `data`.
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
