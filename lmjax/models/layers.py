"""The parts every model is made of: products, norms, nonlinearities, dropout, embeddings, rotary positions, the MLP.

Shapes: B batch, T positions, D width, F features out, M MLP width, H heads, K head size, V vocabulary, `...` any axes.

Activations are float32 (float64 for parameters in float64). `dtype` says only what products round their inputs to:
they always add up, and give their result, in the activations' dtype.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from lmjax import axes

# ---- Products ---------------------------------------------------------------------------------------------------


def rounded(x: Array, dtype: str) -> Array:
    """`x` as a product reads it: in bfloat16 if `dtype` says so, else as it is."""
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


def product(x: Array, w: Array, axis: int = 0, dtype: str = "float32", where: axes.Held | None = None) -> Array:
    """x (..., D) times w, which is (D, F) with `axis` 0 or (F, D) with `axis` 1 -> (..., F), in the dtype of `x`.

    where: the devices that keep w, and those that compute with it; it is gathered rounded, in each pass anew.
    Its gradients round their inputs and add up as it does itself. The weight gradient contracts the rows directly:
    XLA's own transpose rule would copy both factors on CPU, a quarter of a small model's time.
    """
    return _product(x, w, axis, dtype, where)


def _product_forward(
    x: Array, w: Array, axis: int, dtype: str, where: axes.Held | None
) -> tuple[Array, tuple[Array, Array]]:
    x_saved, w_saved = rounded(x, dtype), axes.stored(rounded(w, dtype), where)
    return _dot(x_saved, axes.gathered(w_saved, where), (x.ndim - 1,), (axis,), x.dtype), (x_saved, w_saved)


def _product_backward(
    axis: int, dtype: str, where: axes.Held | None, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, w = saved
    g_rounded, rows, last = rounded(g, dtype), tuple(range(g.ndim - 1)), g.ndim - 1
    dx = _dot(g_rounded, axes.gathered(w, where), (last,), (1 - axis,), g.dtype)
    left, right = (x, g_rounded) if axis == 0 else (g_rounded, x)
    if left.dtype == jnp.bfloat16:  # whose fast kernel on CPU wants the contracted axes last
        columns = row_major(jnp.moveaxis(left, -1, 0))
        return dx, axes.stored(_dot(columns, right, tuple(range(1, g.ndim)), rows, g.dtype), where)
    return dx, axes.stored(_dot(left, right, rows, rows, g.dtype), where)


_product = jax.custom_vjp(lambda *args: _product_forward(*args)[0], nondiff_argnums=(2, 3, 4))
_product.defvjp(_product_forward, _product_backward)


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], dtype: Any) -> Array:
    y = lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=dtype)
    # XLA for CPU (jax 0.10 to 0.12) refuses a bfloat16 product whose result it has decided to store transposed.
    return row_major(y) if a.dtype == jnp.bfloat16 else y


def row_major(x: Array) -> Array:
    """`x`, on CPU laid out in memory row by row: a transpose before it is a copy, one after it stays outside.

    Among several CPU devices jax 0.10 gathers `x` on each of them for this (0.12 does not).
    """
    layout = Layout(tuple(range(x.ndim)))
    return lax.platform_dependent(x, cpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x)


def weight(module: nn.Module, name: str, start: Any, shape: tuple[int, ...]) -> Array:
    """A parameter of a module, as it is computed with."""
    return axes.gathered(module.param(name, start, shape), axes.held(module.name, name))


class Dense(nn.Module):
    """x W + b over the last axis; b starts at zero.

    `std`: of the normal distribution W starts from; None: uniform, within +-sqrt(6 / (D + F)) (Glorot and Bengio 2010).
    """

    features: int
    std: float | None
    bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.glorot_uniform() if self.std is None else nn.initializers.normal(self.std)
        kernel_DF = self.param("kernel", start, (x.shape[-1], self.features))
        y = product(x, kernel_DF, 0, self.dtype, axes.held(self.name, "kernel"))
        return y + weight(self, "bias", nn.initializers.zeros, (self.features,)) if self.bias else y


# ---- Elementwise functions --------------------------------------------------------------------------------------

# For what is cheaper to compute again in the backward pass than to keep in between: only its arguments are kept.
recomputed = partial(jax.checkpoint, prevent_cse=False)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019, no centring, no bias) over the last axis."""

    kind: str
    epsilon: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:])
        if self.kind == "rmsnorm":
            return recomputed(_rms_norm)(x, scale, self.epsilon)
        bias = weight(self, "bias", nn.initializers.zeros, x.shape[-1:]) if self.bias else None
        return recomputed(_layer_norm)(x, scale, bias, self.epsilon)


