"""Small GGUF files, written by the library's own writer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.data.vocabularies import byte_of

gguf = pytest.importorskip("gguf")
quants, Format = gguf.quants, gguf.GGMLQuantizationType

L, D, H, G, K, M, CONTEXT = 2, 64, 4, 2, 32, 96, 24
ODD = [
    "In 1984, 12345 + 67.89 = 3rd half: ½ ²",
    "don't  you're   WE'LL    he's\t\ttabs   ",
    "a\n\nb\r\n \n  c;\n\n\n",
    "🎉 naïve café 👩\u200d👩\u200d👧 e\u0301 漢字テスト \u00a0\u3000x",
    "<|endoftext|> x=[1,2]; // __init__",
    "",
]


def entries(architecture: str) -> dict[str, Any]:
    """The metadata of a small model with a vocabulary of bytes."""
    epsilon = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    sizes = {"block_count": L, "embedding_length": D, "feed_forward_length": M, "context_length": CONTEXT}
    heads = {"attention.head_count": H, f"attention.{epsilon}": 1e-5}
    rope = {"attention.head_count_kv": G, "attention.key_length": K, "rope.freq_base": 500.0}
    rope |= {"rope.dimension_count": K} if architecture == "llama" else {}
    both = sizes | heads | ({} if architecture == "gpt2" else rope)
    tokens = {"tokens": [*byte_of(), "<|endoftext|>"], "token_type": [1] * 256 + [3], "merges": ["a b"]}
    tokens["tokens"].append("ab")
    tokens["token_type"].append(1)
    named = {"model": "gpt2", "pre": "gpt-2", "eos_token_id": 0} | tokens
    return {f"{architecture}.{key}": value for key, value in both.items()} | {
        f"tokenizer.ggml.{key}": value for key, value in named.items()
    }


def tensors(architecture: str, vocab: int = 258) -> dict[str, np.ndarray]:
    """Every tensor of a small model in float32, large enough that every part matters; rows are features out."""
    queries, keys = H * K, G * K
    layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (D,), "ffn_norm.weight": (D,)}
    outer: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, D), "output_norm.weight": (D,)}
    if architecture == "gpt2":
        dense = {"attn_qkv": (3 * D, D), "attn_output": (D, D), "ffn_up": (M, D), "ffn_down": (D, M)}
        layer |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
        layer |= {"attn_norm.bias": (D,), "ffn_norm.bias": (D,)}
        outer |= {"output_norm.bias": (D,), "position_embd.weight": (CONTEXT, D)}
    else:
        dense = {"attn_q": (queries, D), "attn_k": (keys, D), "attn_v": (keys, D), "attn_output": (D, queries)}
        dense |= {"ffn_gate": (M, D), "ffn_up": (M, D), "ffn_down": (D, M)}
        outer |= {} if architecture == "qwen2" else {"output.weight": (vocab, D)}
    if architecture == "qwen2":
        layer |= {f"attn_{name}.bias": (queries if name == "q" else keys,) for name in "qkv"}
    if architecture == "qwen3":
        layer |= {"attn_q_norm.weight": (K,), "attn_k_norm.weight": (K,)}
    layer |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes = outer | {f"blk.{i}.{name}": shape for i in range(L) for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def write(
    path: Path, architecture: str, metadata: dict[str, Any], arrays: dict[str, Any], kinds: Any = Format.F32
) -> Path:
    """`kinds`: the format of matrices, by name or for all."""
    writer = gguf.GGUFWriter(path, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        (writer.add_bool if type(value) is bool else add[type(value)])(key, value)
    for name, x in arrays.items():
        kind = kinds.get(name, Format.F32) if isinstance(kinds, dict) else kinds
        if x.ndim == 1 or kind == Format.F32:
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small(path: Path, architecture: str = "llama", kinds: Any = Format.F32, **changes: Any) -> Path:
    """A file of a small model. `changes`: metadata (their last part after __) or tensors, None leaves one out."""
    metadata, arrays = entries(architecture), tensors(architecture)
    for key, value in changes.get("metadata", {}).items():
        metadata = {k: v for k, v in metadata.items() if k != key} | ({} if value is None else {key: value})
    for key, value in changes.get("arrays", {}).items():
        arrays = {k: v for k, v in arrays.items() if k != key} | ({} if value is None else {key: value})
    return write(path, architecture, metadata, arrays, kinds)
