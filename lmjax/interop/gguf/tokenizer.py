"""The tokenizer in a GGUF file's metadata: a byte-level BPE, or LLaMA's SentencePiece BPE."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.vocabularies import byte_level
from lmjax.interop.gguf.file import entry, shown
from lmjax.interop.gguf.special import CONTROL, SpecialTokens, special_tokens, token_id

_NORMAL, _UNKNOWN, _OWN, _BYTE = 1, 2, 4, 6  # tokenizer.ggml.token_type; _OWN: user-defined token
_LONGEST = 1024  # maximum number of characters of a token
_BLANK = "\u2581"  # SentencePiece's symbol for a blank
_EXPORTED = {"unk_token": "unknown", "pad_token": "padding"}  # names in transformers, and in the metadata

# Names of pre-tokenizers in `tokenizer.ggml.pre`. Files without this key use that of GPT-2.
_GPT2 = ("gpt-2", "gpt2", "default", "phi-2")
_DIGITS = ("smollm", "starcoder", "refact", "codeshell")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a file with its special tokens."""

    #: The tokenizer.
    tokenizer: Tokenizer
    #: The special tokens.
    special: SpecialTokens
    #: Whether the BOS precedes every text.
    begins: bool


def build(metadata: dict[str, Any], vocab_size: int) -> Vocabulary:
    """Build the tokenizer from the metadata of a GGUF file.

    Args:
        metadata: The metadata.
        vocab_size: Number of rows of the model's token embedding; it must equal the number of tokens.

    Raises:
        UserError: An entry is missing or inconsistent.
    """
    kind = entry(metadata, "tokenizer.ggml.model", kind=str)
    name = entry(metadata, "tokenizer.ggml.pre", "default", kind=str)
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or len(tokens) != vocab_size:
        raise UserError(f"tokenizer.ggml.tokens is not a list of {vocab_size} tokens, one for each row of the table")
    if len(set(tokens)) != len(tokens) or max(map(len, tokens)) > _LONGEST:
        raise UserError(f"tokenizer.ggml.tokens has a token twice, or one of more than {_LONGEST} characters")
    types = np.full(len(tokens), _NORMAL) if types is None else types
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise UserError("tokenizer.ggml.token_type is not one number for each token")
    if kind == "gpt2":
        backend = _byte_level(tokens, metadata.get("tokenizer.ggml.merges"), name)
    elif kind == "llama":
        prefix = entry(metadata, "tokenizer.ggml.add_space_prefix", True, kind=bool)
        backend = _sentence_pieces(tokens, types, metadata.get("tokenizer.ggml.scores"), prefix)
    else:
        raise UserError(f"tokenizer.ggml.model={shown(kind)}: lmjax reads gpt2 and llama")
    found = special_tokens(metadata, tokens, types)
    special = np.isin(types, (_UNKNOWN, CONTROL))
    special[list(found.ends)] = True  # a file may list them as ordinary tokens
    backend.add_tokens([_added(tokens[i], False) for i in np.flatnonzero((types == _OWN) & ~special)])
    backend.add_special_tokens([_added(tokens[i], True) for i in np.flatnonzero(special)])
    tokenizer = Tokenizer(backend, _named(metadata, tokens), _templates(metadata))
    if tokenizer.vocab_size != vocab_size:
        raise UserError("tokenizer.ggml.tokens: the tokens do not make one vocabulary")
    begins = entry(metadata, "tokenizer.ggml.add_bos_token", kind == "llama" or name in _LLAMA3, kind=bool)
    return Vocabulary(tokenizer, found, begins)


def _named(metadata: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    """Return the special tokens that only an export needs, by their names in transformers."""
    ids = {name: token_id(metadata, key, len(tokens)) for name, key in _EXPORTED.items()}
    return {name: tokens[id] for name, id in ids.items() if id is not None}


def _templates(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the chat templates as tokenizer_config.json has them."""
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(prefix).removeprefix("."): text for key, text in metadata.items() if _is_template(key)}
    named = {name or "default": text for name, text in named.items() if isinstance(text, str)}
    if not named:
        return {}
    if named.keys() == {"default"}:
        return {"chat_template": named["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in named.items()]}


def _is_template(key: str) -> bool:
    return key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")


def _added(token: str, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)


def _model(vocabulary: list[str], merges: list[tuple[str, str]], **settings: Any) -> models.BPE:
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, **settings)
    except Exception as error:  # the only type that the Rust library raises
        raise UserError(f"its tokens and merges do not fit together: {str(error).splitlines()[0]}") from None


# ---- Byte-level BPE ---------------------------------------------------------------------------------------------


def _byte_level(tokens: list[str], merges: Any, name: str) -> Backend:
    if not isinstance(merges, list):
        raise UserError("tokenizer.ggml.merges is missing; a byte-level BPE needs it")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    wrong = next((i for i, (left, right) in enumerate(pairs) if not left or not right or " " in right), None)
    if wrong is not None:
        raise UserError(f"tokenizer.ggml.merges has {shown(merges[wrong])}, which is not a pair of tokens")
    backend = byte_level({}, [])
    backend.model = _model(tokens, pairs, ignore_merges=name in _LLAMA3)
    backend.pre_tokenizer = _splitter(name)  # pyright: ignore[reportAttributeAccessIssue]
    if name in _QWEN2:
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _splitter(name: str) -> Any:
    """The pre-tokenizer of this name: splits text into words, and words into bytes."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in _GPT2:
        return words
    if name in _DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name in _LLAMA3 + _QWEN2:
        expression = Regex(_words(3 if name in _LLAMA3 else 1))
        return pre_tokenizers.Sequence([pre_tokenizers.Split(expression, "isolated"), spelled])
    known = ", ".join(_GPT2 + _DIGITS + _LLAMA3 + _QWEN2)
    raise UserError(f"tokenizer.ggml.pre={shown(name)} is not supported; supported: {known}")


def _words(digits: int) -> str:
    """The regular expression for words of GPT-4's tokenizer; numbers in groups of `digits`."""
    letters, signs = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return rf"{letters}|\p{{N}}{{1,{digits}}}|{signs}|\s*[\r\n]+|\s+(?!\S)|\s+"


# ---- SentencePiece's BPE ----------------------------------------------------------------------------------------


def _sentence_pieces(tokens: list[str], types: np.ndarray, scores: Any, prefix: bool) -> Backend:
    """SentencePiece's BPE: merges the neighbours whose concatenation has the best score.

    Characters without a token become bytes. The merges are all splits of a token into two, the best token first.
    `prefix`: prepend a blank to every text.
    """
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise UserError("tokenizer.ggml.scores is not one finite number for each token")
    unknown = next((tokens[i] for i in np.flatnonzero(types == _UNKNOWN)), None)
    pieces = {tokens[i] for i in np.flatnonzero(types == _NORMAL)}
    merges = []
    for i in np.argsort(-scores.astype(np.float64), kind="stable"):
        token = tokens[i]
        if types[i] == _NORMAL:
            splits = ((token[:n], token[n:]) for n in range(1, len(token)))
            merges += [(left, right) for left, right in splits if left in pieces and right in pieces]
    known = set(tokens)
    fallback = all(f"<0x{byte:02X}>" in known for byte in range(256))
    backend = Backend(_model(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    blank = normalizers.Replace(" ", _BLANK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blank] if prefix else [blank])  # pyright: ignore
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)  # pyright: ignore
    return backend
