"""The families of models by their configuration: which module is built, and its closed forms.

Each family's file (`flops` for GPT) has `check`, `parameters`, `flops_per_token` and `activation_bytes` of its
configuration; what does not depend on the family stands here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flax import linen as nn

from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, OptimizerConfig, RNNConfig, UserError
from lmjax.models import flops


def _family(config: ModelConfig) -> tuple[Any, Any]:
    """The module class of a family, and the file with its closed forms. Only what is asked for is imported."""
    match config.family:
        case "gpt":
            from lmjax.models import gpt

            return gpt.GPT, flops
        case "nnlm":
            from lmjax.models import nnlm

            return nnlm.NNLM, nnlm
        case "rnn":
            from lmjax.models import rnn

            return rnn.RNN, rnn
        case "transformer":
            from lmjax.models import transformer

            return transformer.Transformer, transformer
        case "bert":
            from lmjax.models import bert

            return bert.BERT, bert


def build(config: ModelConfig) -> nn.Module:
    """The model of a configuration whose vocabulary is known."""
    return _family(config)[0](config)


def forms(config: ModelConfig) -> Any:
    """The module with the closed forms of a family."""
    return _family(config)[1]


def logical_axes(config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
    """The names of the axes of every parameter, also of a classifier (`lmjax.axes`)."""
    from lmjax.models import gpt

    module, file = _family(config)
    table = gpt.LOGICAL_AXES if module is gpt.GPT else file.LOGICAL_AXES
    return {**table, "classifier/kernel": ("embed", "classes"), "classifier/bias": ("classes",)}


def check_mesh(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """UserError: a size of the model does not divide among the devices of an axis of the mesh (`axes.MESH`)."""
    c: Any = forms(config).resolve(config) if hasattr(forms(config), "resolve") else config
    able = {"gpt": ("tensor", "sequence"), "bert": ("tensor",), "transformer": ("tensor",)}.get(config.family, ())
    for axis in ("tensor", "sequence"):
        if sizes.get(axis, 1) > 1 and axis not in able:
            raise UserError(f"parallel.mesh.{axis}={sizes[axis]}: model.family={config.family} cannot be divided so")
    keys = {
        "fsdp": ("width", "hidden") if config.family == "nnlm" else ("width",),
        "tensor": ("heads", "key_heads", "mlp_width", "vocab_size"),
        "sequence": ("context",),
    }
    for axis, names in keys.items():
        count = sizes.get(axis, 1)
        for name in names:
            size = getattr(c, name, 0)
            if size % count:
                raise UserError(
                    f"model.{name}={size} does not divide among parallel.mesh.{axis}={count}; "
                    f"{-(-size // count) * count} would"
                )


def check(config: ModelConfig) -> None:
    """UserError if no model can be built from the configuration; `vocab_size` may still be 0."""
    forms(config).check(config)


def tokens(config: ModelConfig) -> int:
    """The tokens that a whole sample counts for: a context, or two (source and target) for the encoder-decoder."""
    return config.context * (2 if config.family == "transformer" else 1)


def parameters(config: ModelConfig) -> dict[str, int]:
    """The number of parameters of each part, and their `total`."""
    return forms(config).parameters(config)


def flops_per_token(config: ModelConfig) -> float:
    """Training FLOPs for each token of a whole sample: the products of the forward and backward pass."""
    return forms(config).flops_per_token(config)


def memory(
    config: ModelConfig,
    microbatch: int,
    *,
    optimizer: OptimizerConfig | None = None,
    accumulate: bool = False,
    chunk: int = 0,
) -> dict[str, float]:
    """Bytes that an update needs on a device that computes `microbatch` whole samples at once.

    Nothing is sharded. `accumulate`: a second gradient, the sum over microbatches. `chunk`: tokens whose logits exist
    at once (0: all). Parameters, gradients and the optimizer's state are exact, but for Adafactor's and Muon's state,
    which are estimates; activations and logits are what the backward pass keeps, an estimate that compiled GPTs meet
    within a factor of 1.5.
    """
    sizes, optimizer = parameters(config), optimizer or OptimizerConfig()
    count, places = sizes["total"], microbatch * tokens(config)
    parts: dict[str, float] = {
        "parameters": 4.0 * count,
        "gradients": 4.0 * count * (1 + accumulate),
        "optimizer": 4.0 * _optimizer_values(config, sizes, optimizer),
        "average": 4.0 * count * (optimizer.ema > 0),
        "activations": places * forms(config).activation_bytes(config),
        "logits": min(places, chunk or places) * 8.0 * config.vocab_size * _predicted(config),
    }
    return {name: size for name, size in parts.items() if size} | {"total": sum(parts.values())}


def _predicted(config: ModelConfig) -> float:
    """The share of places that the model has logits for."""
    if config.family == "bert":
        return forms(config).predictions(config.context) / config.context
    return 0.5 if config.family == "transformer" else 1.0


def _optimizer_values(config: ModelConfig, sizes: dict[str, int], optimizer: OptimizerConfig) -> float:
    """How many float32 values the optimizer keeps."""
    match optimizer.name:
        case "lion":
            return sizes["total"]
        case "adafactor":  # one value a row and a column of each matrix
            return 2 * sizes["total"] / config.width
        case "muon":  # one moment for the matrices of the blocks, Adam's two for the rest
            return 2 * sizes["total"] - sizes.get("attention", 0) - sizes.get("mlp", 0)
    return 2 * sizes["total"]


# ---- A small copy ---------------------------------------------------------------------------------------------------

LAYERS, WIDTH, HEADS, HEAD_DIM, CONTEXT = 2, 32, 2, 32, 64  # at most


def shrink(config: ModelConfig) -> ModelConfig:
    """A copy that trains in seconds: smaller in every size, the same in all else."""
    config = replace(config, context=min(config.context, CONTEXT))
    match config:
        case NNLMConfig():
            return replace(config, width=min(config.width, WIDTH), hidden=min(config.hidden, WIDTH))
        case RNNConfig():
            return replace(config, layers=min(config.layers, LAYERS), width=min(config.width, WIDTH))
        case GPTConfig():
            return _shrink_gpt(config)
        case _:
            heads = min(config.heads, HEADS)
            width = heads * min(config.width // config.heads, HEAD_DIM)
            mlp_width = 2 * width if config.mlp_width else 0
            return replace(config, layers=min(config.layers, LAYERS), width=width, heads=heads, mlp_width=mlp_width)


def _shrink_gpt(config: GPTConfig) -> GPTConfig:
    """At most 2 key heads, 2 heads for each of them, and 32 features a head."""
    whole = flops.resolve(config)
    key_heads, head_dim = min(whole.key_heads, HEADS), min(whole.head_dim, HEAD_DIM)
    heads = key_heads * min(whole.heads // whole.key_heads, HEADS)
    width = heads * head_dim
    return replace(
        config,
        layers=min(config.layers, LAYERS),
        width=width,
        heads=heads,
        key_heads=key_heads if config.key_heads else 0,
        head_dim=head_dim if config.head_dim else 0,
        mlp_width=max(2, 2 * round(width * config.mlp_width / config.width / 2)) if config.mlp_width else 0,
    )
