from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmjax import pytrees
from lmjax.config import GuardConfig, OptimizerConfig
from lmjax.optim import optimizer
from lmjax.training.state import abstract_state, init_state


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, inputs_BT, *, train=False):
        kernel = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "vocab"))
        return nn.Dense(7, kernel_init=kernel)(nn.Embed(7, 4)(inputs_BT))


OPTIMIZER = optimizer.make_optimizer(OptimizerConfig())


@cache
def make(**options):
    return jax.jit(partial(init_state, Tiny(), OPTIMIZER, guard=GuardConfig(), **options))()


@pytest.mark.slow
def test_init_is_a_function_of_the_seed():
    again = jax.jit(partial(init_state, Tiny(), OPTIMIZER, seed=1, guard=GuardConfig()))()
    assert pytrees.digest(make(seed=1)) == pytrees.digest(again) != pytrees.digest(make(seed=2))


def test_state_starts_at_update_zero_with_plain_arrays():
    state = make(seed=1)
    assert int(state.update) == 0
    assert state.update.dtype == jnp.int32
    assert state.ema is None
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert set(pytrees.leaf_names(state.params)) == {"Dense_0/bias", "Dense_0/kernel", "Embed_0/embedding"}


def test_average_starts_at_the_parameters_in_buffers_of_its_own():
    state = make(seed=1, ema=True)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    shifted = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)  # needs distinct buffers
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert int(shifted.update) == 1


def test_init_needs_no_memory_to_know_its_shapes_and_takes_shardings():
    shapes = jax.eval_shape(partial(init_state, Tiny(), OPTIMIZER, seed=1, guard=GuardConfig()))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    where = jax.tree.map(lambda _: sharding, shapes)
    state = jax.jit(partial(init_state, Tiny(), OPTIMIZER, seed=1, guard=GuardConfig()), out_shardings=where)()
    assert pytrees.digest(state) == pytrees.digest(make(seed=1))

    described = abstract_state(state)
    assert jax.tree.structure(described) == jax.tree.structure(shapes)
    for leaf, array in zip(jax.tree.leaves(described), jax.tree.leaves(state), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (array.shape, array.dtype, sharding)


@pytest.mark.parametrize("length", [1, 9])
def test_shapes_do_not_depend_on_the_inputs(length):
    inputs = (jnp.zeros((2, length), jnp.int32),)
    state = jax.jit(lambda: init_state(Tiny(), OPTIMIZER, seed=1, guard=GuardConfig(), inputs=inputs))()
    assert pytrees.digest(state) == pytrees.digest(make(seed=1))