def _rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon) * scale


def _layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    y = _rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), scale, epsilon)
    return y if bias is None else y + bias


def activate(x: Array, kind: str) -> Array:
    """The nonlinearity called `kind` in GPTConfig, but for `swiglu`; `gelu` is the form with erf."""
    match kind:
        case "gelu":  # by erf, since erfc, which jax.nn.gelu has, takes twice as long on CPU
            return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu(x)
    raise AssertionError(kind)


def swiglu(up: Array, gate: Array) -> Array:
    """silu(gate) * up (Shazeer 2020)."""
    return jax.nn.silu(gate) * up


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeros elements with probability `rate` and scales the others by 1 / (1 - rate); nothing without a key."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


# ---- Embeddings and positions -----------------------------------------------------------------------------------


class Embedding(nn.Module):
    """A table of vectors. An index outside it gives NaN, so that the mistake shows."""

    size: int
    width: int
    std: float
    dtype: str = "float32"

    def setup(self) -> None:
        self.embedding = self.param("embedding", nn.initializers.normal(self.std), (self.size, self.width))

    def __call__(self, ids: Array) -> Array:
        """The rows (..., D) of integer ids (...)."""
        return _wide(jnp.take(self._whole(), ids, axis=0, mode="fill"))

    def first(self, count: int) -> Array:
        """The first rows (count, D), without a look-up."""
        return _wide(self._whole()[:count])

    def logits(self, x: Array) -> Array:
        """The tied output layer (Press and Wolf 2017): x (..., D) times the table -> (..., V)."""
        return product(x, self.embedding, 1, self.dtype, axes.held(self.name, "embedding"))

    def _whole(self) -> Array:
        return axes.gathered(self.embedding, axes.held(self.name, "embedding"))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sinusoids(count: int, width: int) -> Array:
    """Positions 0, 1, ... as vectors (count, width): sin(p / 10000^(2i/width)) at feature 2i, its cosine at 2i + 1.

    Vaswani et al. 2017, section 3.5. float32, from angles in double precision.
    """
    features = np.arange(width)
    angles = np.arange(count)[:, None] / 10_000.0 ** (features // 2 * 2 / width)
    return jnp.asarray(np.where(features % 2 == 0, np.sin(angles), np.cos(angles)), jnp.float32)


def rotation(
    positions_BT: Array, head_dim: int, theta: float, dtype: Any, scaling: tuple[float, ...] = ()
) -> tuple[Array, Array]:
    """Cosines and sines (B, T, 1, K/2) of the angles position * theta^(-2i/K) (Su et al. 2021, section 3.2.2)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angles = positions_BT[..., None, None].astype(dtype) * _stretched(frequencies, scaling)
    return jnp.cos(angles), jnp.sin(angles)


def _stretched(frequencies: Array, scaling: tuple[float, ...]) -> Array:
    """Frequencies for a longer context, as GPTConfig.rope_scaling says.

    With (factor, low, high, context): what turns fewer than `low` times within the old context is divided by the
    factor, what turns more than `high` times stays, in between the two are mixed.
    """
    if not scaling:
        return frequencies
    factor, *bounds = scaling
    if not bounds:
        return frequencies / factor
    low, high, context = bounds
    turns = context * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rotate(x_BTHK: Array, cosine: Array, sine: Array) -> Array:
    """Turns features i and i + K/2 by the i-th angle: the half-split form of GPT-NeoX and Hugging Face's LLaMA."""
    a, b = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


# ---- MLP --------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """down(act(up(x))), or down(swiglu(up(x), gate(x))).

    `std` and `output_std`: of the initial weights into and out of the M features, as Dense has it.
    """

    width: int
    activation: str
    std: float | None
    output_std: float | None
    bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        dense = partial(Dense, bias=self.bias, dtype=self.dtype)
        up_BTM = axes.constrain(dense(self.width, self.std, name="up")(x_BTD), "batch", "length", "mlp")
        if self.activation == "swiglu":
            gate_BTM = axes.constrain(dense(self.width, self.std, name="gate")(x_BTD), "batch", "length", "mlp")
            hidden_BTM = recomputed(swiglu)(up_BTM, gate_BTM)
        else:
            hidden_BTM = recomputed(partial(activate, kind=self.activation))(up_BTM)
        return dense(x_BTD.shape[-1], self.output_std, name="down")(hidden_BTM)
