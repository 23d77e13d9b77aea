"""The update: a pure function of the state and a batch.

Shapes: K the most microbatches a batch can hold, m rows of a microbatch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.training.state import State

Loss = Callable[..., tuple[Any, ...]]
Update = Callable[[State, dict[str, Any]], tuple[State, dict[str, Array]]]
Step = Callable[[State, Sequence[dict[str, Any]]], tuple[State, dict[str, Array]]]


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    guard: GuardConfig,
    ema: float = 0.0,
    seed: int,
    place: Callable[[Any], Any] = lambda gradients: gradients,
    axis: str | None = None,
) -> Update:
    """The function `update(state, batch) -> (state, metrics)`, to be jitted with `donate_argnums=0`.

    loss: (params, microbatch, key) -> (loss sum, weight sum, dict of further sums), all float32 scalars. Where the
    state has a `carry`, whose leaves are (K, ...), the loss also takes that of its microbatch and returns the next,
    both last.
    batch: `arrays`, a dict of (K, m, ...); `microbatches`, int32 k with 1 <= k <= K: only the first k are
    read, and one compiled program serves every k; `learning_rate`, float32; and, if given, `regime`, int32: how many
    announced changes came before (the guard starts empty at each), and `update`, int32: the number of applied updates
    the batch was made for. A batch made for another moment is not applied: it was sent off before the one ahead of it
    turned out to be suspect.

    The gradient is that of (sum of loss sums) / (sum of weight sums), so that splitting a batch otherwise
    changes nothing but rounding. Random keys come from (seed, update, microbatch).

    place: lays out the gradients, which are shaped like the parameters, on the devices that keep these. axis: the name
    under which the update is mapped over devices (`pmap`), each with a share of the rows: sums are taken over it, and
    the random keys are each device's own.

    votes: optional, int32 (N); the metric `vote` is their maximum, by which processes agree.

    metrics, scalars: `loss` and every further sum, divided by the weight; `weight`; `grad_norm` before
    clipping; `update_norm` and `param_norm` of what was or would have been applied; the guard's `z_loss`,
    `z_grad_norm`, `suspect`, `hard` and `diverged`; `skipped`, 0 or 1. Unless the policy is `off`, a suspect batch
    leaves every leaf of the state as it was, `update` and the guard's window included.
    """

    def update(state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.update)
        if axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis))
        with jax.named_scope("gradients"):
            found, carry = _accumulate(loss, state.params, batch, key, state.carry, place)
            gradients, (loss_sum, weight, sums) = found if axis is None else lax.psum(found, axis)
            scale = 1 / jnp.where(weight > 0, weight, 1)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
            norm = optax.tree.norm(gradients)
        with jax.named_scope("optimizer"):
            given = gradients, state.opt_state, state.params
            direction, _ = optimizer.update(*given)
            # Once more, for the next state alone: it is then written in place once the guard has decided, instead of
            # being held until then. To read the old one twice costs less.
            _, opt_state = optimizer.update(*lax.optimization_barrier(given))
            step = jax.tree.map(lambda d: -batch["learning_rate"] * d, direction)
            params = optax.apply_updates(state.params, step)
            average = state.ema
            if average is not None:
                average = optax.incremental_update(params, average, 1 - ema)
            param_norm = optax.tree.norm(params)
        with jax.named_scope("guard"):
            regime = batch.get("regime", jnp.int32(0))
            loss_mean, log_norm = loss_sum * scale, detector.log_norm(norm)
            finite = jnp.isfinite(loss_mean) & jnp.isfinite(norm) & jnp.isfinite(param_norm)
            signs = detector.assess(state.window, loss_mean, log_norm, finite, regime, guard)
            window, diverged = detector.accept(state.window, loss_mean, log_norm, regime, guard)
            after = State(params, opt_state, average, state.update + 1, window, carry)
            apply = batch.get("update", state.update) == state.update
            if guard.policy != "off":
                apply &= ~signs.suspect
            # Selected, never multiplied: 0 * NaN is NaN.
            after = jax.tree.map(lambda new, old: jnp.where(apply, new, old), after, state)
        metrics = {
            "loss": loss_mean,
            **{name: value * scale for name, value in sums.items()},
            "weight": weight,
            "grad_norm": norm,
            "update_norm": optax.tree.norm(step),
            "param_norm": param_norm,
            "z_loss": signs.z_loss,
            "z_grad_norm": signs.z_grad_norm,
            "suspect": signs.suspect,
            "hard": signs.hard,
            "diverged": diverged,
            "skipped": 1 - apply.astype(jnp.int32),
        }
        if "votes" in batch:
            metrics["vote"] = jnp.max(batch["votes"])
        return after, metrics

    return update


def chain_updates(update: Update) -> Callable[[State, dict[str, Any], Array], tuple[State, dict[str, Array]]]:
    """`updates(state, batches, count) -> (state, metrics)`: `update` for `count` batches in turn, as one program.

    For small updates, which take no longer than to send them off. batches: as one batch, but every leaf (N, ...), of
    which only the first `count` >= 1 are read: the program, and with it every bit, is the same for any number. metrics:
    (N), zero behind `count`. Of the batches behind a suspect one none is applied.
    """

    def updates(state: State, batches: dict[str, Any], count: Array) -> tuple[State, dict[str, Array]]:
        def one(i: Array, so_far: Any) -> Any:
            state, metrics_N = so_far
            state, metrics = update(state, jax.tree.map(lambda leaf: leaf[i], batches))
            return state, jax.tree.map(lambda all_N, value: all_N.at[i].set(value), metrics_N, metrics)

        first, most = jax.tree.map(lambda leaf: leaf[0], batches), len(batches["update"])
        kinds = jax.eval_shape(update, state, first)[1]
        metrics_N = jax.tree.map(lambda kind: jnp.zeros((most, *kind.shape), kind.dtype), kinds)
        return lax.fori_loop(0, count, one, (state, metrics_N))

    return updates


def make_step(update: Any, most: int) -> Step:
    """Make the step `(state, batches) -> (state, metrics)` that applies `update` to 1 to `most` batches in order.

    `update` is jitted, and for `most` > 1 made by `chain_updates`. The metrics are scalars, or (most), of which the
    first `len(batches)` count.
    """

    def one(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, Array]]:
        (batch,) = batches
        return update(state, batch)

    def filled(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, Array]]:
        unread = [batches[0]] * (most - len(batches))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches, *unread)
        return update(state, stacked, np.int32(len(batches)))

    return one if most == 1 else filled


def fetch(metrics: dict[str, jax.Array], count: int) -> list[dict[str, Any]]:
    """The metrics of `count` updates as plain numbers, once they have ended.

    A CPU device shares its memory with the host: nothing to copy, and `jax.device_get` takes ten times as long.
    """
    if jax.default_backend() != "cpu":
        for value in metrics.values():
            value.copy_to_host_async()  # side by side, not one after the other
    columns = [np.ravel(np.asarray(value)).tolist()[:count] for value in metrics.values()]
    return [dict(zip(metrics, values, strict=True)) for values in zip(*columns, strict=True)]


def _accumulate(
    loss: Loss, params: Any, batch: dict[str, Any], key: Array, carry: Any, place: Callable[[Any], Any]
) -> tuple[tuple[Any, tuple[Array, Array, dict[str, Array]]], Any]:
    """Over the first k microbatches: (gradient of the loss sum, (loss sum, weight sum, further sums)); the carry."""

    def one(i: Any, carry: Any) -> Any:
        def objective(params: Any) -> tuple[Array, Any]:
            microbatch = {name: array[i] for name, array in batch["arrays"].items()}
            goes_on = () if carry is None else (jax.tree.map(lambda leaf: leaf[i], carry),)
            loss_sum, weight, sums, *after = loss(params, microbatch, jax.random.fold_in(key, i), *goes_on)
            return loss_sum, ((loss_sum, weight, sums), after)

        gradients, (sums, after) = jax.grad(objective, has_aux=True)(params)
        if carry is not None:
            carry = jax.tree.map(lambda leaf, new: leaf.at[i].set(new), carry, after[0])
        return (place(gradients), sums), carry

    def add(i: Any, so_far: Any) -> Any:
        total, carry = so_far
        more, carry = one(i, carry)
        return jax.tree.map(jnp.add, total, more), carry

    most = len(next(iter(batch["arrays"].values())))
    if most == 1:
        return one(0, carry)
    gradients, sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, 0, carry)[0])
    return lax.fori_loop(0, batch["microbatches"], add, ((place(gradients), sums), carry))
