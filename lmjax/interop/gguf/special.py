"""Special tokens of a GGUF file: by id in the metadata, or by text, as in llama.cpp.

Files often name only the end of a text (`eos`) and not the end of a turn in a chat: llama.cpp ends a generation at
every token whose text is known to end one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.interop.gguf.file import entry

CONTROL = 3  # number of a control token in tokenizer.ggml.token_type

# Texts of tokens that end a generation.
_TURNS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>")
_TURNS += ("<turn|>", "<|eom_id|>", "<|return|>")
_CALLS = ("<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>")
_TEXTS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "[EOS]", "<eos>")
_ENDS = frozenset({*_TURNS, *_CALLS, *_TEXTS})

# Tokens that fill in the middle of code and end a generation too: names of ids in the metadata, and texts.
_FILLS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# Sets of tokens with which another token does not end a generation.
_EXCEPT = (({"<|return|>", "<|call|>"}, "<|end|>"), ({"<|return|>", "<|calls|>"}, "<|end|>"))
_EXCEPT += (({"<|call|>", "<|flush|>"}, "<|end|>"), ({"<|calls|>", "<|flush|>"}, "<|end|>"))
_EXCEPT += (({"<|tool_response>"}, "</s>"),)

_SENTENCE_PIECE = {"bos": 1, "eos": 2}  # ids of a SentencePiece vocabulary, where the metadata name none


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of special tokens."""

    #: The beginning of a text; None: not named.
    bos: int | None
    #: The end of a text; None: not named.
    eos: int | None
    #: Ids that end a generation.
    ends: tuple[int, ...]


def special_tokens(metadata: dict[str, Any], tokens: list[str], types: np.ndarray) -> SpecialTokens:
    """Find the special tokens of a vocabulary.

    Args:
        metadata: The metadata of the file.
        tokens: The vocabulary.
        types: The type of each token.

    Raises:
        UserError: An id is outside the vocabulary, or every text would end with the end-of-text token.
    """
    for key in ("add_eos_token", "add_sep_token"):
        if entry(metadata, f"tokenizer.ggml.{key}", False, kind=bool):
            raise UserError(f"tokenizer.ggml.{key}=True: a prompt after which its text ends cannot be continued")
    pieces = metadata.get("tokenizer.ggml.model") == "llama"
    named = {name: token_id(metadata, name, len(tokens)) for name in ("bos", "eos", "eot", "eom", *_FILLS)}
    for name, default in _SENTENCE_PIECE.items():
        if pieces and named[name] is None and default < len(tokens) and types[default] == CONTROL:
            named[name] = default
    texts = set(tokens)
    ends = _ENDS & texts
    for name, known in _FILLS.items():
        if named[name] is None:
            ends |= set(known) & texts
    for others, text in _EXCEPT:
        if others <= texts and text in ends:
            ends -= {text}
    ids = {i for i, token in enumerate(tokens) if token in ends}
    ids |= {i for name, i in named.items() if name != "bos" and i is not None}
    return SpecialTokens(named["bos"], named["eos"], tuple(sorted(ids)))


def token_id(metadata: dict[str, Any], name: str, vocab_size: int) -> int | None:
    """Return the id of a special token in the metadata; None: not named.

    Raises:
        UserError: It is outside the vocabulary.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in metadata:
        return None
    value = entry(metadata, key, kind=int)
    if not 0 <= value < vocab_size:
        raise UserError(f"{key}={value} is not an id below {vocab_size}")
    return value
