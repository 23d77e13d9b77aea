"""The update: a pure function of the state and a batch.

Shapes: K the most microbatches a batch can hold, m rows of a microbatch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lmjax.config import GuardConfig
from lmjax.train import guard as guards
from lmjax.train.state import State

Loss = Callable[..., tuple[Any, ...]]
Update = Callable[[State, dict[str, Any]], tuple[State, dict[str, Array]]]


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
    read, and one compiled program serves every k; `learning_rate`, float32; and, if given, `stretch`, int32: how many
    announced changes came before (the guard starts anew at each), and `update`, int32: the number of applied updates
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
            stretch = batch.get("stretch", jnp.int32(0))
            loss_mean, log_norm = loss_sum * scale, guards.log_norm(norm)
            finite = jnp.isfinite(loss_mean) & jnp.isfinite(norm) & jnp.isfinite(param_norm)
            signs = guards.assess(state.window, loss_mean, log_norm, finite, stretch, guard)
            window, diverged = guards.accept(state.window, loss_mean, log_norm, stretch, guard)
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
