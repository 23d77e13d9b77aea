"""The tokenizer classes of transformers 5.24 that build their steps themselves.

They do so whatever tokenizer.json says.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lmjax.data.tokenizer_registry import ALIASES, BACKEND, NOT_FOLLOWED, OVERRIDES, REGISTERED
from lmjax.data.tokenizer_settings import Settings
from lmjax.data.vocabularies import CONTINUES, QWEN2_WORDS, QWEN3_5_WORDS, UNKNOWN

_END = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerClass:
    """The steps and defaults of a class."""

    #: The class of the model.
    model: Any
    #: Attributes of the model.
    options: Mapping[str, Any]
    #: Normalizer, pre-tokenizer and decoder for the settings.
    steps: Callable[[Settings], tuple[Any, Any, Any]]
    #: Special tokens that the class names by default; they count if they are in the vocabulary.
    named: Mapping[str, str] = field(default_factory=dict)
    #: Whether the class reads `vocab.json` and `merges.txt`.
    two_files: bool = False
    #: Further special tokens of the class by their names, which it adds to the vocabulary.
    others: Mapping[str, str] = field(default_factory=dict)
    #: Whether the class discards the post-processor in tokenizer.json.
    own_ends: bool = False
    #: Whether the class puts bos_token in front of every text unless add_bos_token says no.
    begins: bool = False
    #: Whether the model has the unk_token that the files or the class name.
    unknown: bool = False


_BYTES = {
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "unk_token": None,
    "ignore_merges": False,
}
_PIECES = {"fuse_unk": True, "byte_fallback": True, "ignore_merges": False}


def _gpt2(settings: Settings) -> tuple[Any, Any, Any]:
    blank = settings.flag("add_prefix_space", False)
    return None, pre_tokenizers.ByteLevel(add_prefix_space=blank), decoders.ByteLevel()


def _gpt_neox(settings: Settings) -> tuple[Any, Any, Any]:
    return normalizers.NFC(), *_gpt2(settings)[1:]


def _qwen2(settings: Settings, expression: str = QWEN2_WORDS) -> tuple[Any, Any, Any]:
    blank = settings.flag("add_prefix_space", False)
    words = pre_tokenizers.Split(Regex(expression), behavior="isolated", invert=False)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=False)
    return normalizers.NFC(), pre_tokenizers.Sequence([words, spelled]), decoders.ByteLevel()


def _cohere(settings: Settings) -> tuple[Any, Any, Any]:
    _, spelled, decoder = _gpt2(settings)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return normalizers.NFC(), pre_tokenizers.Sequence([digits, spelled]), decoder


def _gemma(settings: Settings) -> tuple[Any, Any, Any]:
    words = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return normalizers.Replace(" ", "\u2581"), words, decoder


def _code_llama(settings: Settings) -> tuple[Any, Any, Any]:
    scheme = "first" if settings.flag("add_prefix_space", True) else "never"
    words = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return None, words, decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)])


def _llama(settings: Settings) -> tuple[Any, Any, Any]:
    blank = settings.flag("add_prefix_space", True)
    scheme = ("always" if settings.flag("legacy", False) else "first") if blank else "never"
    words = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return None, words, decoders.Sequence(steps + [decoders.Strip(content=" ", left=1)] * blank)


def _bert(settings: Settings) -> tuple[Any, Any, Any]:
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.flag("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    return normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix=CONTINUES)


_OF_BERT = {
    "unk_token": UNKNOWN,
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_OF_GPT2 = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_OF_COHERE = {
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "unk_token": "<UNK>",
    "sep_token": "<SEP>",
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "mask_token": "<MASK_TOKEN>",
}
_OF_GEMMA = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_OF_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_OF_CODE_LLAMA = {
    "prefix_token": "\u2581<PRE>",
    "middle_token": "\u2581<MID>",
    "suffix_token": "\u2581<SUF>",
    "eot_token": "\u2581<EOT>",
    "fill_token": "<FILL_ME>",
}
CLASSES = {
    "GPT2Tokenizer": TokenizerClass(models.BPE, _BYTES, _gpt2, _OF_GPT2, two_files=True),
    "GPTNeoXTokenizer": TokenizerClass(
        models.BPE, _BYTES, _gpt_neox, _OF_GPT2 | {"pad_token": "<|padding|>"}, two_files=True, own_ends=True
    ),
    "Qwen2Tokenizer": TokenizerClass(
        models.BPE, _BYTES, _qwen2, {"eos_token": _END, "unk_token": _END, "pad_token": _END}, two_files=True
    ),
    "Qwen3_5Tokenizer": TokenizerClass(
        models.BPE,
        _BYTES,
        partial(_qwen2, expression=QWEN3_5_WORDS),
        {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    ),
    "CodeGenTokenizer": TokenizerClass(models.BPE, _BYTES, _gpt2, _OF_GPT2, two_files=True),
    "CohereTokenizer": TokenizerClass(models.BPE, _BYTES, _cohere, _OF_COHERE),
    "GemmaTokenizer": TokenizerClass(models.BPE, _PIECES, _gemma, _OF_GEMMA, unknown=True),
    "LlamaTokenizer": TokenizerClass(models.BPE, _PIECES | {"unk_token": None}, _llama, _OF_LLAMA),
    "CodeLlamaTokenizer": TokenizerClass(
        models.BPE, _PIECES, _code_llama, _OF_LLAMA, others=_OF_CODE_LLAMA, begins=True, unknown=True
    ),
    "BertTokenizer": TokenizerClass(
        models.WordPiece,
        {"max_input_chars_per_word": 100, "continuing_subword_prefix": CONTINUES},
        _bert,
        _OF_BERT,
    ),
}
CLASSES["DistilBertTokenizer"] = CLASSES["BertTokenizer"]


def class_of(settings: Settings, tokenizer_json: str | None) -> str:
    """Return the class by which transformers reads a folder.

    Args:
        settings: The settings of the folder.
        tokenizer_json: The content of its tokenizer.json; None: there is none.

    Returns:
        A name in `CLASSES` or `NOT_FOLLOWED`, `BACKEND`, or "" if nothing names a class.
    """
    named, registered = settings.class_name, REGISTERED.get(settings.model_type, "")
    if named == "LlamaTokenizer" and settings.model_type not in OVERRIDES and '"ByteLevel"' in (tokenizer_json or ""):
        return BACKEND
    if not named:
        # Without tokenizer_config.json, tokenizer.json is the only statement about the tokenizer.
        named = (registered or BACKEND) if settings.configured and settings.model_type else ""
    elif registered and named != registered:
        named = registered if registered == BACKEND or settings.model_type in OVERRIDES else named
    named = ALIASES.get(named, named)
    return named if not named or named in CLASSES or named in NOT_FOLLOWED else BACKEND


def defaults(settings: Settings, class_name: str) -> Mapping[str, str]:
    """Return the special tokens that the class names by default."""
    name = class_name or REGISTERED.get(settings.model_type, "")
    return CLASSES[name].named if name in CLASSES else {}


def apply_class(backend: Backend, settings: Settings, class_name: str) -> Backend:
    """Give a tokenizer the steps of its class, where they differ.

    Returns:
        The tokenizer, or a copy without the added tokens of tokenizer.json that added_tokens_decoder leaves out.

    Raises:
        UserError: The class needs another kind of model.
    """
    chosen = CLASSES[class_name]
    if not isinstance(backend.model, chosen.model):
        kind = type(backend.model).__name__
        raise settings.refused("tokenizer_class", f"it uses {chosen.model.__name__}, and the vocabulary is {kind}")
    options = dict(chosen.options)
    if chosen.unknown:
        token = settings.named.get("unk_token")
        options["unk_token"] = chosen.named["unk_token"] if token is None else token.content
    for name, value in options.items():
        if (getattr(backend.model, name) or None) != (value or None):
            setattr(backend.model, name, value)
    for name, step in zip(("normalizer", "pre_tokenizer", "decoder"), chosen.steps(settings), strict=True):
        if _state(getattr(backend, name)) != _state(step):
            setattr(backend, name, step)
    if chosen.own_ends and backend.encode("a").special_tokens_mask.count(1):
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])  # pyright: ignore
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    if settings.flag("added_tokens_decoder") is None or added <= {token.content for token in settings.plain}:
        return backend
    copy = Backend(backend.model)
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        setattr(copy, name, getattr(backend, name))
    return copy


def _state(step: Any) -> Any:
    """Return the settings of a step that have an effect on ids and text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "trim_offsets"}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return None if step is None else plain(json.loads(step.__getstate__()))
