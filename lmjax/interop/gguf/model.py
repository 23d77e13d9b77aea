"""Import of GGUF files of llama.cpp: LLaMA and Mistral, Qwen2, Qwen3 and GPT-2.

Legend: D width, H heads, G key heads, K head size, M MLP width.

The gguf library dequantizes weights to float32, one tensor at a time. A setting that lmjax's GPT does not support is an
error; it is never ignored.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import GPTConfig, UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.gguf import file
from lmjax.interop.gguf.file import Content, T, Tensor, entry, shown
from lmjax.interop.gguf.tokenizer import build
from lmjax.models.costs import check_gpt
from lmjax.models.gpt import GPT
from lmjax.system import paths

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")

# Settings that are read below or have no effect, and settings that must have the value that GPT supports.
_SIZES = {"block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size"}
_HEADS = {"head_count", "head_count_kv", "key_length", "value_length", "sliding_window"}
_EPSILONS = {"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"}
_ROPE = {"dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor"}
_NOTES = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
_READ = _SIZES | {f"attention.{key}" for key in _HEADS} | _EPSILONS | {f"rope.{key}" for key in _ROPE} | _NOTES
_FIXED = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "rope.scaling.attn_factor": 1.0}

# Biases that llama.cpp requires, and groups of which a layer has all or none.
_BIASES = {
    "gpt2": ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
}
_GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up", "ffn_down"))

_LLAMA3 = 1.0, 4.0, 8192.0  # low, high and old context of the scaled positions of Llama 3.1 to 3.3


def load(path: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> LanguageModel:
    """Load the model and tokenizer of a file, with float32 parameters stacked over layers.

    Args:
        path: The file.
        dtype: Dtype of the matrix products.

    Raises:
        UserError: The file is damaged, its model is not supported, or the package gguf is not installed.
    """
    path = paths.local(path, key="the model")
    if not path.exists():
        raise paths.missing(path)
    try:
        content = file.read(path)
        config = _config(content, dtype)
        sources = _sources(config, content)
        vocabulary = build(content.metadata, config.vocab_size)
        params = _params(sources)
    except (UserError, OSError) as error:
        raise UserError(f"cannot load '{path}': {error}") from None
    special, tokenizer = vocabulary.special, vocabulary.tokenizer
    return LanguageModel(
        GPT(config),
        params,
        tokenizer,
        path.stem,
        first=special.bos if vocabulary.begins else None,
        stops=tuple(i for i in special.ends if i != tokenizer.end_of_text),
        bos=special.bos,
        eos=special.eos,
    )


# ---- The configuration ------------------------------------------------------------------------------------------


def _config(content: Content, dtype: Literal["float32", "bfloat16"]) -> GPTConfig:
    if entry(content.metadata, "split.count", 1, kind=int) > 1:
        raise UserError("it is one of several parts; join them with llama.cpp's llama-gguf-split --merge")
    architecture = entry(content.metadata, "general.architecture", kind=str)
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UserError(f"general.architecture={shown(architecture)} is not supported; supported: {known}")
    settings = _Settings(architecture, content.metadata)
    settings.refuse_unknown()
    width, heads = settings.whole("embedding_length"), settings.whole("attention.head_count")
    context = settings.whole("context_length")
    common: Any = {
        "layers": settings.whole("block_count"),
        "width": width,
        "heads": heads,
        "key_heads": settings.whole("attention.head_count_kv", heads),
        "head_dim": settings.whole("attention.key_length", max(1, width // heads)),
        "mlp_width": settings.whole("feed_forward_length"),
        "vocab_size": _rows(content.tensors, "token_embd.weight"),
        "tied": "output.weight" not in content.tensors,
        "dtype": dtype,
    }
    if settings.whole("vocab_size", common["vocab_size"]) != common["vocab_size"]:
        raise UserError(
            f"{architecture}.vocab_size={settings.whole('vocab_size')}, but 'token_embd.weight' has "
            f"{common['vocab_size']} rows; the file is damaged"
        )
    if settings.whole("attention.value_length", common["head_dim"]) != common["head_dim"]:
        raise UserError("keys and values of different sizes are not supported")
    if architecture == "gpt2":
        epsilon = settings.real("attention.layer_norm_epsilon")
        config = GPTConfig(context=context, norm_epsilon=epsilon, **common)
        check_gpt(config)
        return config
    turned = settings.whole("rope.dimension_count", common["head_dim"])
    if turned != common["head_dim"]:
        raise UserError(
            f"positions that turn {turned} of the {common['head_dim']} features of a head are not supported"
        )
    config = GPTConfig(
        context=min(context, settings.whole("attention.sliding_window", context)),  # shorter contexts need no window
        norm="rmsnorm",
        norm_epsilon=settings.real("attention.layer_norm_rms_epsilon"),
        positions="rotary",
        rope_theta=settings.real("rope.freq_base", 10_000.0),
        rope_scaling=_linear(settings),
        activation="swiglu",
        bias=architecture == "qwen2" or any(name.endswith(".bias") for name in content.tensors),
        qk_norm=architecture == "qwen3",
        **common,
    )
    check_gpt(config)
    stretched = content.tensors.get("rope_freqs.weight")
    return config if stretched is None else dataclasses.replace(config, rope_scaling=_llama3(config, stretched))


def _rows(tensors: dict[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise UserError(f"tensor '{name}' is missing")
    return tensors[name].shape[0]


@dataclass(frozen=True)
class _Settings:
    """Typed access to the metadata of an architecture."""

    #: Name of the architecture, the prefix of its keys.
    architecture: str
    #: All metadata of the file.
    metadata: dict[str, Any]

    def get(self, key: str, default: T | None = None, *, kind: type[T]) -> T:
        return entry(self.metadata, f"{self.architecture}.{key}", default, kind=kind)

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a positive integer."""
        value = self.get(key, default, kind=int)
        if not 0 < value < 2**31:
            raise UserError(f"{self.architecture}.{key}={value} is not above 0 and below 2^31")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self.get(key, default, kind=float)
        if not 0 < value < math.inf:
            raise UserError(f"{self.architecture}.{key}={value} is not a number above 0")
        return value

    def refuse_unknown(self) -> None:
        """Check that GPT supports all settings.

        Raises:
            UserError: GPT does not support a setting.
        """
        for name, value in self.metadata.items():
            architecture, _, key = name.partition(".")
            if architecture == self.architecture and key not in _READ:
                if key not in _FIXED:
                    raise UserError(f"{name}={shown(value)} is a setting that lmjax's GPT does not support")
                if type(value) is not type(_FIXED[key]) or value != _FIXED[key]:
                    raise UserError(f"{name}={shown(value)} is not supported, only {_FIXED[key]}")


