"""Conversion between the config.json of Hugging Face models and `ModelConfig`.

Families: GPT-2, LLaMA, Mistral, Qwen3, GPT-NeoX and BERT, as far as lmjax computes them exactly. A setting that would
change the result and that lmjax does not support is an error that names it.
"""

from typing import Any

from lmjax.config import BERTConfig, GPTConfig, ModelConfig, UserError
from lmjax.config.errors import nearest
from lmjax.interop.huggingface.rope import rotary
from lmjax.interop.huggingface.settings import Settings
from lmjax.models import costs, registry

_LLAMA_LIKE = ("llama", "mistral", "qwen3")
FAMILIES = ("gpt2", *_LLAMA_LIKE, "gpt_neox", "bert")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


# ---- From transformers ------------------------------------------------------------------------------------------


def model_config(settings: dict[str, Any]) -> ModelConfig:
    """Convert the content of a config.json, without dropout.

    Raises:
        UserError: The `model_type` is unknown, or a setting is missing, misspelled or not supported.
    """
    parsed = Settings(settings)
    family = parsed.text("model_type")
    if family not in FAMILIES:
        raise UserError(f"lmjax has no model of model_type {family!r:.80}{nearest(family, FAMILIES)}")
    if settings.get("quantization_config") is not None:
        raise UserError("the weights are quantized (quantization_config); take the model's unquantized weights")
    parsed.absent("text_config", "its text model has settings of its own; lmjax reads models of text alone")
    parsed.absent("per_layer_config", "lmjax has the same settings in all layers")
    parsed.absent("pruned_heads", "lmjax has the same number of heads in all layers")
    stored = settings.get("dtype") or settings.get("torch_dtype") or "float32"  # the precedence of transformers
    if stored not in ("float32", "float16", "bfloat16", "float64"):
        raise UserError(
            f"weights of dtype {stored!r:.80} are not read; lmjax reads float32, float16, bfloat16, float64"
        )
    if family == "gpt2":
        config = _gpt2(parsed)
    elif family == "gpt_neox":
        config = _gpt_neox(parsed)
    else:
        config = _bert(parsed) if family == "bert" else _llama(parsed, family)
    registry.check(config)
    return config


