"""Conversion between the tensors of Hugging Face models and parameters of lmjax."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from lmjax.config import GPTConfig, ModelConfig, UserError
from lmjax.interop.huggingface import buffers
from lmjax.interop.huggingface.buffers import Rule
from lmjax.interop.huggingface.config import counterpart
from lmjax.interop.huggingface.weights import finite
from lmjax.models import bert, gpt
from lmjax.pytrees import path_name

_PROJECTIONS = ("query", "key", "value")
_FREQUENCIES: dict[str, Rule] = {r".*rotary_emb\.inv_freq": buffers.frequencies}
_SWIGLU = {"mlp/up": "mlp.up_proj", "mlp/gate": "mlp.gate_proj", "mlp/down": "mlp.down_proj"}


@dataclass(frozen=True)
class _Layout:
    """Tensor names and memory layout of a family of transformers."""

    #: Prefix of every name, except those that begin with one of `heads`.
    base: str
    #: Prefix of the names of a layer.
    layer: str
    #: Module names inside a layer, lmjax -> transformers.
    inner: dict[str, str]
    #: Module names outside of layers, lmjax -> transformers.
    outer: dict[str, str]
    #: Prefixes of names without `base`.
    heads: tuple[str, ...] = ("lm_head.",)
    #: Whether layers store kernels as (output features, input features).
    transposed: bool = True
    #: Whether query, key and value are one product, concatenated.
    fused: bool = False
    #: Whether a fused product concatenates query, key and value of each head.
    by_head: bool = False
    #: Tensors that are no parameters, as regular expressions with the rule for their content (see `buffers`).
    unused: dict[str, Rule] = field(default_factory=lambda: _FREQUENCIES)
    #: Tensors with the same value if the model is tied, (the one that lmjax reads, the other).
    tied: tuple[tuple[str, str], ...] = ()
    #: Prefixes of parameters of lmjax that a file may lack.
    optional: tuple[str, ...] = ()


_LLAMA = _Layout(
    base="model.",
    layer="layers.{}.",
    inner={
        "attention_norm": "input_layernorm",
        **{f"attention/{name}": f"self_attn.{name[0]}_proj" for name in _PROJECTIONS},
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "attention/output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        **_SWIGLU,
    },
    outer={"token_embedding": "embed_tokens", "final_norm": "norm", "head": "lm_head"},
    tied=(("embed_tokens.weight", "lm_head.weight"),),
)
_LAYOUTS = {
    "gpt2": _Layout(
        base="transformer.",
        layer="h.{}.",
        inner={
            "attention_norm": "ln_1",
            **{f"attention/{name}": "attn.c_attn" for name in _PROJECTIONS},
            "attention/output": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp/up": "mlp.c_fc",
            "mlp/down": "mlp.c_proj",
        },
        outer={"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f", "head": "lm_head"},
        transposed=False,
        fused=True,
        unused={r"h\.\d+\.attn\.bias": buffers.causal_mask, r"h\.\d+\.attn\.masked_bias": buffers.masked_logit},
        tied=(("wte.weight", "lm_head.weight"),),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "gpt_neox": _Layout(
        base="gpt_neox.",
        layer="layers.{}.",
        inner={
            "attention_norm": "input_layernorm",
            **{f"attention/{name}": "attention.query_key_value" for name in _PROJECTIONS},
            "attention/output": "attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "mlp/up": "mlp.dense_h_to_4h",
            "mlp/down": "mlp.dense_4h_to_h",
        },
        outer={"token_embedding": "embed_in", "final_norm": "final_layer_norm", "head": "embed_out"},
        heads=("embed_out.",),
        fused=True,
        by_head=True,
        unused={
            r".*attention\.bias": buffers.causal_mask,
            r".*attention\.masked_bias": buffers.masked_logit,
            **_FREQUENCIES,
        },
        tied=(("embed_in.weight", "embed_out.weight"),),
    ),
    "bert": _Layout(
        base="bert.",
        layer="encoder.layer.{}.",
        inner={
            **{f"attention/{name}": f"attention.self.{name}" for name in _PROJECTIONS},
            "attention/output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "mlp/up": "intermediate.dense",
            "mlp/down": "output.dense",
            "mlp_norm": "output.LayerNorm",
        },
        outer={
            "token_embedding": "embeddings.word_embeddings",
            "kind_embedding": "embeddings.token_type_embeddings",
            "position_embedding": "embeddings.position_embeddings",
            "embedding_norm": "embeddings.LayerNorm",
            "pooler": "pooler.dense",
            "masked_head/transform": "cls.predictions.transform.dense",
            "masked_head/norm": "cls.predictions.transform.LayerNorm",
            "masked_head": "cls.predictions",
            "next_sentence": "cls.seq_relationship",
        },
        heads=("cls.",),
        unused={
            r"embeddings\.position_ids": buffers.positions,
            r"cls\.seq_relationship\..*|classifier\..*|pooler\..*": buffers.anything,
        },
        tied=(
            ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
            ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ),
        optional=("pooler", "masked_head", "next_sentence"),
    ),
}


@dataclass(frozen=True)
class _Place:
    """The location of a leaf of an unrolled model."""

    #: Name of the tensor.
    name: str
    #: Whether the tensor is the transposed leaf.
    transposed: bool
    #: Index of the leaf in a fused tensor.
    part: int | None


def _place(layout: _Layout, leaf: str) -> _Place:
    """The location of a leaf such as `block_3/attention/query/kernel`; name without base."""
    match = re.fullmatch(r"block_(\d+)/(.*)", leaf)
    module, _, kind = (match[2] if match else leaf).rpartition("/")
    table, prefix = (layout.inner, layout.layer.format(match[1])) if match else (layout.outer, "")
    parent, _, last = module.rpartition("/")
    part = _PROJECTIONS.index(last) if layout.fused and parent == "attention" and last in _PROJECTIONS else None
    name = f"{prefix}{table[module]}.{'bias' if kind == 'bias' else 'weight'}"
    return _Place(name, kind == "kernel" and (layout.transposed or not match), part)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The leaves of lmjax with their shapes; those of a scanned model under `blocks`."""
    family: Any = bert if config.family == "bert" else gpt
    model = family.BERT(config) if config.family == "bert" else family.GPT(config)
    tree = jax.eval_shape(lambda: family.init_params(model, 0))
    return {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# ---- From transformers ------------------------------------------------------------------------------------------


def from_transformers(state: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """Convert tensors of a transformers model to float32 parameters, stacked if `config.scan`.

    Names may lack the prefix of the base model (`transformer.`, `model.`, ...). A BERT without heads or pooler gives
    parameters without them, which suffice for `BERT.encode`.

    Raises:
        UserError: A tensor is missing, has another shape than the configuration, or is not part of the model.
    """
    layout = _LAYOUTS[counterpart(config)]
    names = _names(state, layout)
    used = _tied(state, names, layout, config)

    def tensor(leaf: str, shape: tuple[int, ...]) -> np.ndarray:
        place = _place(layout, leaf)
        if place.name not in names:
            raise UserError(f"the weights are not those of this model: they have no tensor '{place.name}'")
        used.add(place.name)
        x = state[names[place.name]]
        asked = shape if place.part is None else (*shape[:-1], 3 * shape[-1])
        asked = asked[::-1] if place.transposed else asked
        if x.shape != asked:
            raise UserError(
                f"the weights do not fit the model: '{place.name}' is {x.shape}, the configuration asks for {asked}"
            )
        x = finite(names[place.name], x)
        x = x.T if place.transposed else x
        return _split(x, layout, config)[place.part].reshape(shape) if place.part is not None else x

    lacking = {prefix for prefix in layout.optional if not any(name in names for name in _of(layout, prefix, config))}
    shapes = {
        leaf: shape
        for leaf, shape in sorted(_shapes(config).items(), key=lambda item: not item[0].startswith("token_embedding"))
        if leaf.split("/")[0] not in lacking
    }
    leaves = {leaf: jnp.asarray(x, jnp.float32) for leaf, x in _read(shapes, tensor)}
    left = [name for name in names if name not in used]
    unknown = [name for name in left if not buffers.check(name, state[names[name]], config, layout.unused)]
    if unknown:
        raise UserError(
            f"the weights are not those of this model: it has no place for {', '.join(sorted(unknown)[:3])}"
        )
    return unflatten_dict({tuple(leaf.split("/")): x for leaf, x in leaves.items()})


def _of(layout: _Layout, prefix: str, config: ModelConfig) -> list[str]:
    """The names of the tensors of an optional part of the model."""
    return [_place(layout, leaf).name for leaf in _shapes(config) if leaf.split("/")[0] == prefix]


def _names(state: Mapping[str, np.ndarray], layout: _Layout) -> dict[str, str]:
    """Names without the prefix of the base model -> names of the file."""
    names = {_plain(name, layout.base): name for name in state}
    if len(names) < len(state):
        raise UserError("the weights are not those of one model: two tensors have the same name but for its beginning")
    return names


def own_head(state: Mapping[str, np.ndarray], config: ModelConfig) -> ModelConfig:
    """Correct `tied` if the output layer of the file differs from the embedding.

    transformers does the same.
    """
    if not isinstance(config, GPTConfig) or not config.tied:
        return config
    layout = _LAYOUTS[counterpart(config)]
    names = _names(state, layout)
    return config if all(_same(state, names, pair) for pair in layout.tied) else dataclasses.replace(config, tied=False)


def _same(state: Mapping[str, np.ndarray], names: dict[str, str], pair: tuple[str, str]) -> bool:
    """Whether at most one of two tensors is there, or both have the same value."""
    if any(name not in names for name in pair):
        return True
    first, second = (state[names[name]] for name in pair)
    return np.array_equal(first, second)


def _tied(state: Mapping[str, np.ndarray], names: dict[str, str], layout: _Layout, config: ModelConfig) -> set[str]:
    """The copies of tied tensors, which are not read.

    A copy whose original is absent replaces it in `names`.

    Raises:
        UserError: A copy has another value.
    """
    if isinstance(config, GPTConfig) and not config.tied:
        return set()
    copies = set()
    for read, copy in layout.tied:
        if not _same(state, names, (read, copy)):
            raise UserError(
                f"'{copy}' has other values than '{read}', with which it is tied in this model; set "
                "tie_word_embeddings to false in config.json if the model has an output layer of its own"
            )
        if copy in names:
            names.setdefault(read, names[copy])
            copies.add(copy)
    return copies


def _read(shapes: dict[str, tuple[int, ...]], tensor: Callable[[str, tuple[int, ...]], np.ndarray]) -> Any:
    """Yield each leaf with its value; stacked leaves are read layer by layer."""
    for leaf, shape in shapes.items():
        if leaf.startswith("blocks/"):
            inner_leaf = leaf.removeprefix("blocks/")
            yield leaf, np.stack([tensor(f"block_{i}/{inner_leaf}", shape[1:]) for i in range(shape[0])])
        else:
            yield leaf, tensor(leaf, shape)


def _plain(name: str, base: str) -> str:
    """Remove the prefix of the base model, and rename the old norm parameters of BERT."""
    name = name.removeprefix(base)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _split(x: np.ndarray, layout: _Layout, config: ModelConfig) -> np.ndarray:
    """Split (..., 3 F) into an array (3, ..., F), or (3, ..., heads, features) by head."""
    lead = x.shape[:-1]
    if layout.by_head:
        assert isinstance(config, GPTConfig)
        return np.moveaxis(x.reshape(*lead, config.heads, 3, -1), -2, 0)
    return np.moveaxis(x.reshape(*lead, 3, -1), -2, 0)


# ---- To transformers --------------------------------------------------------------------------------------------


def to_transformers(params: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """Convert parameters to float32 tensors of the transformers model of `counterpart`.

    Biases that lmjax's model lacks are zero.

    Raises:
        UserError: No transformers model has these settings.
    """
    family = counterpart(config)
    layout, leaves = _LAYOUTS[family], _unrolled(params)
    if isinstance(config, GPTConfig):  # in transformers norms have biases, and all products of the fused families
        config = dataclasses.replace(config, scan=False, bias=config.bias or layout.fused)
    else:
        config = dataclasses.replace(config, scan=False)  # pyright: ignore[reportCallIssue]
    state: dict[str, np.ndarray] = {}
    fused: dict[_Place, dict[int, np.ndarray]] = {}
    for leaf, shape in _shapes(config).items():
        if leaf not in leaves and leaf.split("/")[0] in layout.optional:
            raise UserError(
                f"the model cannot be exported without its {leaf.split('/')[0]}, which it was loaded without"
            )
        place, x = _place(layout, leaf), np.asarray(leaves.get(leaf, np.zeros(shape)), np.float32)
        if not np.isfinite(x).all():
            raise UserError(f"parameter '{leaf}' has values that are not finite; export an earlier checkpoint")
        if place.part is None:
            state[place.name] = x.T if place.transposed else x
        else:
            fused.setdefault(dataclasses.replace(place, part=None), {})[place.part] = x
    for place, parts in fused.items():
        x = _joined([parts[i] for i in range(3)], layout, config)
        state[place.name] = x.T if place.transposed else x
    return {
        (name if name.startswith(layout.heads) else layout.base + name): np.ascontiguousarray(x)
        for name, x in state.items()
    }


def _joined(parts: list[np.ndarray], layout: _Layout, config: ModelConfig) -> np.ndarray:
    """The inverse of `_split`."""
    if not layout.by_head:
        return np.concatenate(parts, -1)
    assert isinstance(config, GPTConfig)
    lead = parts[0].shape[:-1]
    return np.stack([x.reshape(*lead, config.heads, -1) for x in parts], -2).reshape(*lead, -1)


def _unrolled(params: Any) -> dict[str, np.ndarray]:
    leaves = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    stacked = {name: leaf for name, leaf in leaves.items() if name.startswith("blocks/")}
    layers = {
        f"block_{i}/{name.removeprefix('blocks/')}": layer
        for name, leaf in stacked.items()
        for i, layer in enumerate(leaf)
    }
    return {name: leaf for name, leaf in leaves.items() if name not in stacked} | layers
