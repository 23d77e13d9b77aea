"""The tokenizer classes of transformers 5.24 that build their steps themselves.

They do so whatever tokenizer.json says.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lmjax.data.tokenizer_settings import Settings
from lmjax.data.vocabularies import CONTINUES, QWEN2_WORDS, UNKNOWN

BACKEND = "TokenizersBackend"  # the class that uses tokenizer.json as it is
_BACKENDS = (BACKEND, "PreTrainedTokenizer", "PythonBackend")

# The class of a model_type for which transformers and lmjax agree about the rules below. Empty: there is none.
_REGISTERED = {
    "": "",
    "bert": "BertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "llama": "",
    "mistral": BACKEND,
    "mixtral": BACKEND,
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
_OVERRIDES = ("qwen2",)  # model_types whose own class counts, whatever class a file names
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
    #: Whether the class discards the post-processor in tokenizer.json.
    own_ends: bool = False


_BYTES = {
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "unk_token": None,
    "ignore_merges": False,
}


def _gpt2(settings: Settings) -> tuple[Any, Any, Any]:
    blank = settings.flag("add_prefix_space", False)
    return None, pre_tokenizers.ByteLevel(add_prefix_space=blank), decoders.ByteLevel()


def _gpt_neox(settings: Settings) -> tuple[Any, Any, Any]:
    return normalizers.NFC(), *_gpt2(settings)[1:]


def _qwen2(settings: Settings) -> tuple[Any, Any, Any]:
    blank = settings.flag("add_prefix_space", False)
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=False)
    return normalizers.NFC(), pre_tokenizers.Sequence([words, spelled]), decoders.ByteLevel()


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
CLASSES = {
    "GPT2Tokenizer": TokenizerClass(models.BPE, _BYTES, _gpt2, _OF_GPT2, two_files=True),
    "GPTNeoXTokenizer": TokenizerClass(
        models.BPE, _BYTES, _gpt_neox, _OF_GPT2 | {"pad_token": "<|padding|>"}, two_files=True, own_ends=True
    ),
    "Qwen2Tokenizer": TokenizerClass(
        models.BPE, _BYTES, _qwen2, {"eos_token": _END, "unk_token": _END, "pad_token": _END}, two_files=True
    ),
    "LlamaTokenizer": TokenizerClass(
        models.BPE,
        {"fuse_unk": True, "byte_fallback": True, "unk_token": None, "ignore_merges": False},
        _llama,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
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
        A name in `CLASSES`, `BACKEND`, another class that a file names, or "" if nothing names a class.
    """
    named, registered = settings.class_name, _REGISTERED.get(settings.model_type)
    if registered is None:  # a model of another kind: tokenizer.json is complete
        return named if tokenizer_json is None else BACKEND
    if named == "LlamaTokenizer" and registered != BACKEND and '"ByteLevel"' in (tokenizer_json or ""):
        return BACKEND
    if not named:
        # Without tokenizer_config.json, tokenizer.json is the only statement about the tokenizer.
        return (registered or BACKEND) if settings.configured and settings.model_type else ""
    if registered and named != registered:
        if registered == BACKEND:
            return BACKEND
        named = registered if settings.model_type in _OVERRIDES else named
    if named in _BACKENDS or (tokenizer_json is not None and named not in CLASSES):
        return BACKEND
    return named


def defaults(settings: Settings, class_name: str) -> Mapping[str, str]:
    """Return the special tokens that the class names by default."""
    name = class_name or _REGISTERED.get(settings.model_type) or ""
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
    for name, value in chosen.options.items():
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
