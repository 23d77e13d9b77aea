"""The recurrent language model, simple (Elman 1990), LSTM or GRU, set by RNNConfig.

Shapes: B batch, T positions, L layers, H units of a layer and features of a token (width), G pre-activations of a
layer (H for each of the cell's 1, 4 or 3 gates), V vocabulary. Internally time is the first axis, for the scan.

    leaf                        shape   initial value
    token_embedding/embedding   (V, H)  normal(1), so that states distinguish tokens; tied: normal(1 / sqrt(H))
    layer_i/input/kernel        (H, G)  normal(1 / sqrt(H))
    layer_i/bias                (G)     0; `forget_bias` for the forget gates of an LSTM
    layer_i/recurrent/kernel    (H, G)  orthogonal for each gate (Saxe et al. 2014), so that states keep their size
    layer_i/recurrent/bias      (H)     0; GRU only, of the candidate's product with the state
    head/kernel, bias           (H, V)  normal(1 / sqrt(H)), 0; tied: the embedding, no bias

With tied embeddings the looked-up rows are multiplied by sqrt(H) (Vaswani et al. 2017, section 3.4): initial features
have the same scale, and initial logits are no larger.
Gates are concatenated in PyTorch's order: input, forget, cell, output of an LSTM; reset, update, new of a GRU.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from lmjax.config import RNNConfig
from lmjax.models.family import Family
from lmjax.models.layers import Dense, Embedding, dropout, product, weight

Carry = dict[str, Array]  # the state: "h", and "c" of an LSTM
GATES = {"tanh": 1, "lstm": 4, "gru": 3}

# See gpt.LOGICAL_AXES.
LOGICAL_AXES = {
    "token_embedding/embedding": ("rows", "embed"),
    "input/kernel": ("embed", "gates"),
    "recurrent/kernel": ("embed", "gates"),
    "recurrent/bias": ("features",),
    "bias": ("gates",),
    "head/kernel": ("embed", "rows"),
    "head/bias": ("rows",),
}

# ---- The cells --------------------------------------------------------------------------------------------------


def _from_value(f: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Give f a derivative computed from its value, so that the backward pass keeps one array."""
    function = jax.custom_vjp(f)
    function.defvjp(lambda x: (y := f(x), y), lambda y, dy: (dy * slope(y),))
    return function


tanh = _from_value(jnp.tanh, lambda y: 1 - jnp.square(y))
sigmoid = _from_value(jax.nn.sigmoid, lambda y: y * (1 - y))


def cell(kind: str, a_BG: Array, r_BG: Array, carry: Carry) -> Carry:
    """The next state from the products of the input (a) and of the previous state (r)."""
    match kind:
        case "tanh":
            return {"h": tanh(a_BG + r_BG)}
        case "lstm":  # Gers et al. 2000
            i_BH, f_BH, g_BH, o_BH = jnp.split(a_BG + r_BG, 4, axis=-1)
            c_BH = sigmoid(f_BH) * carry["c"] + sigmoid(i_BH) * tanh(g_BH)
            return {"h": sigmoid(o_BH) * tanh(c_BH), "c": c_BH}
        case "gru":  # Cho et al. 2014, except that the reset gate acts after the product
            (ar_BH, az_BH, an_BH), (rr_BH, rz_BH, rn_BH) = (jnp.split(x, 3, axis=-1) for x in (a_BG, r_BG))
            n_BH = tanh(an_BH + sigmoid(ar_BH + rr_BH) * rn_BH)
            return {"h": n_BH + sigmoid(az_BH + rz_BH) * (carry["h"] - n_BH)}
    raise AssertionError(kind)


# ---- The scan over time with its own gradient -------------------------------------------------------------------
#
# Only a step's product with the recurrent weights depends on the previous step. In the backward pass the same holds for
# the gradients of the pre-activations, so the scan computes only those. The weights' gradient is then one product over
# all steps; differentiating the scan would accumulate T small products.