def _linear(settings: _Settings) -> tuple[float, ...]:
    kind = settings.get("rope.scaling.type", "linear", kind=str)
    if kind not in ("none", "linear"):
        raise UserError(f"{settings.architecture}.rope.scaling.type={shown(kind)} is not supported")
    old = settings.get("rope.scale_linear", 0.0, kind=float)
    factor = settings.get("rope.scaling.factor", old, kind=float) if kind == "linear" else 0.0
    if not 0 <= factor < math.inf:
        raise UserError(f"{settings.architecture}.rope.scaling.factor={factor} is not a number above 0")
    return () if factor in (0, 1) else (factor,)  # llama.cpp treats 0 as no scaling, too


def _llama3(config: GPTConfig, tensor: Tensor) -> tuple[float, ...]:
    """Return the `rope_scaling` for frequency divisors (K/2).

    Raises:
        UserError: They are not those of Llama 3.
    """
    K = config.head_dim
    if tensor.shape != (K // 2,) or config.rope_scaling:
        raise UserError("tensor 'rope_freqs.weight' is inconsistent with the other settings of the positions")
    divisors = tensor.floats()
    factor, (low, high, context) = float(divisors.max()), _LLAMA3
    turns = context * config.rope_theta ** (-np.arange(0, K, 2) / K) / (2 * np.pi)
    unscaled = np.clip((turns - low) / (high - low), 0, 1)
    if factor <= 0 or not np.allclose(divisors, 1 / (unscaled + (1 - unscaled) / factor), rtol=1e-4, atol=0):
        raise UserError("tensor 'rope_freqs.weight' scales the positions differently from Llama 3; not supported")
    return () if factor == 1 else (factor, *_LLAMA3)


# ---- The parameters ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The source of a leaf: rows of a tensor, which has one row for each output feature."""

    #: Path of the leaf.
    leaf: str
    #: Name of the tensor.
    name: str
    #: Shape of the tensor.
    shape: tuple[int, ...]
    #: First and last row of the leaf.
    rows: tuple[int, int | None] = (0, None)
    #: Number of heads whose rows are in llama.cpp's rotary order (see `_apart`); 0: not reordered.
    heads: int = 0


def _block_parts(c: GPTConfig, architecture: str) -> list[_Part]:
    """The parts of one layer."""
    D, M, H, G, K = c.width, c.mlp_width, c.heads, c.key_heads, c.head_dim
    parts: list[_Part] = []

    def dense(
        leaf: str, name: str, shape: tuple[int, int], rows: tuple[int, int | None] = (0, None), heads: int = 0
    ) -> None:
        parts.append(_Part(f"{leaf}/kernel", f"{name}.weight", shape, rows, heads))
        if c.bias:
            parts.append(_Part(f"{leaf}/bias", f"{name}.bias", shape[:1], rows, heads))

    def norm(leaf: str, name: str, size: int) -> None:
        parts.append(_Part(f"{leaf}/scale", f"{name}.weight", (size,)))
        if c.norm == "layernorm":
            parts.append(_Part(f"{leaf}/bias", f"{name}.bias", (size,)))

    if architecture == "gpt2":  # queries, keys and values in one tensor
        ends = 0, H * K, (H + G) * K, (H + 2 * G) * K
        for name, rows in zip(("query", "key", "value"), itertools.pairwise(ends), strict=True):
            dense(f"attention/{name}", "attn_qkv", (ends[-1], D), rows)
    else:
        query_heads, key_heads = (H, G) if architecture == "llama" else (0, 0)
        dense("attention/query", "attn_q", (H * K, D), heads=query_heads)
        dense("attention/key", "attn_k", (G * K, D), heads=key_heads)
        dense("attention/value", "attn_v", (G * K, D))
        dense("mlp/gate", "ffn_gate", (M, D))
    dense("attention/output", "attn_output", (D, H * K))
    dense("mlp/up", "ffn_up", (M, D))
    dense("mlp/down", "ffn_down", (D, M))
    norm("attention_norm", "attn_norm", D)
    norm("mlp_norm", "ffn_norm", D)
    if c.qk_norm:
        norm("attention/query_norm", "attn_q_norm", K)
        norm("attention/key_norm", "attn_k_norm", K)
    return parts


def _outer_parts(c: GPTConfig) -> list[_Part]:
    parts = [
        _Part("token_embedding/embedding", "token_embd.weight", (c.vocab_size, c.width)),
        _Part("final_norm/scale", "output_norm.weight", (c.width,)),
    ]
    if c.positions == "learned":
        parts.append(_Part("position_embedding/embedding", "position_embd.weight", (c.context, c.width)))
    if c.norm == "layernorm":
        parts.append(_Part("final_norm/bias", "output_norm.bias", (c.width,)))
    return parts if c.tied else [*parts, _Part("head/kernel", "output.weight", (c.vocab_size, c.width))]


def _sources(config: GPTConfig, content: Content) -> dict[str, tuple[_Part, list[Tensor | None]]]:
    """The part and the tensors of each leaf: one, or one for each layer; None: an absent bias.

    Raises:
        UserError: A tensor is missing, has another shape, or is not part of the model.
    """
    left, architecture = dict(content.tensors), content.metadata["general.architecture"]

    def find(name: str, shape: tuple[int, ...], required: bool = True) -> Tensor | None:
        tensor = content.tensors.get(name)
        if tensor is None and required:
            raise UserError(f"tensor '{name}' is missing; the file is damaged or incomplete")
        if tensor is not None and tensor.shape != shape:
            raise UserError(f"tensor '{name}' has shape {tensor.shape}, but the metadata require {shape}")
        left.pop(name, None)
        return tensor

    sources = {part.leaf: (part, [find(part.name, part.shape)]) for part in _outer_parts(config)}
    biases = _required(content.tensors, architecture)
    for part in _block_parts(config, architecture):
        required = part.name in biases or not part.name.endswith(".bias")
        tensors = [find(f"blk.{i}.{part.name}", part.shape, required) for i in range(config.layers)]
        sources[f"blocks/{part.leaf}"] = part, tensors
    unused = sorted(left.keys() - ({"rope_freqs.weight"} if config.positions == "rotary" else set()))
    if unused:
        raise UserError(f"tensor '{unused[0]}' has no place in lmjax's GPT ({len(unused)} such tensors)")
    return sources


def _required(tensors: dict[str, Tensor], architecture: str) -> set[str]:
    """The biases that every layer must have: those of the architecture, and complete groups."""
    present = {name.split(".", 2)[2] for name in tensors if name.startswith("blk.") and name.count(".") > 2}
    required = set(_BIASES.get(architecture, ()))
    for group in _GROUPS:
        if any(f"{name}.bias" in present for name in group):
            required |= set(group)
    return {f"{name}.bias" for name in required}


def _params(sources: dict[str, tuple[_Part, list[Tensor | None]]]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for path, (part, tensors) in sources.items():
        *parents, leaf = path.split("/")
        place = params
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = _stacked(part, tensors) if parents[0] == "blocks" else jnp.asarray(_values(part, tensors[0]))
    return params


def _stacked(part: _Part, tensors: list[Tensor | None]) -> Array:
    first = _values(part, tensors[0])
    stacked = np.empty((len(tensors), *first.shape), np.float32)
    stacked[0] = first
    for i, tensor in enumerate(tensors[1:], 1):
        stacked[i] = _values(part, tensor)
    return jnp.asarray(stacked)


def _values(part: _Part, tensor: Tensor | None) -> np.ndarray:
    """Return a leaf of one layer: kernels transposed to (in, out), other tensors unchanged."""
    if tensor is None:
        return np.zeros(part.shape, np.float32)[slice(*part.rows)]
    x = tensor.floats(slice(*part.rows)) if len(part.shape) == 2 else tensor.floats()[slice(*part.rows)]
    x = _apart(x, part.heads) if part.heads else x
    return x.T if part.leaf.endswith("kernel") else x


def _apart(x: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows (H K, ...): the file has the features of a rotary pair in adjacent rows.

    In the result, their rows differ by K/2.
    """
    pairs = x.reshape(heads, -1, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)
