"""The update: a pure function of the state and a batch.

Shapes: K the largest number of microbatches of a batch, m the rows of a microbatch, N the updates of one dispatch.

A batch holds

- `arrays`: a dict of (K, m, ...);
- `microbatches`: int32 k with 1 <= k <= K. Only the first k are read, so one compiled program serves every k;
- `learning_rate`: float32;
- `regime` (optional): int32, the number of announced changes before the batch; the guard's window is empty after each;
- `update` (optional): int32, the number of applied updates that the batch was scheduled for. A batch scheduled for
  another update is not applied: it was dispatched before a preceding batch turned out to be suspect;
- `votes` (optional): int32 (number of devices). The metric `vote` is their maximum, by which processes agree.

The metrics are scalars: `loss` and every further sum, divided by the weight; `weight`; `grad_norm` before clipping;
`update_norm` and `param_norm` of the update, applied or not; the guard's `z_loss`, `z_grad_norm`, `suspect`, `hard` and
`diverged`; `skipped`, 0 or 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.system.seeds import random_key
from lmjax.training.state import State

Loss = Callable[..., tuple[Any, ...]]
Update = Callable[[State, dict[str, Any]], tuple[State, dict[str, Array]]]
Step = Callable[[State, Sequence[dict[str, Any]]], tuple[State, dict[str, Array]]]


class Proposal(NamedTuple):
    """The update that the optimizer proposes, before the guard accepts it."""

    #: Difference of the parameters.
    step: Any
    params: Any
    param_norm: Array
    opt_state: Any
    #: Running average of the parameters, or None.
    ema: Any


def make_update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    guard: GuardConfig,
    ema: float = 0.0,
    ema_warmup: bool = False,
    seed: int,
    place: Callable[[Any], Any] = lambda gradients: gradients,
    axis: str | None = None,
) -> Update:
    """Build `update(state, batch) -> (state, metrics)`; jit it with `donate_argnums=0`.

    The gradient is that of (sum of loss sums) / (sum of weight sums), so that another division into microbatches
    changes nothing but rounding. Random keys are derived from (seed, update, microbatch). Unless the guard's policy is
    `off`, a suspect batch leaves every leaf of the state unchanged, `update` and the guard's window included.

    Args:
        loss: (params, microbatch, key) -> (loss sum, weight sum, dict of further sums), all float32 scalars. If the
            state has a `carry`, whose leaves are (K, ...), the loss also takes the carry of its microbatch and returns
            the next one, both last.
        optimizer: the optimizer; the learning rate of the batch multiplies its result.
        guard: settings of the guard.
        ema: decay of the running average of the parameters.
        ema_warmup: limit the decay at the start, as in `decay_of`.
        seed: seed of the run.
        place: lays out the gradients on the devices that hold the parameters of the same shape.
        axis: name of the axis over which the update is mapped (`pmap`). Each device has a part of the rows: sums are
            taken over the axis, and each device has its own random keys.
    """

    def update(state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(random_key(seed), state.update)
        if axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis))
        with jax.named_scope("gradients"):
            total, carry = accumulate(loss, state.params, batch, key, state.carry, place)
            gradients, (loss_sum, weight, sums) = total if axis is None else lax.psum(total, axis)
            scale = 1 / jnp.where(weight > 0, weight, 1)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
            norm = optax.tree.norm(gradients)
        with jax.named_scope("optimizer"):
            decay = decay_of(ema, state.update, warmup=ema_warmup)
            proposal = _propose(optimizer, state, gradients, batch["learning_rate"], ema=decay)
        with jax.named_scope("guard"):
            mean = loss_sum * scale
            next_state, applied, verdict = accept(state, batch, proposal, guard, loss=mean, norm=norm, carry=carry)
        metrics = {
            "loss": mean,
            **{name: value * scale for name, value in sums.items()},
            "weight": weight,
            "grad_norm": norm,
            "update_norm": optax.tree.norm(proposal.step),
            "param_norm": proposal.param_norm,
            **verdict,
            "skipped": 1 - applied.astype(jnp.int32),
        }
        return next_state, metrics | ({"vote": jnp.max(batch["votes"])} if "votes" in batch else {})

    return update


def _propose(
    optimizer: optax.GradientTransformation, state: State, gradients: Any, learning_rate: Array, *, ema: float | Array
) -> Proposal:
    """Compute the parameters and the optimizer state after an update."""
    arguments = gradients, state.opt_state, state.params
    direction, _ = optimizer.update(*arguments)
    # Computed a second time for the next optimizer state only. XLA then writes that state in place after the guard's
    # decision; otherwise it would hold a copy until then. Reading the old state twice costs less.
    _, opt_state = optimizer.update(*lax.optimization_barrier(arguments))
    step = jax.tree.map(lambda d: -learning_rate * d, direction)
    params = optax.apply_updates(state.params, step)
    average = state.ema
    if average is not None:
        average = optax.incremental_update(params, average, 1 - ema)
    return Proposal(step, params, optax.tree.norm(params), opt_state, average)


def decay_of(ema: float, update: Array, *, warmup: bool) -> float | Array:
    """Return the decay of the average: with `warmup` at most (1 + n) / (10 + n) at update n.

    With a constant decay d, the initial parameters have the weight d^n after n updates. While the limit holds, their
    weight is 1 / C(n + 9, 9) instead.
    """
    return jnp.minimum(jnp.float32(ema), (1 + update) / (10 + update)) if warmup else ema


def accept(
    state: State,
    batch: dict[str, Any],
    proposal: Proposal,
    guard: GuardConfig,
    *,
    loss: Array,
    norm: Array,
    carry: Any,
    two_sided: bool = False,
) -> tuple[State, Array, dict[str, Array]]:
    """Return the next state, whether it is the proposed one, and the guard's metrics.

    `two_sided` is that of `detector.assess`.
    """
    regime = batch.get("regime", jnp.int32(0))
    log_norm = detector.log_norm(norm)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(proposal.param_norm)
    signs = detector.assess(state.window, loss, log_norm, finite, regime, guard, two_sided=two_sided)
    window, diverged = detector.accept(state.window, loss, log_norm, regime, guard)
    proposed = State(proposal.params, proposal.opt_state, proposal.ema, state.update + 1, window, carry)
    applied = batch.get("update", state.update) == state.update
    if guard.policy != "off":
        applied &= ~signs.suspect
    # Selected, never multiplied: 0 * NaN is NaN.
    next_state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), proposed, state)
    verdict = {
        "z_loss": signs.z_loss,
        "z_grad_norm": signs.z_grad_norm,
        "suspect": signs.suspect,
        "hard": signs.hard,
        "diverged": diverged,
    }
    return next_state, applied, verdict


def chain_updates(update: Update) -> Callable[[State, dict[str, Any], Array], tuple[State, dict[str, Array]]]:
    """Build one program of several updates: `(state, batches, count) -> (state, metrics)`.

    Meant for small updates, whose dispatch takes as long as their computation. The leaves of `batches` are those of one
    batch with a leading axis N, of which only the first `count` >= 1 are read: the program, and therefore every bit, is
    the same for every `count`. The metrics are (N), and zero from `count` on. No batch that follows a suspect batch is
    applied.
    """

    def updates(state: State, batches: dict[str, Any], count: Array) -> tuple[State, dict[str, Array]]:
        def apply_batch(i: Array, state_and_metrics: Any) -> Any:
            state, metrics_N = state_and_metrics
            state, metrics = update(state, jax.tree.map(lambda leaf: leaf[i], batches))
            return state, jax.tree.map(lambda all_N, value: all_N.at[i].set(value), metrics_N, metrics)

        first_batch, length = jax.tree.map(lambda leaf: leaf[0], batches), len(batches["update"])
        shapes = jax.eval_shape(update, state, first_batch)[1]
        metrics_N = jax.tree.map(lambda shape: jnp.zeros((length, *shape.shape), shape.dtype), shapes)
        return lax.fori_loop(0, count, apply_batch, (state, metrics_N))

    return updates


def fetch(metrics: dict[str, jax.Array], count: int) -> list[dict[str, Any]]:
    """Wait for `count` updates and return their metrics as Python numbers.

    A CPU device shares its memory with the host, so nothing is copied; `jax.device_get` takes ten times as long.
    """
    if jax.default_backend() != "cpu":
        for value in metrics.values():
            if isinstance(value, jax.Array):  # an episode also has values of the host
                value.copy_to_host_async()  # all copies at the same time
    columns = [np.ravel(np.asarray(value)).tolist()[:count] for value in metrics.values()]
    return [dict(zip(metrics, values, strict=True)) for values in zip(*columns, strict=True)]


def accumulate(
    loss: Loss, params: Any, batch: dict[str, Any], key: Array, carry: Any, place: Callable[[Any], Any]
) -> tuple[tuple[Any, tuple[Array, Array, dict[str, Array]]], Any]:
    """Sum over the first k microbatches.

    Returns:
        (gradient of the loss sum, (loss sum, weight sum, further sums)), and the next carry.
    """

    def microbatch_sums(i: Any, carry: Any) -> Any:
        def objective(params: Any) -> tuple[Array, Any]:
            microbatch = {name: array[i] for name, array in batch["arrays"].items()}
            own_carry = () if carry is None else (jax.tree.map(lambda leaf: leaf[i], carry),)
            loss_sum, weight, sums, *next_carry = loss(params, microbatch, jax.random.fold_in(key, i), *own_carry)
            return loss_sum, ((loss_sum, weight, sums), next_carry)

        gradients, (sums, next_carry) = jax.grad(objective, has_aux=True)(params)
        if carry is not None:
            carry = jax.tree.map(lambda leaf, new: leaf.at[i].set(new), carry, next_carry[0])
        return (place(gradients), sums), carry

    def add(i: Any, total_and_carry: Any) -> Any:
        total, carry = total_and_carry
        summands, carry = microbatch_sums(i, carry)
        return jax.tree.map(jnp.add, total, summands), carry

    most = len(next(iter(batch["arrays"].values())))
    if most == 1:
        return microbatch_sums(0, carry)
    shapes, _ = jax.eval_shape(microbatch_sums, 0, carry)
    gradients, sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.fori_loop(0, batch["microbatches"], add, ((place(gradients), sums), carry))