def _activation(s: Settings, name: str, default: str) -> Any:
    activation = s.text(name, default)
    if activation not in _ACTIVATIONS:
        raise UserError(f"config.json: lmjax has no {name} {activation!r:.80}; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation]


def _common(s: Settings) -> dict[str, Any]:
    """The sizes with common key names (all families except GPT-2)."""
    return {
        "layers": s.integer("num_hidden_layers"),
        "width": s.integer("hidden_size"),
        "heads": s.integer("num_attention_heads"),
        "mlp_width": s.integer("intermediate_size"),
        "context": s.integer("max_position_embeddings"),
        "vocab_size": s.integer("vocab_size"),
    }


def _gpt2(s: Settings) -> GPTConfig:
    s.must("scale_attn_weights", True, True)
    s.must("scale_attn_by_inverse_layer_idx", False, False)
    s.must("add_cross_attention", False, False)
    return GPTConfig(
        layers=s.integer(s.same("n_layer", "num_hidden_layers")),
        width=s.integer(s.same("n_embd", "hidden_size")),
        heads=s.integer(s.same("n_head", "num_attention_heads")),
        mlp_width=s.integer("n_inner", 0),
        context=s.integer(s.same("n_positions", "max_position_embeddings")),
        vocab_size=s.integer("vocab_size"),
        norm_epsilon=s.number("layer_norm_epsilon", 1e-5),
        activation=_activation(s, "activation_function", "gelu_new"),
        tied=s.flag("tie_word_embeddings", True),
        init_std=s.number("initializer_range", 0.02),
    )


def _llama(s: Settings, family: str) -> GPTConfig:
    hidden_act = s.text("hidden_act", "silu")
    if hidden_act not in ("silu", "swish"):
        raise UserError(
            f"config.json: lmjax computes only hidden_act='silu' in {family}, the model has {hidden_act!r:.80}"
        )
    bias = s.flag("attention_bias", False)
    if bias != s.flag("mlp_bias", False):
        raise UserError("config.json: attention_bias and mlp_bias differ; lmjax has biases in all products or in none")
    if bias and family != "llama":  # transformers has none there, or those of attention alone
        raise UserError(f"config.json: lmjax computes only attention_bias=False in {family}, the model has True")
    sizes = _common(s)
    config = GPTConfig(
        **sizes,
        key_heads=_key_heads(s, family),
        head_dim=s.integer("head_dim", 128 if family == "qwen3" else 0),
        norm="rmsnorm",
        norm_epsilon=s.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias=bias,
        tied=s.flag("tie_word_embeddings", False),
        qk_norm=family == "qwen3",
        init_std=s.number("initializer_range", 0.02),
        **rotary(s, sizes["context"]),
    )
    _no_window(s, family, config.context)
    return config


def _key_heads(s: Settings, family: str) -> int:
    """The number of key heads; 0: as many as heads.

    A missing setting is not null in transformers.
    """
    missing = {"llama": 0, "mistral": 8, "qwen3": 32}[family]
    return s.integer("num_key_value_heads", 0 if "num_key_value_heads" in s.values else missing)


def _no_window(s: Settings, family: str, context: int) -> None:
    """Check that no sliding window is shorter than the context.

    Raises:
        UserError: A sliding window is shorter.
    """
    kinds = s.values.get("layer_types") or []
    if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise UserError(f"config.json: 'layer_types' is {kinds!r:.80}; lmjax has full attention in all layers")
    if family == "llama" or (family == "qwen3" and not s.flag("use_sliding_window", False)):
        return
    window = s.values.get("sliding_window", 4096)  # the default of transformers; null: no window
    if window is not None and s.integer("sliding_window", 4096) < context:
        raise UserError(
            f"config.json: attention sees only sliding_window={window} tokens, lmjax's sees the complete context; "
            f"lower max_position_embeddings to {window}, up to which both are equal"
        )


def _gpt_neox(s: Settings) -> GPTConfig:
    s.must("use_parallel_residual", False, True)
    s.must("attention_bias", True, True)
    sizes = _common(s)
    s.must("head_dim", sizes["width"] // sizes["heads"], sizes["width"] // sizes["heads"])
    return GPTConfig(
        **sizes,
        norm_epsilon=s.number("layer_norm_eps", 1e-5),
        activation=_activation(s, "hidden_act", "gelu"),
        tied=s.flag("tie_word_embeddings", False),
        init_std=s.number("initializer_range", 0.02),
        **rotary(s, sizes["context"], neox=True),
    )


def _bert(s: Settings) -> BERTConfig:
    s.must("position_embedding_type", "absolute", "absolute")
    s.must("is_decoder", False, False)
    s.must("tie_word_embeddings", True, True)
    return BERTConfig(
        **_common(s),
        segments=s.integer("type_vocab_size", 2),
        activation=_activation(s, "hidden_act", "gelu"),
        norm_epsilon=s.number("layer_norm_eps", 1e-12),
        dropout=0.0,
        init_std=s.number("initializer_range", 0.02),
        next_sentence=s.values.get("architectures") != ["BertForMaskedLM"],
    )


# ---- To transformers --------------------------------------------------------------------------------------------


def counterpart(config: ModelConfig) -> str:
    """The family of transformers that computes the same.

    Raises:
        UserError: There is no such family; the message lists the settings that differ.
    """
    if isinstance(config, BERTConfig):
        return "bert"
    if not isinstance(config, GPTConfig):
        raise UserError(f"model.family={config.family} has no counterpart in transformers")
    c = costs.resolve_gpt(config)
    even = c.width % c.heads == 0
    plain = {
        "norm": c.norm == "layernorm",
        "activation": c.activation != "swiglu",
        "qk_norm": not c.qk_norm,
        "key_heads": c.key_heads == c.heads,
        "head_dim": c.head_dim * c.heads == c.width,
    }
    llama = {"norm": c.norm == "rmsnorm", "positions": c.positions == "rotary", "activation": c.activation == "swiglu"}
    matches = {
        "gpt2": {"positions": c.positions == "learned", **plain},
        "gpt_neox": {"positions": c.positions == "rotary", **plain},
        "llama": {**llama, "qk_norm": not c.qk_norm, "head_dim": even},
        "mistral": {**llama, "qk_norm": not c.qk_norm, "head_dim": not even, "bias": not c.bias},
        "qwen3": {**llama, "qk_norm": c.qk_norm, "bias": not c.bias},
    }
    different = {family: [name for name, same in checks.items() if not same] for family, checks in matches.items()}
    nearest_family = min(different, key=lambda family: len(different[family]))
    if different[nearest_family]:
        shown = ", ".join(f"model.{name}={getattr(config, name)}" for name in different[nearest_family])
        raise UserError(f"no model of transformers has these settings together; {nearest_family} has all but {shown}")
    return nearest_family


def transformers_settings(
    config: ModelConfig, *, first: int | None = None, ends: tuple[int, ...] = ()
) -> dict[str, Any]:
    """The config.json with which transformers computes the same.

    Args:
        config: The configuration.
        first: Id that precedes every text; None: no such id.
        ends: Ids that end a text.

    Raises:
        UserError: See `counterpart`.
    """
    family = counterpart(config)
    table = {
        "model_type": family,
        "dtype": "float32",
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "bos_token_id": first,
        "eos_token_id": ends[0] if ends else None,
        "pad_token_id": None,
    }
    if isinstance(config, BERTConfig):
        return table | _bert_settings(config)
    assert isinstance(config, GPTConfig)
    c = costs.resolve_gpt(config)
    table |= {"tie_word_embeddings": c.tied, "initializer_range": c.init_std}
    if family == "gpt2":
        return table | _gpt2_settings(config)
    table |= _sizes(c) | _rotary_settings(c)
    if family == "gpt_neox":
        return table | {
            "architectures": ["GPTNeoXForCausalLM"],
            "hidden_act": _their_activation(c.activation),
            "layer_norm_eps": c.norm_epsilon,
            "attention_dropout": c.dropout,
            "hidden_dropout": c.dropout,
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "rotary_emb_base": c.rope_theta,
        }
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return table | {
        "architectures": [names[family]],
        "num_key_value_heads": c.key_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "sliding_window": None,
    }


def _sizes(c: GPTConfig | BERTConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": c.layers,
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_width or 4 * c.width,
        "max_position_embeddings": c.context,
    }


def _gpt2_settings(c: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": c.layers,
        "n_embd": c.width,
        "n_head": c.heads,
        "n_inner": c.mlp_width or None,
        "n_positions": c.context,
        "activation_function": _their_activation(c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout),
    }


def _bert_settings(c: BERTConfig) -> dict[str, Any]:
    return _sizes(c) | {
        "architectures": ["BertForPreTraining" if c.next_sentence else "BertForMaskedLM"],
        "type_vocab_size": c.segments,
        "hidden_act": _their_activation(c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "initializer_range": c.init_std,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
    }


def _rotary_settings(c: GPTConfig) -> dict[str, Any]:
    """The rotary settings under the key names of transformers 5 and of transformers 4."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling: dict[str, Any] = dict(zip(names, c.rope_scaling, strict=False))
    if "original_max_position_embeddings" in scaling:
        scaling["original_max_position_embeddings"] = int(scaling["original_max_position_embeddings"])
    kind = {0: "default", 1: "linear", 4: "llama3"}[len(c.rope_scaling)]
    return {
        "rope_parameters": {"rope_type": kind, "rope_theta": c.rope_theta, **scaling},
        "rope_theta": c.rope_theta,
        "rope_scaling": {"rope_type": kind, **scaling} if scaling else None,
    }


def _their_activation(activation: str) -> str:
    return "gelu_new" if activation == "gelu_tanh" else activation
