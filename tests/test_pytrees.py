import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax import pytrees


class Moments(NamedTuple):
    mean: jax.Array
    square: jax.Array


def example_tree():
    rng = np.random.default_rng(0)
    return {
        "blocks": {"kernel": jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32)},
        "moments": Moments(jnp.ones(4, jnp.bfloat16), jnp.arange(4, dtype=jnp.int32)),
        "list": [
            jnp.zeros((0, 3)),
            jnp.float32(2.0),
            jnp.array([True, False]),
            jnp.arange(5, dtype=jnp.uint8),
        ],
        "rng": jax.random.key(3),
        "nothing": None,
    }


def literal_digest(tree) -> str:
    """The same hash, element by element in Python integers."""
    import hashlib

    def mix(h, s1, f1, s2, f2, s3):
        h = (h ^ (h >> s1)) * f1 % 2**32
        h = (h ^ (h >> s2)) * f2 % 2**32
        return h ^ (h >> s3)

    result = hashlib.sha256()
    for name, leaf in zip(pytrees.leaf_names(tree), jax.tree.leaves(tree), strict=True):
        key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if key else leaf)
        bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
        low = high = 0
        for i, (where, value) in enumerate(np.ndenumerate(bits)):
            weights = [0x85EBCA77 * 0x9E3779B1**n % 2**32 for n in range(len(where))][::-1]
            second = sum(w * c for w, c in zip(weights, where, strict=True))
            low += mix(int(value) ^ i * 0x9E3779B1 % 2**32, 16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
            high += mix((int(value) + second) % 2**32, 16, 0x7FEB352D, 15, 0x846CA68B, 16)
        result.update(f"{name} {leaf.shape} {leaf.dtype} {low % 2**32:08x}{high % 2**32:08x}\n".encode())
    return result.hexdigest()


def test_names_are_paths():
    tree = example_tree()
    assert pytrees.leaf_names(tree) == [
        "blocks/kernel",
        "list/0",
        "list/1",
        "list/2",
        "list/3",
        "moments/mean",
        "moments/square",
        "rng",
    ]


def test_counts_and_bytes_of_arrays_and_of_shapes():
    tree = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5, jnp.bfloat16), "c": jnp.zeros(())}
    assert pytrees.count(tree) == 18
    assert pytrees.nbytes(tree) == 12 * 4 + 5 * 2 + 4
    shapes = jax.eval_shape(lambda: tree)
    assert (pytrees.count(shapes), pytrees.nbytes(shapes)) == (18, 62)


def test_digest_equals_a_literal_loop_over_python_integers():
    assert pytrees.digest(example_tree()) == literal_digest(example_tree())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "uint32"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_digest_changes_with_every_flipped_bit(dtype, data):
    shape = (3, 5)
    size = jnp.dtype(dtype).itemsize
    raw = np.random.default_rng(1).integers(0, 256, 15 * size, dtype=np.uint8)
    bit = data.draw(st.integers(0, 15 * size * 8 - 1))
    flipped = raw.copy()
    flipped[bit // 8] ^= 1 << bit % 8
    a, b = (jnp.asarray(r.view(jnp.dtype(dtype)).reshape(shape)) for r in (raw, flipped))
    assert pytrees.digest({"x": a}) != pytrees.digest({"x": b})


@settings(max_examples=20, deadline=None)
@given(i=st.integers(0, 59), j=st.integers(0, 59))
def test_digest_changes_with_two_swapped_elements(i, j):
    x = np.random.default_rng(2).standard_normal((3, 4, 5)).astype(np.float32)
    y = x.copy()
    y.reshape(-1)[[i, j]] = x.reshape(-1)[[j, i]]
    assert (pytrees.digest([x]) == pytrees.digest([y])) == (i == j)


def test_digest_sees_names_shapes_dtypes_and_order():
    x, y = jnp.arange(6.0), jnp.arange(6.0) + 1
    trees = [
        {"a": x, "b": y},
        {"a": y, "b": x},
        {"a": x, "c": y},
        {"a": x.reshape(2, 3), "b": y},
        {"a": x.view(jnp.int32), "b": y},
        {"a": x},
        {"a": x, "b": y, "c": jnp.zeros((0,))},
        {"a": x, "b": y, "c": jnp.zeros((0, 1))},
        {"a": -0.0 * x, "b": y},
        {"a": 0.0 * x, "b": y},
        {},
    ]
    assert len({pytrees.digest(tree) for tree in trees}) == len(trees)


def test_digest_of_host_arrays_keeps_all_64_bits():
    x = np.arange(5, dtype=np.int64)
    assert pytrees.digest([x]) != pytrees.digest([x + 2**40])
    assert pytrees.digest([x.astype(np.float64)]) != pytrees.digest([x + 1e-12])
    assert pytrees.digest([7]) != pytrees.digest([8])
    assert pytrees.digest([np.float32(1)]) == pytrees.digest([jnp.float32(1)])


def test_digest_of_nan_is_of_its_bits():
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert pytrees.digest([quiet]) != pytrees.digest([other])


EIGHT_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from lmjax import pytrees
a = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
tree = {"a": a, "b": np.arange(16, dtype=np.uint8), "c": np.float32(1)}
assert len(jax.devices()) == 8
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
for a, b in [(P(), P()), (P("x"), P("y")), (P("x", "y"), P(("x", "y"))), (P(None, "y"), P())]:
    specs = {"a": a, "b": b, "c": P()}
    put = {name: jax.device_put(array, NamedSharding(mesh, specs[name])) for name, array in tree.items()}
    print(pytrees.digest(put))
"""


@pytest.mark.slow
def test_digest_is_the_same_on_one_and_on_eight_devices():
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.standard_normal((8, 24)).astype(np.float32),
        "b": np.arange(16, dtype=np.uint8),
        "c": np.float32(1),
    }
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join(path for path in sys.path if path)
    out = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env=os.environ | flags | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == [pytrees.digest(tree)] * 4
