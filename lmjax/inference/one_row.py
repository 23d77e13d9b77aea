"""The product of a single row with a matrix on a CPU, at the speed of reading the matrix.

XLA's own product reads float32 with one core, and bfloat16 at a quarter of that speed. Written as sums of a few terms,
each product becomes two loops without branches, which XLA distributes over the cores by rows of the matrix.

Shapes: D features in (P pairs of them), F features out, n groups of terms.
"""

from functools import reduce
from operator import add

import jax.numpy as jnp
from jax import Array, lax

_TERMS = 16  # summed by one loop; for more terms XLA emits a loop for each term


def laid_out(w_DF: Array, dtype: str) -> Array:
    """Lay out a matrix for `times`: append zero rows, and pack bfloat16 rows in pairs (P, F)."""
    D = len(w_DF)
    multiple = _TERMS if D <= 2 * _TERMS**2 else _TERMS**2
    w_DF = jnp.pad(w_DF, ((0, -D % multiple), (0, 0)))
    if dtype != "bfloat16":
        return w_DF
    bits_DF = lax.bitcast_convert_type(w_DF.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    return bits_DF[::2] | (bits_DF[1::2] << 16)


def times(x_D: Array, w: Array) -> Array:
    """Multiply x (D) by the matrix that `laid_out` converted -> (F), accumulated in float32."""
    x_D, w = lax.optimization_barrier((x_D, w))  # otherwise XLA unpacks all matrices before the loop
    F, pairs = w.shape[1], w.dtype == jnp.uint32
    if pairs:
        x_D = lax.reduce_precision(x_D, 8, 7)
    x_D = jnp.pad(x_D, (0, len(w) * (2 if pairs else 1) - len(x_D)))
    x_nT = x_D.reshape(-1, _TERMS)
    w = w.reshape(len(x_nT), -1, F)
    each = [w[:, i] for i in range(w.shape[1])]
    rows = [row for two in each for row in _unpacked(two)] if pairs else each
    sums_nF = reduce(add, (x_nT[:, i, None] * row_nF for i, row_nF in enumerate(rows)))
    while len(sums_nF) > 2 * _TERMS:
        parts = sums_nF.reshape(-1, _TERMS, F)
        sums_nF = reduce(add, (parts[:, i] for i in range(_TERMS)))
    return reduce(add, (sums_nF[i] for i in range(len(sums_nF))))


def _unpacked(pairs: Array) -> tuple[Array, Array]:
    """Both numbers of each pair; their bits are the upper half of a float32."""
    lower, upper = pairs << 16, pairs & jnp.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(lower, jnp.float32), lax.bitcast_convert_type(upper, jnp.float32)