def unrolled(
    kind: str,
    a_TBG: Array,
    kernel_HG: Array,
    bias_G: Array | None,
    carry: Carry,
    keep_TB: Array | None,
    nudge_TBH: Array | None = None,
) -> tuple[Array, Carry, Any]:
    """Scan over time: hidden states (T, B, H), the last state, and the pull-back of each step.

    Args:
        kind: The cell.
        a_TBG: Pre-activations from the input.
        kernel_HG: Recurrent weights.
        bias_G: Recurrent bias.
        carry: The initial state.
        keep_TB: 0 where the state is reset before the step.
        nudge_TBH: Added to each hidden state.
    """

    def step(carry: Carry, at: tuple[Array, Array | None, Array | None]) -> tuple[Carry, tuple[Array, Any]]:
        a_BG, keep_B, nudge_BH = at
        carry = _kept(carry, keep_B)
        r_BG = carry["h"] @ kernel_HG
        r_BG = r_BG if bias_G is None else r_BG + bias_G
        carry, pull = jax.vjp(partial(cell, kind), a_BG, r_BG, carry)
        if nudge_BH is not None:
            carry = carry | {"h": carry["h"] + nudge_BH}
        return carry, (carry["h"], pull)

    carry, (h_TBH, pulls) = lax.scan(step, carry, (a_TBG, keep_TB, nudge_TBH))
    return h_TBH, carry, pulls


def _kept(carry: Carry, keep_B: Array | None) -> Carry:
    return carry if keep_B is None else {name: x_BH * keep_B[:, None] for name, x_BH in carry.items()}


def _forward(kind, dtype, a_TBG, kernel_HG, bias_G, carry, keep_TB):
    h_TBH, last, pulls = unrolled(kind, a_TBG, kernel_HG, bias_G, carry, keep_TB)
    return (h_TBH, last), (h_TBH, pulls, kernel_HG, bias_G, carry["h"], keep_TB)


def _backward(kind, dtype, saved, gradients):
    h_TBH, pulls, kernel_HG, bias_G, first_BH, keep_TB = saved
    dh_TBH, d_last = gradients

    def step(d_carry: Carry, at: Any) -> tuple[Carry, tuple[Array, Array | None]]:
        dh_BH, keep_B, pull = at
        da_BG, dr_BG, d_before = pull(d_carry | {"h": d_carry["h"] + dh_BH})
        d_before = _kept(d_before | {"h": d_before["h"] + dr_BG @ kernel_HG.T}, keep_B)
        return d_before, (da_BG, dr_BG if kind == "gru" else None)  # of the others both are the same

    d_carry, (da_TBG, dr_TBG) = lax.scan(step, d_last, (dh_TBH, keep_TB, pulls), reverse=True)
    dr_TBG = da_TBG if dr_TBG is None else dr_TBG
    before_TBH = jnp.concatenate([first_BH[None], h_TBH[:-1]])
    before_TBH = before_TBH if keep_TB is None else before_TBH * keep_TB[..., None]
    _, pull_kernel = jax.vjp(lambda kernel_HG: product(before_TBH, kernel_HG, 0, dtype), kernel_HG)
    d_bias_G = None if bias_G is None else jnp.sum(dr_TBG, (0, 1))
    d_keep_TB = None if keep_TB is None else jnp.zeros_like(keep_TB)  # a mask
    return da_TBG, *pull_kernel(dr_TBG), d_bias_G, d_carry, d_keep_TB


recur = jax.custom_vjp(lambda *args: _forward(*args)[0], nondiff_argnums=(0, 1))
recur.defvjp(_forward, _backward)


# ---- The model --------------------------------------------------------------------------------------------------


