"""Facts about a spike.

They are recorded, or recomputed from the offending batch and the current parameters.

Shapes: K microbatches of m rows, R rows of the batch, T positions, W values in the guard's window.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.guard.decision import Decision
from lmjax.journal.history import History, Record
from lmjax.objectives.objective import Objective
from lmjax.pytrees import leaf_names
from lmjax.run.build import Run
from lmjax.system.seeds import random_key
from lmjax.training import metrics
from lmjax.training.inputs import ScheduledBatch
from lmjax.training.state import State


@dataclass(frozen=True)
class Case:
    """The facts about a spike that several sections of its report use."""

    #: The run.
    run: Run
    #: Directory of the run.
    run_dir: Path
    #: State after the trigger was judged.
    state: State
    #: The batch at which the guard fired.
    fed: ScheduledBatch
    #: The guard's decision.
    decision: Decision
    #: History of the run before the decision.
    past: History

    @cached_property
    def accepted(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of every applied update, by its number from 1."""
        path = {
            number: (float.fromhex(applied.loss), float.fromhex(applied.grad_norm))
            for number, applied in enumerate(self.past.path, 1)
        }
        # The journal has every update, but records the last few only with its next record.
        known = {n: (_float(record["loss"]), _float(record["grad_norm"])) for n, record in self.recorded.items()}
        return known | path

    @cached_property
    def recorded(self) -> dict[int, Record]:
        """The records of metrics.jsonl by applied update."""
        file = self.run_dir / "metrics.jsonl"
        return {row["update"]: row for row in metrics.read(file) if "grad_norm" in row} if file.exists() else {}

    @cached_property
    def suspects(self) -> list[Record]:
        """Records of the batches left out since the onset."""
        return [record for record in self.past.suspects if record["cursor"] > self.decision.onset.before]

    @cached_property
    def seen(self) -> tuple[float, float]:
        """Loss and gradient norm of the trigger."""
        trigger = self.decision.trigger
        if trigger.suspect and self.suspects:
            return float.fromhex(self.suspects[-1]["loss"]), float.fromhex(self.suspects[-1]["grad_norm"])
        return self.accepted.get(trigger.update + 1, (math.nan, math.nan))

    @cached_property
    def count(self) -> int:
        """Number of accepted updates in the guard's window; 0 right after an announced change."""
        window = self.state.window
        known = int(window.count) if int(window.stretch) == self.fed.regime else 0
        return min(known, len(window.losses_W))

    @cached_property
    def bands(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Median and robust deviation of the window's losses, and of its log gradient norms.

        The guard computes its z from these values. They are NaN if the window is empty.
        """
        config, window = self.run.config.guard, self.state.window
        losses = _band(window.losses_W, self.count, floor=config.loss_floor_nats, floor_share=config.loss_floor)
        return losses, _band(window.log_norms_W, self.count, floor=config.grad_floor)

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Arrays (R, ...) of the computation; they differ from the store's if they were corrupted."""
        arrays = jax.device_get(self.fed.batch["arrays"])
        return {name: a.reshape(-1, *a.shape[2:])[: self.fed.sequences] for name, a in arrays.items()}

    @cached_property
    def ids(self) -> np.ndarray:
        """Sample id of each row."""
        return self.run.order.excluding(self.past.exclude).take(self.fed.before, self.fed.sequences)[0]

    @cached_property
    def losses_R(self) -> np.ndarray:
        """Cross-entropy of each row in nats per token, without dropout."""
        batch, params = self.fed.batch, self.state.params
        microbatch_losses = [
            _row_losses(self.run.objective, params, batch["arrays"], i) for i in range(int(batch["microbatches"]))
        ]
        return np.concatenate(jax.device_get(microbatch_losses)).astype(np.float64)

    @cached_property
    def worst(self) -> np.ndarray:
        """Rows from the highest loss to the lowest; rows with a non-finite loss come first."""
        return np.argsort(-np.where(np.isfinite(self.losses_R), self.losses_R, np.inf), kind="stable")


# ---- Recomputation -------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def _row_losses(objective: Objective, params: Any, arrays: dict[str, Array], i: Array) -> Array:
    sums_m, weights_m = objective.by_row(params, {name: array[i] for name, array in arrays.items()})
    return sums_m / jnp.where(weights_m == 0, 1, weights_m)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_gradient(
    objective: Objective, total: Any, params: Any, arrays: dict[str, Array], carry: Any, key: Array, i: Array
) -> Any:
    """Add microbatch i to `total`, which is (gradient of the loss sum, weight sum)."""

    def loss(params: Any) -> tuple[Array, Array]:
        microbatch, rng = {name: array[i] for name, array in arrays.items()}, jax.random.fold_in(key, i)
        carry_i = jax.tree.map(lambda leaf: leaf[i], carry)
        sums = objective.loss(params, microbatch, rng=rng, carry=carry_i, train=True)
        return sums.loss, sums.weight

    return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(params))


