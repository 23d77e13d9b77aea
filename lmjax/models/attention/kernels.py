"""Selection of the attention implementation, and the fused kernels of GPUs and TPUs.

GPUs use cuDNN's kernel, TPUs Pallas' splash attention. `xla` materializes the scores, the others do not; `blockwise`
runs on any device, in plain JAX.

Shapes: B batch, T query positions, S key positions, H heads, G key heads, K head size.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lmjax.config import UserError
from lmjax.models.costs import LONG
from lmjax.models.layers import rounded
from lmjax.parallel import axes

KERNELS = {"gpu": "cudnn", "tpu": "splash"}
LONG_TPU = 1024  # number of queries from which splash is faster
_BLOCK, _LANES = 512, 128  # of splash: maximum number of positions of a block, and its divisor


@dataclass(frozen=True)
class Case:
    """The requirements on a kernel: device, dtype and masks."""

    #: The device.
    device: Any
    #: Dtype to which products round their inputs.
    dtype: str
    #: Whether attention is causal.
    causal: bool
    #: Whether positions see only their own segment.
    packed: bool = False
    #: Whether weights are dropped.
    dropout: bool = False
    #: Whether `seen_BS` or `ends_BS` hides keys.
    masked: bool = False


def device() -> Any:
    """One of the devices that the program is traced for."""
    layout = axes.current()
    return jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]


def chosen(form: str, case: Case, q_BTHK: Any, k_BSGK: Any) -> str:
    """Select the implementation of a case.

    `auto` takes the device's kernel if it supports the case, else selects by the number of queries. A mesh that shards
    sequences requires `blockwise`. Kernels cannot hide single keys. Only scoring and prompts do so, independent of the
    configuration; for them a configured kernel counts as `auto`.

    Raises:
        UserError: The configured implementation cannot compute the case.
    """
    layout, T = axes.current(), q_BTHK.shape[1]
    if layout is not None and layout.size("sequence") > 1:
        if form in ("auto", "blockwise"):
            return "blockwise"
        raise UserError(
            f"model.attention={form} needs complete sequences, but parallel.mesh.sequence={layout.size('sequence')} "
            f"shards them; set model.attention=blockwise, or parallel.mesh.sequence=1"
        )
    if form in KERNELS.values() and not case.masked:
        reason = refusal(form, case, q_BTHK, k_BSGK)
        if reason:
            raise UserError(f"model.attention={form} {reason}")
        return form
    if form in ("xla", "blockwise"):
        return form
    kernel = KERNELS.get(case.device.platform)
    if kernel and (kernel == "cudnn" or T >= LONG_TPU) and not refusal(kernel, case, q_BTHK, k_BSGK):
        return kernel
    return "blockwise" if T >= LONG else "xla"


def refusal(form: str, case: Case, q_BTHK: Any, k_BSGK: Any) -> str:
    """The reason why the kernel `form` cannot compute the case; empty: it can.

    Arrays may be abstract.
    """
    platform = {"cudnn": "gpu", "splash": "tpu"}[form]
    if case.device.platform != platform:
        return f"is for {platform.upper()}s, not for the platform {case.device.platform}; set model.attention=auto"
    if case.dropout:
        return "has no dropout of weights; set model.dropout=0, or model.attention=auto"
    if case.masked:
        return "cannot hide single keys; set model.attention=auto"
    if form == "splash":
        alike = case.causal and q_BTHK.shape[1] == k_BSGK.shape[1]
        return "" if alike else "is for causal attention of a sequence to itself; set model.attention=auto"
    if case.packed:
        return "cannot restrict attention to packed documents; set data.packed=false, or model.attention=auto"
    if case.dtype != "bfloat16":
        return "computes only in bfloat16; set model.dtype=bfloat16, or model.attention=auto"
    capability = str(getattr(case.device, "compute_capability", "8.0"))
    if not capability[0].isdigit() or float(capability) < 8:
        return f"needs a GPU of compute capability 8.0 or more, not {capability}; set model.attention=auto"
    return _tried(q_BTHK, k_BSGK, case.causal)


def _tried(q_BTHK: Any, k_BSGK: Any, causal: bool) -> str:
    """The error of JAX for these shapes or for the installed cuDNN; empty: none."""
    q, k = (jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q_BTHK, k_BSGK))
    try:
        jax.eval_shape(lambda q, k, v: cudnn(q, k, v, causal=causal), q, k, k)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"refuses ({str(error).splitlines()[0]}); set model.attention=auto"
    return ""


def cudnn(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, *, causal: bool) -> Array:
    """Attention (B, T, H, K) by cuDNN's fused kernel: computed in bfloat16, in the dtype of q."""
    narrow = (rounded(x, "bfloat16") for x in (q_BTHK, k_BSGK, v_BSGK))
    return jax.nn.dot_product_attention(*narrow, is_causal=causal, implementation="cudnn").astype(q_BTHK.dtype)


def splash(
    q_BTHK: Array,
    k_BTGK: Array,
    v_BTGK: Array,
    *,
    segments_BT: Array | None = None,
    dtype: str = "float32",
    interpret: bool = False,
) -> Array:
    """Causal attention (B, T, H, K) by the TPU kernel, in the dtype of q.

    The kernel skips the blocks above the diagonal. `interpret` runs the kernel's interpreter, on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # imported late: TPU only

    T, H, K = q_BTHK.shape[1:]
    block = min(_BLOCK, -(-T // _LANES) * _LANES)
    size = -(-T // block) * block  # causal queries never see the padding after the last position

    def heads_first(x: Array) -> Array:
        return jnp.pad(rounded(x, dtype).swapaxes(1, 2), ((0, 0), (0, 0), (0, size - T), (0, 0)))

    blocks = dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block)
    mask = kernels.MultiHeadMask([kernels.CausalMask((size, size))] * H)
    sizes = kernels.BlockSizes(**blocks)
    mix: Any = kernels.make_splash_mha_single_device(mask=mask, block_sizes=sizes, interpret=interpret)
    segments = None
    if segments_BT is not None:
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, size - T)), mode="edge")
        segments = kernels.SegmentIds(segments_BT, segments_BT)
    out_BHTK: Array = jax.vmap(mix)(heads_first(q_BTHK * K**-0.5), heads_first(k_BTGK), heads_first(v_BTGK), segments)
    return out_BHTK[:, :, :T].swapaxes(1, 2).astype(q_BTHK.dtype)
