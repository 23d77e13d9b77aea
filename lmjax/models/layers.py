"""Building blocks of the models: products, norms, nonlinearities, embeddings, positions.

Shapes: B batch, T positions, D width, F features out, M MLP width, H heads, K head size, V vocabulary, `...` any axes.

Activations are float32 (float64 for parameters in float64). `dtype` is only the dtype to which products round their
inputs. Products accumulate, and return their result, in the dtype of the activations.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from lmjax.parallel import axes

# ---- Products ---------------------------------------------------------------------------------------------------


def rounded(x: Array, dtype: str) -> Array:
    """Round `x` for a product: to bfloat16 if `dtype` is bfloat16, else unchanged."""
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


def product(x: Array, w: Array, axis: int = 0, dtype: str = "float32", where: axes.Held | None = None) -> Array:
    """Multiply x (..., D) by a matrix -> (..., F), in the dtype of `x`.

    The gradients round their inputs and accumulate like the product. The weight gradient contracts the rows directly:
    XLA's own transpose rule would copy both factors on CPU, a quarter of a small model's time.

    Args:
        x: The rows.
        w: The matrix, (D, F) with `axis` 0 or (F, D) with `axis` 1.
        axis: The axis of w that is contracted.
        dtype: Dtype to which both factors are rounded.
        where: Shardings of w; it is rounded, then gathered, separately in the forward and in the backward pass.
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
    if left.dtype == jnp.bfloat16:  # the fast bfloat16 kernel on CPU needs the contracted axes last
        columns = row_major(jnp.moveaxis(left, -1, 0))
        return dx, axes.stored(_dot(columns, right, tuple(range(1, g.ndim)), rows, g.dtype), where)
    return dx, axes.stored(_dot(left, right, rows, rows, g.dtype), where)


_product = jax.custom_vjp(lambda *args: _product_forward(*args)[0], nondiff_argnums=(2, 3, 4))
_product.defvjp(_product_forward, _product_backward)


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], dtype: Any) -> Array:
    y = lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=dtype)
    # XLA for CPU (jax 0.10 to 0.12) fails on a bfloat16 product whose result it stores transposed.
    return row_major(y) if a.dtype == jnp.bfloat16 else y


def row_major(x: Array) -> Array:
    """Force a row-major memory layout of `x` on CPU.

    A transpose before it becomes a copy; a transpose after it is not fused with the product. With several CPU devices
    jax 0.10 gathers `x` on each device for this (0.12 does not).
    """
    layout = Layout(tuple(range(x.ndim)))
    return lax.platform_dependent(x, cpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x)


def weight(module: nn.Module, name: str, start: Any, shape: tuple[int, ...]) -> Array:
    """Create a parameter of a module, gathered for computation."""
    return axes.gathered(module.param(name, start, shape), axes.held(module.name, name))


