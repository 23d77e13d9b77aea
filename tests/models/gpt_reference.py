"""A GPT in NumPy, float64, written from the papers and as plainly as it goes: to compare lmjax.models.gpt with."""

import math
from typing import Any

import numpy as np

from lmjax.config import GPTConfig

erf = np.vectorize(math.erf)


def forward(config: GPTConfig, params: dict[str, Any], inputs_BT: np.ndarray, segments_BT=None, positions_BT=None):
    """Logits (B, T, V) of an unrolled model's parameters (`block_0`, ...)."""
    rows = []
    for b, ids_T in enumerate(inputs_BT):
        T = len(ids_T)
        segments_T = np.zeros(T) if segments_BT is None else segments_BT[b]
        positions_T = np.arange(T) if positions_BT is None else positions_BT[b]
        rows.append(_row(config, params, ids_T, segments_T, positions_T))
    return np.stack(rows)


def _row(c, params, ids_T, segments_T, positions_T):
    x_TD = params["token_embedding"]["embedding"].astype(np.float64)[ids_T]
    if c.positions == "learned":
        x_TD = x_TD + params["position_embedding"]["embedding"][positions_T]
    for i in range(c.layers):
        block = params[f"block_{i}"]
        x_TD = x_TD + _attention(
            c, block["attention"], _norm(c, block["attention_norm"], x_TD), segments_T, positions_T
        )
        x_TD = x_TD + _mlp(c, block["mlp"], _norm(c, block["mlp_norm"], x_TD))
    x_TD = _norm(c, params["final_norm"], x_TD)
    return x_TD @ params["token_embedding"]["embedding"].T if c.tied else x_TD @ params["head"]["kernel"]


def _norm(c, p, x):
    if c.norm == "rmsnorm":
        return _rms(x, c.norm_epsilon) * p["scale"]
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_epsilon)
    return y * p["scale"] + p.get("bias", 0.0)


def _rms(x, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def _dense(p, x):
    return x @ p["kernel"].astype(np.float64) + p.get("bias", 0.0)


def _attention(c, p, x_TD, segments_T, positions_T):
    T, key_heads = len(x_TD), c.key_heads or c.heads
    K = c.head_dim or c.width // c.heads
    q, k, v = (_dense(p[name], x_TD).reshape(T, -1, K) for name in ("query", "key", "value"))
    if c.qk_norm:
        q = _rms(q, c.norm_epsilon) * p["query_norm"]["scale"]
        k = _rms(k, c.norm_epsilon) * p["key_norm"]["scale"]
    if c.positions == "rotary":
        q, k = _turn(c, q, positions_T), _turn(c, k, positions_T)
    mixed = np.zeros((T, c.heads, K))
    for head in range(c.heads):
        shared = head // (c.heads // key_heads)
        for t in range(T):
            seen = [s for s in range(t + 1) if segments_T[s] == segments_T[t]]
            scores = np.array([q[t, head] @ k[s, shared] / math.sqrt(K) for s in seen])
            weights = np.exp(scores - scores.max())
            mixed[t, head] = weights / weights.sum() @ v[seen, shared]
    return _dense(p["output"], mixed.reshape(T, -1))


def _turn(c, x_TGK, positions_T):
    """Features i and i + K/2 are a complex number, which turns by position * theta^(-2i/K)."""
    half = x_TGK.shape[-1] // 2
    turn = np.exp(1j * np.outer(positions_T, c.rope_theta ** (-np.arange(half) / half)))[:, None]
    z = (x_TGK[..., :half] + 1j * x_TGK[..., half:]) * turn
    return np.concatenate([z.real, z.imag], -1)


def _mlp(c, p, x):
    up = _dense(p["up"], x)
    match c.activation:
        case "swiglu":
            gate = _dense(p["gate"], x)
            hidden = gate / (1 + np.exp(-gate)) * up
        case "gelu":
            hidden = up * (1 + erf(up / math.sqrt(2))) / 2
        case "gelu_tanh":
            hidden = up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))) / 2
        case "relu":
            hidden = np.maximum(up, 0)
    return _dense(p["down"], hidden)
