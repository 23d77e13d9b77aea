"""Which form computes attention, and the kernels of accelerators: cuDNN's on GPUs, Pallas' splash attention on TPUs.

`xla` writes the scores out, the others do not: `blockwise` is the form for any device, in plain JAX.

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
LONG_TPU = 1024  # queries from which splash pays
_BLOCK, _LANES = 512, 128  # of splash: positions of a block, at most, and what their number is a multiple of


@dataclass(frozen=True)
class Case:
    """What is asked of a kernel: on which device, and with which masks."""

    device: Any
    dtype: str
    causal: bool
    packed: bool = False  # positions see their own segment alone
    dropout: bool = False
    masked: bool = False  # keys are hidden by `seen_BS` or `ends_BS`


def device() -> Any:
    """One of the devices that the program is traced for."""
    layout = axes.current()
    return jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]


def chosen(form: str, case: Case, q_BTHK: Any, k_BSGK: Any) -> str:
    """The form that computes a case; `auto`: the device's kernel where it can, else by the number of queries.

    Where the mesh divides sequences, `blockwise` does. Kernels hide no single keys; only scoring and prompts do, which
    no configuration asks for, and there `auto` stands for the kernel. UserError: the form cannot compute the case.
    """
    layout, T = axes.current(), q_BTHK.shape[1]
    if layout is not None and layout.size("sequence") > 1:
        if form in ("auto", "blockwise"):
            return "blockwise"
        raise UserError(
            f"model.attention={form} has whole sequences, but parallel.mesh.sequence={layout.size('sequence')} divides "
            f"them; set model.attention=blockwise, or parallel.mesh.sequence=1"
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
    """Why the kernel `form` cannot compute the case, and what to set; empty: it can. Arrays may be abstract."""
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
        return "cannot keep packed documents apart; set data.packed=false, or model.attention=auto"
    if case.dtype != "bfloat16":
        return "computes in bfloat16 alone; set model.dtype=bfloat16, or model.attention=auto"
    capability = str(getattr(case.device, "compute_capability", "8.0"))
    if not capability[0].isdigit() or float(capability) < 8:
        return f"takes a GPU of compute capability 8.0 or more, not {capability}; set model.attention=auto"
    return _tried(q_BTHK, k_BSGK, case.causal)


def _tried(q_BTHK: Any, k_BSGK: Any, causal: bool) -> str:
    """What JAX itself has against the shapes, or against the installed cuDNN."""
    q, k = (jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q_BTHK, k_BSGK))
    try:
        jax.eval_shape(lambda q, k, v: cudnn(q, k, v, causal=causal), q, k, k)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"refuses ({str(error).splitlines()[0]}); set model.attention=auto"
    return ""


def cudnn(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, *, causal: bool) -> Array:
    """Attention (B, T, H, K) by cuDNN's fused kernel, in bfloat16, in the dtype of q."""
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
    """Causal attention (B, T, H, K) by the TPU kernel that skips the blocks above the diagonal, in the dtype of q.

    interpret: computes what the kernel says, on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # what only a TPU needs

    T, H, K = q_BTHK.shape[1:]
    block = min(_BLOCK, -(-T // _LANES) * _LANES)
    size = -(-T // block) * block  # positions after the last are seen by none that counts

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