def gradient(run: Run, state: State, fed: ScheduledBatch) -> tuple[Any, Array]:
    """Return (gradient of the loss sum, weight sum) of a batch, as in `step.make_update`.

    This includes dropout.
    """
    key = jax.random.fold_in(random_key(run.config.seed), fed.update)
    total: Any = jax.tree.map(jnp.zeros_like, state.params), jnp.float32(0)
    for i in range(int(fed.batch["microbatches"])):
        total = _add_gradient(run.objective, total, state.params, fed.batch["arrays"], state.carry, key, i)
    return total


@jax.jit
def _norms(tree: Any) -> Any:
    """Return the norm of each leaf (of each layer, if a scan stacks them), without overflow."""

    def norm(path: tuple[Any, ...], x: Array) -> Array:
        axes = tuple(range(path[0].key == "blocks", x.ndim))
        peak = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
        scale = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
        return jnp.sqrt(jnp.sum(jnp.square(x / scale), axis=axes)) * jnp.squeeze(scale, axes)

    return jax.tree_util.tree_map_with_path(norm, tree)


def layer_norms(tree: Any) -> dict[str, dict[str, float]]:
    """Return the norms of parameters or of a gradient, by group and leaf.

    The groups are embedding, block_0, ..., final norm, head.
    """
    groups: dict[str, dict[str, float]] = {}
    norms = jax.device_get(_norms(tree))
    for name, norm in zip(leaf_names(tree), jax.tree.leaves(norms), strict=True):
        group, _, leaf = name.partition("/")
        for layer, value in enumerate(np.atleast_1d(np.asarray(norm, np.float64)).tolist()):
            groups.setdefault(f"block_{layer}" if group == "blocks" else group, {})[leaf] = value
    return dict(sorted(groups.items(), key=lambda item: _depth(item[0])))


def _depth(group: str) -> tuple[int, int, str]:
    block = group.startswith("block_")
    return (0 if group.endswith("embedding") else 1 if block else 2), int(group[6:]) if block else 0, group


def not_finite(tree: Any) -> list[str]:
    """Return the names of the leaves that are not finite."""
    broken = jax.device_get(_broken(jax.tree.leaves(tree)))
    return [name for name, bad in zip(leaf_names(tree), broken, strict=True) if bad]


@jax.jit
def _broken(leaves: list[Array]) -> list[Array]:
    return [~jnp.isfinite(leaf).all() for leaf in leaves]


def _band(values_W: Array, count: int, *, floor: float = 0.0, floor_share: float = 0.0) -> tuple[float, float]:
    if not count:
        return math.nan, math.nan
    values = np.asarray(values_W, np.float64)[-count:]
    median = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - median)))  # of a normal distribution
    return median, max(deviation, floor, floor_share * abs(median))


def _float(value: float | None) -> float:
    """Convert a value of metrics.jsonl, where null means a non-finite value."""
    return math.nan if value is None else value
