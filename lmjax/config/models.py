"""The schema of the models: one frozen dataclass per family, distinguished by `family`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.config.ranges import at_least, finite, interval, positive, rotary_scaling, size


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only Transformer in the style of GPT-2 or LLaMA."""

    #: Selects this member of the union.
    family: Literal["gpt"] = "gpt"
    #: Number of layers.
    layers: Annotated[int, size(1)] = 12
    #: Features of a token.
    width: Annotated[int, size(1)] = 768
    #: Number of attention heads.
    heads: Annotated[int, size(1)] = 12
    #: Number of key and value heads (0: as many as heads).
    key_heads: Annotated[int, size(0)] = 0
    #: Features of a head (0: width / heads).
    head_dim: Annotated[int, size(0)] = 0
    #: Units of the MLP's hidden layer (0: 4 x width).
    mlp_width: Annotated[int, size(0)] = 0
    #: Maximum number of tokens of a row.
    context: Annotated[int, size(1)] = 1024
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Kind of normalization.
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    #: Term added to the variance in the norms.
    norm_epsilon: Annotated[float, positive()] = 1e-5
    #: Learned position embeddings, or rotary positions.
    positions: Literal["learned", "rotary"] = "learned"
    #: Base of the rotary frequencies.
    rope_theta: Annotated[float, positive()] = 10_000.0
    #: How rotary positions extend to a longer context than in training. Empty: they do not. (factor,) divides all
    #: positions (Chen et al. 2023); (factor, low, high, context) divides only the slow frequencies (Llama 3.1).
    rope_scaling: Annotated[tuple[float, ...], rotary_scaling()] = ()
    #: Activation of the MLP.
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu_tanh"
    #: Whether linear layers and norms have biases.
    bias: bool = True
    #: Share the token embedding with the output layer.
    tied: bool = True
    #: Normalize queries and keys.
    qk_norm: bool = False
    #: Dropout probability.
    dropout: Annotated[float, interval("[0, 1)")] = 0.0
    #: Standard deviation of the initial weights.
    init_std: Annotated[float, at_least(0)] = 0.02
    #: `xla` materializes the scores. `blockwise` needs memory linear in the context, as do the kernels `cudnn` (GPU)
    #: and `splash` (TPU). `auto` chooses by the devices and the context.
    attention: Literal["auto", "xla", "blockwise", "cudnn", "splash"] = "auto"
    #: Compile one block and scan it over the layers, which compiles fast; otherwise unroll the layers.
    scan: bool = True
    #: What the backward pass recomputes: nothing, everything except matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


def small_llama(
    *,
    layers: int,
    width: int,
    heads: int,
    context: int,
    mlp_width: int = 0,
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "swiglu",
) -> GPTConfig:
    """Return a GPT in the style of LLaMA, in the form that is fastest on a CPU.

    The CPU needs bfloat16 products for that. Queries and keys are normalized, and the layers are unrolled. The
    arguments are fields of `GPTConfig`.
    """
    return GPTConfig(
        layers=layers,
        width=width,
        heads=heads,
        mlp_width=mlp_width,
        context=context,
        norm="rmsnorm",
        positions="rotary",
        activation=activation,
        bias=False,
        qk_norm=True,
        scan=False,
        dtype="bfloat16",
    )