class Recurrence(nn.Module):
    """The recurrent weights of a layer, and its scan over time."""

    #: The cell: `tanh`, `lstm` or `gru`.
    cell: str
    #: Dtype to which the product for the weights' gradient rounds its inputs.
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, a_TBG: Array, carry: Carry, keep_TB: Array | None, nudge_TBH: Array | None
    ) -> tuple[Array, Carry]:
        """Hidden states (T, B, H) and the last state; see `unrolled`."""
        H, G = carry["h"].shape[-1], a_TBG.shape[-1]
        kernel_HG = weight(self, "kernel", _orthogonal_gates, (H, G))
        bias_G = None
        if self.cell == "gru":
            bias_G = jnp.pad(weight(self, "bias", nn.initializers.zeros, (H,)), (G - H, 0))
        if nudge_TBH is None:
            return recur(self.cell, self.dtype, a_TBG, kernel_HG, bias_G, carry, keep_TB)
        return unrolled(self.cell, a_TBG, kernel_HG, bias_G, carry, keep_TB, nudge_TBH)[:2]


def _orthogonal_gates(key: Array, shape: tuple[int, int]) -> Array:
    H, G = shape
    gates = jax.vmap(lambda key: nn.initializers.orthogonal()(key, (H, H)))(jax.random.split(key, G // H))
    return gates.transpose(1, 0, 2).reshape(shape)


class Layer(nn.Module):
    """A layer of cells: one product of the inputs of all steps, then the recurrence."""

    #: The configuration.
    config: RNNConfig

    @nn.compact
    def __call__(
        self, x_TBH: Array, carry: Carry, keep_TB: Array | None, nudge_TBH: Array | None
    ) -> tuple[Array, Carry]:
        """Hidden states (T, B, H) and the last state; see `unrolled`."""
        c = self.config
        G = GATES[c.cell] * c.width
        a_TBG = Dense(G, c.width**-0.5, bias=False, dtype=c.dtype, name="input")(x_TBH)
        a_TBG += weight(self, "bias", self._first_bias, (G,))
        return Recurrence(c.cell, c.dtype, name="recurrent")(a_TBG, carry, keep_TB, nudge_TBH)

    def _first_bias(self, _: Array, shape: tuple[int]) -> Array:
        H = self.config.width
        bias_G = jnp.zeros(shape)
        return bias_G.at[H : 2 * H].set(self.config.forget_bias) if self.config.cell == "lstm" else bias_G


class RNN(nn.Module):
    """Token ids to logits."""

    #: The configuration, with a known `vocab_size`.
    config: RNNConfig

    @nn.compact
    def __call__(
        self,
        inputs_BT: Array,
        *,
        carry: Carry | None = None,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
        train: bool = False,
        nudge_LTBH: Array | None = None,
    ) -> Any:
        """Logits (B, T, V), float32; with `carry` (logits, state after the last position).

        Args:
            inputs_BT: Token ids.
            carry: The initial state, from `begin`; no gradient flows into it. None: zeros.
            segments_BT: Segments of packed documents; the state is reset where a new segment begins. The first
                position always continues from `carry`.
            positions_BT: Ignored.
            train: Apply dropout to the output of every layer (not to its next state), from the "dropout" generator.
            nudge_LTBH: Added to the hidden states, to differentiate with respect to them.
        """
        c, (B, _) = self.config, inputs_BT.shape
        key = self.make_rng("dropout") if train and c.dropout else None
        with jax.named_scope("embed"):
            scale = math.sqrt(c.width) if c.tied else 1.0
            tokens = Embedding(c.vocab_size, c.width, 1 / scale, c.dtype, name="token_embedding")
            x_TBH = scale * tokens(inputs_BT.T)
        before = begin(c, B) if carry is None else lax.stop_gradient(carry)
        before = {name: x_BLH.astype(x_TBH.dtype) for name, x_BLH in before.items()}
        keep_TB = None if segments_BT is None else _continued(segments_BT).astype(x_TBH.dtype)
        after = []
        for i in range(c.layers):
            state = {name: x_BLH[:, i] for name, x_BLH in before.items()}
            nudge_TBH = None if nudge_LTBH is None else nudge_LTBH[i]
            x_TBH, state = Layer(c, name=f"layer_{i}")(x_TBH, state, keep_TB, nudge_TBH)
            x_TBH = dropout(x_TBH, c.dropout, None if key is None else jax.random.fold_in(key, i))
            after.append(state)
        with jax.named_scope("logits"):
            head = tokens.logits if c.tied else Dense(c.vocab_size, c.width**-0.5, dtype=c.dtype, name="head")
            logits_BTV = head(x_TBH.swapaxes(0, 1))
        return logits_BTV if carry is None else (logits_BTV, jax.tree.map(lambda *x: jnp.stack(x, 1), *after))


def begin(config: RNNConfig, rows: int) -> Carry:
    """Create a state of zeros: float32 (rows, L, H) under "h", and under "c" for an LSTM."""
    names = ("h", "c") if config.cell == "lstm" else ("h",)
    return {name: jnp.zeros((rows, config.layers, config.width)) for name in names}


def _continued(segments_BT: Array) -> Array:
    """Whether a position (T, B) continues the previous segment; true for the first position."""
    return jnp.pad(segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True).T


def gradient_by_lag(model: RNN, params: Any, inputs_BT: Array, *, targets_B: Array) -> Array:
    """Gradient norms (T,) of a prediction by lag, from the last position (lag 0) to the first.

    The entry at a lag is the norm of the gradient of the loss with respect to the hidden states of all layers and rows
    at this distance from the last position. The loss is the cross-entropy in nats of `targets_B` after the last
    position, averaged over the rows. Norms that decrease, or increase, exponentially with the lag are the vanishing, or
    exploding, gradients of Bengio et al. 1994 and Pascanu et al. 2013.
    """
    B, T = inputs_BT.shape

    def loss(nudge_LTBH: Array) -> Array:
        logits_BTV = model.apply({"params": params}, inputs_BT, nudge_LTBH=nudge_LTBH)
        assert isinstance(logits_BTV, Array)
        log_p_BV = jax.nn.log_softmax(logits_BTV[:, -1])
        return -jnp.mean(jnp.take_along_axis(log_p_BV, targets_B[:, None], axis=-1))

    gradient_LTBH = jax.grad(loss)(jnp.zeros((model.config.layers, T, B, model.config.width)))
    largest_T = jnp.max(
        jnp.abs(gradient_LTBH), (0, 2, 3)
    )  # scaling keeps the squares of small numbers from underflowing
    scale_T = jnp.where(largest_T > 0, largest_T, 1)
    squares_LTBH = jnp.square(gradient_LTBH / scale_T[:, None, None])
    return (scale_T * jnp.sqrt(jnp.sum(squares_LTBH, (0, 2, 3))))[::-1]


# ---- Closed forms -----------------------------------------------------------------------------------------------


def parameters(config: RNNConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`.

    A tied output layer is part of the embeddings.
    """
    c, H = config, config.width
    biases = GATES[c.cell] * H + (H if c.cell == "gru" else 0)
    parts = {
        "token embedding": c.vocab_size * H,
        "layers": c.layers * (2 * GATES[c.cell] * H * H + biases),
        "output layer": 0 if c.tied else (H + 1) * c.vocab_size,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def flops_per_token(config: RNNConfig) -> float:
    """Training FLOPs per token: 2 forward and 4 backward for each weight of a product."""
    c, H = config, config.width
    return 6.0 * (2 * c.layers * GATES[c.cell] * H * H + c.vocab_size * H)


def activation_bytes(config: RNNConfig) -> float:
    """An estimate of the bytes per token that the backward pass keeps, without logits.

    It counts the ids, the hidden states of every layer and the residuals of its cells' pull-backs. The inputs of the
    products over all steps are separate arrays if they were rounded or dropped out; otherwise only those of the first
    and the last layer are.
    """
    c, H = config, config.width
    pulled = {"tanh": 1, "lstm": 6, "gru": 5}[c.cell]
    inputs = c.layers + 1 if c.dropout or c.dtype == "bfloat16" else 2
    return 4.0 + 4.0 * c.layers * H * (1 + pulled) + (2.0 if c.dtype == "bfloat16" else 4.0) * inputs * H


FAMILY = Family(
    module=RNN,
    axes=LOGICAL_AXES,
    parameters=parameters,
    flops_per_token=flops_per_token,
    activation_bytes=activation_bytes,
)
