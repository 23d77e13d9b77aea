"""Names, sizes and digests of the leaves of a pytree."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def leaf_names(tree: Any) -> list[str]:
    """Return the path of every leaf, in leaf order, like `blocks/attention/query/kernel`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def path_name(path: tuple[Any, ...]) -> str:
    """Return the name of a key path, as `jax.tree_util.tree_map_with_path` passes it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def count(tree: Any) -> int:
    """Return the number of elements; leaves are arrays or `ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Return the number of bytes over all devices, without replication."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every floating-point leaf is finite; computed on the devices of the leaves."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all() if leaves else jnp.bool_(True)


def digest(tree: Any) -> str:
    """Return one hash (64 hexadecimal digits) of every leaf's bits, name, shape and dtype.

    The devices of a leaf hash its bits by integer sums that do not depend on the order of summation. The digest is
    therefore the same on one device and on eight, and only 64 bits per leaf return to the host. It detects accidents (a
    flipped bit, swapped elements, swapped leaves), not attacks; the sha256 in a manifest protects files.
    """
    leaves = jax.tree.leaves(tree)
    words = jax.device_get(_digest_words([_hashable(leaf) for leaf in leaves]))
    result = hashlib.sha256()
    for name, leaf, (low, high) in zip(leaf_names(tree), leaves, words, strict=True):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        result.update(f"{name} {np.shape(leaf)} {dtype} {low:08x}{high:08x}\n".encode())
    return result.hexdigest()


def _hashable(leaf: Any) -> Any:
    """Convert a leaf to an array that a jitted function accepts without a change of its bits."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.itemsize == 8:  # without x64, JAX would cut 64-bit host values to 32
        array = np.ascontiguousarray(array)[..., None].view(np.uint32)
    return array


@jax.jit
def _digest_words(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_mixed_sums(leaf) for leaf in leaves]


@jax.jit  # leaves of one shape and dtype are traced once
def _mixed_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two sums mod 2^32 over the elements, each element's bits mixed with its position.

    The first sum identifies an element by its row-major index (unique below 2^32 elements), the second by other
    multiples of its coordinates. The mixers are the 32-bit finalisers of MurmurHash3 (Appleby) and of
    Wellons's `lowbias32`. One variadic reduction makes XLA read the leaf once.
    """
    bits = _bits(x)
    first = second = jnp.zeros(bits.shape, jnp.uint32)
    stride, weight = 1, 0x85EBCA77
    for axis in reversed(range(bits.ndim)):
        coordinate = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        first += coordinate * jnp.uint32(stride % 2**32)
        second += coordinate * jnp.uint32(weight)
        stride, weight = stride * bits.shape[axis], weight * 0x9E3779B1 % 2**32
    first = _mix(bits ^ first * jnp.uint32(0x9E3779B1), 16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
    second = _mix(bits + second, 16, 0x7FEB352D, 15, 0x846CA68B, 16)
    zero = jnp.uint32(0)
    low, high = lax.reduce(
        (first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(bits.ndim))
    )
    return low, high


def _mix(h: jax.Array, shift1: int, factor1: int, shift2: int, factor2: int, shift3: int) -> jax.Array:
    h = (h ^ (h >> shift1)) * jnp.uint32(factor1)
    h = (h ^ (h >> shift2)) * jnp.uint32(factor2)
    return h ^ (h >> shift3)


def _bits(x: jax.Array) -> jax.Array:
    """Return the elements' bits as uint32; 64 bits become two values on a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        return lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
