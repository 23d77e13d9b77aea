"""The guard: detection of suspect batches and of spikes.

Suspect batches are detected inside the jitted update, spikes outside; both with pure functions. A batch is compared
with a window of accepted values. The window is part of the state: a rollback restores it, and the decisions are as
reproducible as the parameters. Rejected values do not enter it. With one NaN in a mean, every later batch or none would
look normal.

Shapes: W values in the window, newest last.
"""

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from lmjax.config import GuardConfig
from lmjax.journal.history import Tried

NOT_FINITE, LOSS, GRADIENT = "not finite", "loss", "gradient norm"
PARAMETERS, DIVERGENCE = "parameters not finite", "divergence"
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_TINY = 1e-12  # the smallest deviation, for equal values of zero
_NONE = np.finfo(np.float32).max  # no median yet: larger than all others, and finite, as a checkpoint requires


# ---- Inside the update ----------------------------------------------------------------------------------------------


@struct.dataclass
class Window:
    """The values of accepted updates that the guard compares a new batch with."""

    #: Losses of the last accepted updates; zero before the first of them.
    losses_W: Array
    #: Logarithms of their gradient norms.
    log_norms_W: Array
    #: Accepted updates since the last announced change.
    count: Array
    #: The lowest median of the last few losses.
    best: Array
    #: The regime: how many announced changes came before (see `assess`). Checkpoints name this leaf `stretch`.
    stretch: Array


@struct.dataclass
class Signs:
    """Assessment of one batch."""

    #: Robust z of the loss.
    z_loss: Array
    #: Robust z of the log gradient norm.
    z_grad_norm: Array
    #: The batch is suspect.
    suspect: Array
    #: The batch exceeds the thresholds of a hard suspect, or is not finite.
    hard: Array


def empty(config: GuardConfig) -> Window:
    """Return the window before the first update."""
    zeros_W = jnp.zeros(config.window, jnp.float32)
    return Window(zeros_W, jnp.zeros_like(zeros_W), jnp.int32(0), jnp.float32(_NONE), jnp.int32(0))


def assess(
    window: Window,
    loss: Array,
    log_norm: Array,
    finite: Array,
    stretch: Array,
    config: GuardConfig,
    *,
    two_sided: bool = False,
) -> Signs:
    """Assess a batch by the accepted values of its regime.

    Right after an announced change, the regime has no accepted value.

    Args:
        window: The accepted values.
        loss: Loss of the batch.
        log_norm: Logarithm of its gradient norm.
        finite: Whether loss, gradient and the updated parameters are finite.
        stretch: The batch's regime.
        config: The guard's settings.
        two_sided: A loss that is far too low is a hard suspect, too: the loss is minus a reward, and a reward that
            leaps is an error of the reward.
    """
    count = jnp.where(stretch == window.stretch, window.count, 0)
    z_loss, z_norm = _z(
        jnp.stack([window.losses_W, window.log_norms_W]),
        jnp.stack([loss, log_norm]),
        count,
        floor_2=np.array([config.loss_floor_nats, config.grad_floor], np.float32),
        floor_share_2=np.array([config.loss_floor, 0], np.float32),
    )
    hard = (z_loss > config.hard_z) | ((z_norm > config.hard_z) & (z_loss > config.grad_loss_z))
    soft = (z_loss > config.loss_z) | ((z_norm > config.grad_z) & (z_loss > config.grad_loss_z))
    if two_sided:
        hard |= z_loss < -config.hard_z
    hard = ~finite | (hard & (count >= config.armed_hard))
    return Signs(z_loss, z_norm, hard | (soft & (count >= config.armed)), hard)


def accept(window: Window, loss: Array, log_norm: Array, stretch: Array, config: GuardConfig) -> tuple[Window, Array]:
    """Add an accepted batch to the window; also return whether the run has diverged.

    A run has diverged when the median of the last few losses is far above the lowest such median.
    """
    fresh = stretch != window.stretch
    count = jnp.where(fresh, 0, window.count) + 1
    best = jnp.where(fresh, jnp.float32(_NONE), window.best)
    losses_W = jnp.append(window.losses_W[1:], loss)
    recent = losses_W[-config.divergence_window :]
    median = _median(recent, len(recent))
    mad = jnp.maximum(_median(jnp.abs(recent - median), len(recent)), config.loss_floor_nats)
    full = count >= config.divergence_window
    limit = jnp.maximum(config.divergence_mads * mad, config.divergence_share * jnp.abs(best))
    diverged = full & (count >= config.armed) & (median - best > limit)
    best = jnp.where(full, jnp.minimum(best, median), best)
    return Window(losses_W, jnp.append(window.log_norms_W[1:], log_norm), count, best, stretch), diverged


