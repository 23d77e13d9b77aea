"""What an episode computes after the rollout, as one program; run as a script, on one device and on eight.

Six answers to two prompts, of at most six tokens in ten places.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.rl import advantages, estimates, policy_losses

ROWS, PLACES, LONGEST, GROUP = 6, 10, 6, 3
TOKENS = ("new", "old", "reference", "values", "old_values")  # (B, T)
BY_ROW = ("rewards", "advantages", "returns", "whitened", "new_gradient", "values_gradient", "in_group", "scaled")


def inputs(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Arrays of an episode with real tokens at the first places; each answer has at least one."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(rows, PLACES)).astype(np.float32) for name in TOKENS}
    mask = np.arange(PLACES) < rng.integers(1, LONGEST + 1, rows)[:, None]
    return arrays | {"scores": rng.normal(size=rows).astype(np.float32), "mask": mask}


def targets(arrays):
    """Rewards, advantages, returns: over the complete episode."""
    mask, old = arrays["mask"], arrays["old"]
    log_ratios = old - arrays["reference"]
    rewards = advantages.token_rewards(arrays["scores"], log_ratios, mask, coefficient=0.1)
    estimated, returns = advantages.gae(rewards, arrays["old_values"], mask, discount=0.99, decay=0.9)
    return {
        "rewards": rewards,
        "advantages": estimated,
        "returns": returns,
        "whitened": advantages.whiten(estimated, mask),
        "in_group": advantages.centred_in_group(arrays["scores"], group=GROUP),
        "scaled": advantages.scaled_in_group(arrays["scores"], group=GROUP),
        "explained": estimates.explained_variance(arrays["old_values"], returns, mask),
    }


def losses(new, values, arrays):
    """The losses by name, on the rows of a microbatch; `arrays` has its targets, too."""
    old, mask = arrays["old"], arrays["mask"]
    result = {
        "policy": policy_losses.policy_loss(new, old, arrays["whitened"], mask),
        "value": policy_losses.value_loss(values, arrays["old_values"], arrays["returns"], mask),
    }
    for average in ("sequence", "token", "constant"):
        result[average] = policy_losses.group_policy_loss(
            *(new, old, arrays["in_group"], mask),
            average=average,
            width=LONGEST,
            reference_BT=arrays["reference"],
            coefficient=0.1,
        )
    return result


def sums(arrays):
    """The sums of all losses, and the gradients of their sum."""

    def total(new, values):
        result = losses(new, values, arrays)
        return sum(loss.loss for loss in result.values()), result

    gradients, result = jax.grad(total, argnums=(0, 1), has_aux=True)(arrays["new"], arrays["values"])
    by_name = {f"{name}_{key}": value for name, loss in result.items() for key, value in loss.sums.items()}
    by_name |= {f"{name}_loss": loss.loss for name, loss in result.items()}
    by_name |= {f"{name}_weight": loss.weight for name, loss in result.items()}
    return by_name | {"new_gradient": gradients[0], "values_gradient": gradients[1]}


targets_of, sums_of = jax.jit(targets), jax.jit(sums)


def results(arrays):
    """Everything that an episode of one minibatch computes."""
    computed = targets_of(arrays)
    return computed | sums_of(arrays | computed)


def compare_devices() -> float:
    """The largest difference between one device and eight, relative to the largest number of an array."""
    arrays = inputs(0, rows=24)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    alone = results({name: jnp.asarray(array) for name, array in arrays.items()})
    divided = results({name: jax.device_put(array, rows) for name, array in arrays.items()})
    assert divided["whitened"].sharding.device_set == set(jax.devices())
    scale = {name: max(float(jnp.abs(x).max()), 1e-3) for name, x in alone.items()}
    return max(float(np.abs(np.asarray(alone[name]) - np.asarray(divided[name])).max()) / scale[name] for name in alone)


if __name__ == "__main__":
    print(json.dumps({"devices": jax.device_count(), "difference": compare_devices()}))