class Dense(nn.Module):
    """x W + b over the last axis; the initial b is zero."""

    #: Number of features F of the result.
    features: int
    #: Standard deviation of the normal distribution of the initial W; None: uniform within +-sqrt(6 / (D + F))
    #: (Glorot and Bengio 2010).
    std: float | None
    #: Whether there is a bias b.
    bias: bool = True
    #: Dtype to which the product rounds its inputs.
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x (..., D) to (..., F)."""
        start = nn.initializers.glorot_uniform() if self.std is None else nn.initializers.normal(self.std)
        kernel_DF = self.param("kernel", start, (x.shape[-1], self.features))
        y = product(x, kernel_DF, 0, self.dtype, axes.held(self.name, "kernel"))
        return y + weight(self, "bias", nn.initializers.zeros, (self.features,)) if self.bias else y


# ---- Elementwise functions --------------------------------------------------------------------------------------

# For functions that are cheaper to recompute in the backward pass than to store: only their arguments are saved.
recomputed = partial(jax.checkpoint, prevent_cse=False)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis."""

    #: `layernorm` or `rmsnorm` (no centring, no bias).
    kind: str
    #: Added to the variance.
    epsilon: float
    #: Whether a LayerNorm has a bias.
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise x (..., D)."""
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
    """Apply the nonlinearity `kind` of GPTConfig, except `swiglu`; `gelu` is the erf form."""
    match kind:
        case "gelu":  # by erf: jax.nn.gelu uses erfc, which takes twice as long on CPU
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
    """Zero elements with probability `rate` and scale the rest by 1 / (1 - rate).

    Without a key `x` is returned unchanged.
    """
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


# ---- Embeddings and positions -----------------------------------------------------------------------------------


class Embedding(nn.Module):
    """A table of vectors. An index out of range gives NaN, which makes the error visible."""

    #: Number of rows V.
    size: int
    #: Features D of a row.
    width: int
    #: Standard deviation of the normal distribution of the initial table.
    std: float
    #: Dtype to which the product of `logits` rounds its inputs.
    dtype: str = "float32"

    def setup(self) -> None:
        """Create the submodules and parameters."""
        self.embedding = self.param("embedding", nn.initializers.normal(self.std), (self.size, self.width))

    def __call__(self, ids: Array) -> Array:
        """The rows (..., D) of integer ids (...)."""
        return _wide(jnp.take(self._whole(), ids, axis=0, mode="fill"))

    def first(self, count: int) -> Array:
        """The first rows (count, D), as a slice."""
        return _wide(self._whole()[:count])

    def logits(self, x: Array) -> Array:
        """The tied output layer (Press and Wolf 2017): x (..., D) times the table -> (..., V)."""
        return product(x, self.embedding, 1, self.dtype, axes.held(self.name, "embedding"))

    def _whole(self) -> Array:
        return axes.gathered(self.embedding, axes.held(self.name, "embedding"))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sinusoids(count: int, width: int) -> Array:
    """Sinusoidal position encodings (count, width) of Vaswani et al. 2017, section 3.5.

    Position p has sin(p / 10000^(2i/width)) at feature 2i, and the cosine at 2i + 1. float32, from angles in double
    precision.
    """
    features = np.arange(width)
    angles = np.arange(count)[:, None] / 10_000.0 ** (features // 2 * 2 / width)
    return jnp.asarray(np.where(features % 2 == 0, np.sin(angles), np.cos(angles)), jnp.float32)


def rotation(
    positions_BT: Array, head_dim: int, theta: float, dtype: Any, scaling: tuple[float, ...] = ()
) -> tuple[Array, Array]:
    """Cosines and sines (B, T, 1, K/2) of the angles of rotary positions.

    The angles are position * theta^(-2i/K) (Su et al. 2021, section 3.2.2).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angles = positions_BT[..., None, None].astype(dtype) * _stretched(frequencies, scaling)
    return jnp.cos(angles), jnp.sin(angles)


def _stretched(frequencies: Array, scaling: tuple[float, ...]) -> Array:
    """Scale rotary frequencies for a longer context by `GPTConfig.rope_scaling`.

    With (factor, low, high, context): a frequency with fewer than `low` turns within the old context is divided by
    `factor`, one with more than `high` turns is unchanged, and in between the two are interpolated.
    """
    if not scaling:
        return frequencies
    factor, *bounds = scaling
    if not bounds:
        return frequencies / factor
    low, high, context = bounds
    turns = context * frequencies / (2 * jnp.pi)
    unscaled = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (unscaled + (1 - unscaled) / factor)


def rotate(x_BTHK: Array, cosine: Array, sine: Array) -> Array:
    """Rotate features i and i + K/2 by the i-th angle.

    This is the half-split form of GPT-NeoX and of LLaMA in Hugging Face transformers.
    """
    a, b = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


# ---- MLP --------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """down(act(up(x))), or down(swiglu(up(x), gate(x)))."""

    #: Number of hidden features M.
    width: int
    #: The nonlinearity, as in GPTConfig.
    activation: str
    #: `std` of `Dense` for `up` and `gate`.
    std: float | None
    #: `std` of `Dense` for `down`.
    output_std: float | None
    #: Whether the layers have biases.
    bias: bool = True
    #: Dtype to which products round their inputs.
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Map x (B, T, D) to (B, T, D)."""
        dense = partial(Dense, bias=self.bias, dtype=self.dtype)
        up_BTM = axes.constrain(dense(self.width, self.std, name="up")(x_BTD), "batch", "length", "mlp")
        if self.activation == "swiglu":
            gate_BTM = axes.constrain(dense(self.width, self.std, name="gate")(x_BTD), "batch", "length", "mlp")
            hidden_BTM = recomputed(swiglu)(up_BTM, gate_BTM)
        else:
            hidden_BTM = recomputed(partial(activate, kind=self.activation))(up_BTM)
        return dense(x_BTD.shape[-1], self.output_std, name="down")(hidden_BTM)