def _z(values_2W: Array, x_2: Array, count: Array, *, floor_2: np.ndarray, floor_share_2: np.ndarray) -> Array:
    """Return the robust z of each x, (x - median) / deviation of its last `count` values.

    It is 0 if `count` is 0. One call computes both, since on a CPU the fixed cost of an operation dominates for such
    small arrays.
    """
    size = values_2W.shape[1]
    valid_W = jnp.arange(size) >= size - count
    median_2 = _median(jnp.where(valid_W, values_2W, jnp.inf), count)
    mad_2 = _median(jnp.where(valid_W, jnp.abs(values_2W - median_2[:, None]), jnp.inf), count)
    least_2 = jnp.maximum(jnp.maximum(floor_2, floor_share_2 * jnp.abs(median_2)), _TINY)
    deviation_2 = jnp.maximum(_MAD_TO_DEVIATION * mad_2, least_2)
    return jnp.where(count > 0, (x_2 - median_2) / deviation_2, 0)


def _median(values_W: Array, count: Array | int) -> Array:
    """Return the median of the `count` smallest values along the last axis.

    It counts for each value how many values are no larger. These are a few vector operations, whereas XLA's sort
    executes its comparisons one after the other.
    """
    count = jnp.clip(count, 1, values_W.shape[-1])
    no_larger_W = jnp.sum(values_W[..., :, None] <= values_W[..., None, :], axis=-2, dtype=jnp.float32)

    def at(rank: Array) -> Array:
        return jnp.min(jnp.where(no_larger_W > rank, values_W, jnp.inf), axis=-1)

    return (at((count - 1) // 2) + at(count // 2)) / 2


# ---- Outside the update ---------------------------------------------------------------------------------------------


def rule(recent: Sequence[Tried], *, config: GuardConfig, diverged: bool = False, broken: bool = False) -> str:
    """Return the rule by which the last batch triggers a rollback; empty if none.

    Args:
        recent: The last batches that were tried.
        config: The guard's settings.
        diverged: Whether the run has diverged, as returned by `accept`.
        broken: Whether the parameters are not finite.
    """
    if broken:
        return PARAMETERS
    if diverged:
        return DIVERGENCE
    if not recent or not recent[-1].suspect:
        return ""
    if _in_a_row(batch.hard for batch in recent) >= config.hard_in_a_row:
        return f"{config.hard_in_a_row} hard suspects in a row"
    if _in_a_row(batch.suspect for batch in recent) >= config.in_a_row:
        return f"{config.in_a_row} suspects in a row"
    if sum(batch.suspect for batch in recent[-config.among :]) >= config.several:
        return f"{config.several} suspects among the last {config.among} batches"
    return ""


def onset(recent: Sequence[Tried], *, fired: str, config: GuardConfig) -> Tried:
    """Return the batch with which the spike began.

    It is the first suspect of the chain; for a divergence, the first batch of the losses whose median is too high.
    """
    if fired == DIVERGENCE:
        return recent[-config.divergence_window :][0]
    return next((batch for batch in recent[-config.among :] if batch.suspect), recent[-1])


def remembered(config: GuardConfig) -> int:
    """Return the number of last batches that a rule of the guard considers."""
    in_a_row = max(config.in_a_row, config.hard_in_a_row, config.rejected_in_a_row if config.policy == "skip" else 0)
    return max(config.among, config.divergence_window, in_a_row)


def healthy(update: int, *, suspects: Iterable[int], now: float, every: int, config: GuardConfig) -> bool:
    """Whether a checkpoint at `update` is healthy, judged at update `now`.

    The initial state always is.

    Args:
        update: Update of the checkpoint.
        suspects: Number of applied updates before each suspect batch.
        now: The current update.
        every: Updates between checkpoints.
        config: The guard's settings.
    """
    horizon = min(config.horizon, every or config.horizon)
    clear = all(not update - config.margin <= suspect <= update + horizon for suspect in suspects)
    return update == 0 or (now > update + horizon and clear)


def _in_a_row(flags: Iterable[bool]) -> int:
    count = 0
    for flag in reversed(list(flags)):
        if not flag:
            break
        count += 1
    return count


def log_norm(norm: Array) -> Array:
    """Return the logarithm of a gradient norm; finite for a norm of 0."""
    return jnp.log(jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))


def reason(values: dict[str, float], config: GuardConfig) -> str:
    """Return why a batch is suspect, from its metrics."""
    if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm", "param_norm")):
        return NOT_FINITE
    # A gradient norm is suspect only with a loss above the median; far below it, the loss itself is (`two_sided`).
    return LOSS if values["z_loss"] > config.loss_z or values["z_loss"] < 0 else GRADIENT