@dataclass(frozen=True)
class NNLMConfig:
    """The feed-forward language model of Bengio et al. 2003: y = b + W x + U tanh(d + H x)."""

    #: Selects this member of the union.
    family: Literal["nnlm"] = "nnlm"
    #: n: each token is predicted from the n - 1 previous tokens. A vector for "nothing" represents the places before a
    #: window.
    order: Annotated[int, size(2)] = 5
    #: m: features of a token.
    width: Annotated[int, size(1)] = 60
    #: h: units of the hidden layer (0: none; then `direct` must be true).
    hidden: Annotated[int, size(0)] = 50
    #: Whether the features also reach the output directly, by W.
    direct: bool = True
    #: Tokens of a training window.
    context: Annotated[int, size(1)] = 64
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Standard deviation of the initial weights.
    init_std: Annotated[float, at_least(0)] = 0.02
    #: Dropout probability.
    dropout: Annotated[float, interval("[0, 1)")] = 0.0
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class RNNConfig:
    """A recurrent language model: stacked layers of one kind of cell over token embeddings."""

    #: Selects this member of the union.
    family: Literal["rnn"] = "rnn"
    #: `tanh`: the simple network of Elman 1990. `lstm`: Hochreiter and Schmidhuber 1997 with forget gates (Gers et al.
    #: 2000). `gru`: Cho et al. 2014, in the form of cuDNN and PyTorch.
    cell: Literal["tanh", "lstm", "gru"] = "lstm"
    #: Number of layers.
    layers: Annotated[int, size(1)] = 2
    #: Units of a layer, and features of a token.
    width: Annotated[int, size(1)] = 128
    #: Tokens that one back-propagation spans.
    context: Annotated[int, size(1)] = 50
    #: Start each row of a batch from the final state of its previous window (truncated back-propagation through time);
    #: otherwise every window starts from zero.
    carried: bool = True
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Initial bias of the forget gates. A positive value makes an LSTM remember at first (Jozefowicz et al. 2015).
    forget_bias: Annotated[float, finite()] = 1.0
    #: Share the token embedding with the output layer.
    tied: bool = False
    #: Dropout probability between layers and before the output (Zaremba et al. 2014).
    dropout: Annotated[float, interval("[0, 1)")] = 0.0
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class TransformerConfig:
    """The encoder-decoder of Vaswani et al. 2017, which maps a source text to a target text."""

    #: Selects this member of the union.
    family: Literal["transformer"] = "transformer"
    #: Number of layers of the encoder, and of the decoder.
    layers: Annotated[int, size(1)] = 6
    #: Features of a token.
    width: Annotated[int, size(1)] = 512
    #: Number of attention heads.
    heads: Annotated[int, size(1)] = 8
    #: Units of the MLP's hidden layer (0: 4 x width).
    mlp_width: Annotated[int, size(0)] = 0
    #: Maximum number of tokens of the source, and of the target.
    context: Annotated[int, size(1)] = 128
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Activation of the MLP.
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    #: Put the norms before the sublayers, with another norm at the end of each stack; otherwise after the sublayers.
    norm_first: bool = False
    #: Term added to the variance in the norms.
    norm_epsilon: Annotated[float, positive()] = 1e-5
    #: Share one embedding table among source, target and output (section 3.4 of the paper).
    shared: bool = True
    #: Dropout probability.
    dropout: Annotated[float, interval("[0, 1)")] = 0.1
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class BERTConfig:
    """The bidirectional encoder of Devlin et al. 2019; the defaults are BERT base."""

    #: Selects this member of the union.
    family: Literal["bert"] = "bert"
    #: Number of layers.
    layers: Annotated[int, size(1)] = 12
    #: Features of a token.
    width: Annotated[int, size(1)] = 768
    #: Number of attention heads.
    heads: Annotated[int, size(1)] = 12
    #: Units of the MLP's hidden layer (0: 4 x width).
    mlp_width: Annotated[int, size(0)] = 0
    #: Maximum number of tokens of a row.
    context: Annotated[int, size(5)] = 512
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Number of token types.
    segments: Annotated[int, size(2)] = 2
    #: Activation of the MLP.
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    #: Term added to the variance in the norms.
    norm_epsilon: Annotated[float, positive()] = 1e-12
    #: Dropout probability.
    dropout: Annotated[float, interval("[0, 1)")] = 0.1
    #: Standard deviation of the initial weights.
    init_std: Annotated[float, at_least(0)] = 0.02
    #: Add the next-sentence head on the pooler.
    next_sentence: bool = True
    #: Compile one block and scan it over the layers, which compiles fast; otherwise unroll the layers.
    scan: bool = True
    #: What the backward pass recomputes: nothing, everything except matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class CustomModelConfig:
    """Base class of the configuration of a registered model family.

    A user adds families with `lmjax.register_family`.
    A subclass is a frozen dataclass too, and narrows `family` to `Literal["NAME"]`.
    """

    #: Selects the member of the union.
    family: str = ""
    #: Features of a token.
    width: Annotated[int, size(1)] = 64
    #: Maximum number of tokens of a row.
    context: Annotated[int, size(1)] = 64
    #: Number of tokens (0: as many as the tokenizer has).
    vocab_size: Annotated[int, size(0)] = 0
    #: Dropout probability.
    dropout: Annotated[float, interval("[0, 1)")] = 0.0
    #: Type of the matrix products. Parameters, softmax and loss are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"


ModelConfig = GPTConfig | NNLMConfig | RNNConfig | TransformerConfig | BERTConfig | CustomModelConfig
