"""Closed forms of a GPT: sizes, parameters, FLOPs and activations. Needs no JAX."""

from dataclasses import replace

from lmjax.config import GPTConfig, UserError

LONG = 2048  # from this number of queries attention is blockwise; on CPU both forms take the same time there
BLOCK = 256  # maximum number of queries, and of keys, of a block: its scores for one head fit a core's cache


def resolve_gpt(config: GPTConfig) -> GPTConfig:
    """Replace `key_heads`, `head_dim` and `mlp_width` of 0 by their default values."""
    return replace(
        config,
        key_heads=config.key_heads or config.heads,
        head_dim=config.head_dim or config.width // config.heads,
        mlp_width=config.mlp_width or 4 * config.width,
    )


def check_gpt(config: GPTConfig) -> None:
    """Check the rules between the fields of a configuration; `vocab_size` may still be 0.

    Raises:
        UserError: Two values contradict each other; the message names them.
    """
    if not config.head_dim and config.width % config.heads:
        raise UserError(
            f"model.width={config.width} does not divide among model.heads={config.heads}; change one of them, or set "
            f"model.head_dim"
        )
    if config.key_heads and config.heads % config.key_heads:
        raise UserError(
            f"model.heads={config.heads} is not a multiple of model.key_heads={config.key_heads}; each key head serves "
            f"the same number of heads"
        )
    scaling = config.rope_scaling
    if (
        len(scaling) not in (0, 1, 4)
        or any(x <= 0 for x in scaling)
        or (len(scaling) == 4 and scaling[1] >= scaling[2])
    ):
        raise UserError(
            f"model.rope_scaling={list(scaling)}: give [factor], or [factor, low, high, context] with low below high"
        )
    head_dim = resolve_gpt(config).head_dim
    if config.positions == "rotary" and head_dim % 2:
        raise UserError(
            f"model.positions=rotary turns features in pairs, but a head has {head_dim}; set model.head_dim to an even "
            f"number"
        )


def query_blocks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """The blocks of queries of attention: (first, end, number of visible keys), in order.

    A block computes scores for all keys that one of its causal queries sees, and for no later key. A block has at
    least 64 queries. There are at most 8 blocks, since each block is compiled separately.
    """
    if not causal:
        return [(0, queries, keys)]
    size = max(64, -(-queries // 8))
    ends = [min(start + size, queries) for start in range(0, queries, size)]
    return [(start, end, end) for start, end in zip(range(0, queries, size), ends, strict=True)]


def block_size(length: int, most: int = BLOCK) -> int:
    """The size of the fewest equal blocks of at most `most` that cover a length."""
    return -(-length // -(-length // most))


def written_out(config: GPTConfig) -> bool:
    """Whether attention materializes scores by blocks of queries only (`auto`: as on a CPU)."""
    return config.attention == "xla" or (config.attention == "auto" and config.context < LONG)


def parameters(config: GPTConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`.

    A tied output layer is part of the embeddings.
    """
    c = resolve_gpt(config)
    D, H, G, K, M, L = c.width, c.heads, c.key_heads, c.head_dim, c.mlp_width, c.layers
    ups = 2 if c.activation == "swiglu" else 1
    norm = D * (2 if c.norm == "layernorm" and c.bias else 1)
    parts = {
        "token embedding": c.vocab_size * D,
        "position embedding": c.context * D if c.positions == "learned" else 0,
        "attention": L * (2 * D * (H + G) * K + c.bias * ((H + 2 * G) * K + D)),
        "mlp": L * ((ups + 1) * D * M + c.bias * (ups * M + D)),
        "norms": (2 * L + 1) * norm + L * (2 * K if c.qk_norm else 0),
        "output layer": 0 if c.tied else c.vocab_size * D,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def flops_per_token(config: GPTConfig, *, whole_square: bool = False) -> float:
    """Training FLOPs per token of a full context: products of the forward and backward pass.

    A weight takes 2 FLOPs forward and 4 backward. So does each feature of a query with each key (scores) and with each
    value (mixing). The total is 6 N + 12 L H K S, where N counts the weights of products (not look-ups) and S is the
    average number of keys for which a query's scores are computed. Recomputation (by `remat`, or by blockwise
    attention) is not counted.

    Args:
        config: The configuration.
        whole_square: Use S = T, as PaLM (Chowdhery et al. 2022, appendix B); otherwise S counts the scores that the
            form `xla` computes, also for the other forms.
    """
    c = resolve_gpt(config)
    sizes = parameters(replace(c, bias=False))
    weights = sizes["attention"] + sizes["mlp"] + c.vocab_size * c.width
    keys = c.context if whole_square else _keys(c)
    return 6.0 * weights + 12.0 * c.layers * c.heads * c.head_dim * keys


def _keys(config: GPTConfig) -> float:
    """The average number of keys for which a query's scores are computed."""
    T = config.context
    return sum((end - start) * keys_seen for start, end, keys_seen in query_blocks(T, T, True)) / T


def activation_bytes(config: GPTConfig) -> float:
    """Bytes per token: activations of all layers, and those of the layer being computed."""
    c = resolve_gpt(config)
    D, narrow = c.width, 2 if c.dtype == "bfloat16" else 4
    queries, projected = c.heads * c.head_dim, (c.heads + 2 * c.key_heads) * c.head_dim
    ups = c.mlp_width * (2 if c.activation == "swiglu" else 1)
    wide = 4 * (2 * D + queries + ups)  # inputs of both norms, output of attention, input of the nonlinearity
    sums = 4 * c.heads * (2 if written_out(c) else 1)  # maximum and sum of weights, or log Z; scores are recomputed
    inputs = narrow * (2 * D + projected + queries + c.mlp_width) + sums  # of every product
    saved = {"none": wide + inputs, "dots": 4 * (2 * D + projected + ups), "full": 4 * D}[c.remat]
    return c.layers * saved + wide + inputs
