"""The schema of the models: one frozen dataclass a family, told apart by `family`.

What all share: vocab_size 0 takes the tokenizer's; dtype is that of the matrix products (parameters, softmax and loss
are always float32); init_std spreads the initial weights; dropout is a probability.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only Transformer, GPT-2 style or LLaMA style.

    vocab_size: 0 takes the tokenizer's. key_heads: 0 means one per head. head_dim: 0 means width / heads.
    mlp_width: 0 means 4 x width.
    rope_scaling: how rotary positions stretch to a longer context than they were trained for: empty not at all,
        (factor,) divides all of them (Chen et al. 2023), (factor, low, high, context) only the slow ones (Llama 3.1).
    scan: one compiled block scanned over the layers (fast to compile) or unrolled.
    remat: what the backward pass recomputes: nothing, everything but matrix products, everything.
    dtype: of the matrix products; parameters, softmax and loss are always float32.
    attention: `xla` writes the scores out, `blockwise` needs memory linear in the context, `cudnn` (GPU) and `splash`
        (TPU) are kernels that do too; `auto` chooses by the devices and the context.
    """

    family: Literal["gpt"] = "gpt"
    layers: int = 12
    width: int = 768
    heads: int = 12
    key_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    context: int = 1024
    vocab_size: int = 0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tied: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    attention: Literal["auto", "xla", "blockwise", "cudnn", "splash"] = "auto"
    scan: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class NNLMConfig:
    """The feed-forward language model of Bengio et al. 2003: y = b + W x + U tanh(d + H x).

    order: n, a token is predicted from the n - 1 before it (there is a vector for "nothing", in front of a window).
    width: features of a token (m). hidden: units of the hidden layer (h; 0: none, then `direct` must be on).
    direct: whether features reach the output also by W. context: tokens of a window that is trained on at once.
    """

    family: Literal["nnlm"] = "nnlm"
    order: int = 5
    width: int = 60
    hidden: int = 50
    direct: bool = True
    context: int = 64
    vocab_size: int = 0
    init_std: float = 0.02
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class RNNConfig:
    """A recurrent language model: stacked layers of one kind of cell over token embeddings.

    cell: `tanh` is the simple network of Elman 1990, `lstm` that of Hochreiter and Schmidhuber 1997 with forget gates
        (Gers et al. 2000), `gru` that of Cho et al. 2014 (in the form of cuDNN, as PyTorch has it).
    width: units of a layer, and features of a token. context: tokens back-propagated through at once.
    carried: each row of a batch goes on with the state where the row's window before ended (truncated
        back-propagation through time); otherwise every window starts from zero.
    dropout: between layers, and before the output (Zaremba et al. 2014).
    forget_bias: what the forget gates' bias starts at, so that an LSTM remembers at first (Jozefowicz et al. 2015).
    """

    family: Literal["rnn"] = "rnn"
    cell: Literal["tanh", "lstm", "gru"] = "lstm"
    layers: int = 2
    width: int = 128
    context: int = 50
    carried: bool = True
    vocab_size: int = 0
    forget_bias: float = 1.0
    tied: bool = False
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class TransformerConfig:
    """The encoder-decoder of Vaswani et al. 2017, which turns a source text into a target text.

    layers: of the encoder and of the decoder each. context: tokens of the source, and of the target, at most.
    mlp_width: 0 means 4 x width. norm_first: norms before the sublayers (with one more at the end of each stack)
    instead of after them. shared: source, target and output use one table (section 3.4 of the paper).
    """

    family: Literal["transformer"] = "transformer"
    layers: int = 6
    width: int = 512
    heads: int = 8
    mlp_width: int = 0
    context: int = 128
    vocab_size: int = 0
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    norm_first: bool = False
    norm_epsilon: float = 1e-5
    shared: bool = True
    dropout: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class BERTConfig:
    """The bidirectional encoder of Devlin et al. 2019; the defaults are BERT base.

    mlp_width: 0 means 4 x width. segments: kinds of token type. next_sentence: with that head on the pooler.
    """

    family: Literal["bert"] = "bert"
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 0
    context: int = 512
    vocab_size: int = 0
    segments: int = 2
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    init_std: float = 0.02
    next_sentence: bool = True
    scan: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"


ModelConfig = GPTConfig | NNLMConfig | RNNConfig | TransformerConfig | BERTConfig
