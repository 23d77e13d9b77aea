"""What the files next to a vocabulary say about the tokenizer.

The rules are those of `AutoTokenizer` in transformers 5.24. A setting is applied, refused, or has no effect; `EFFECTS`
is the table. Files are read as data, and code that they name is never used.

    tokenizer_config.json     settings, special tokens, added tokens
    special_tokens_map.json   special tokens (older folders; ignored if added_tokens_decoder is set, as in transformers)
    added_tokens.json         added tokens (older folders; ignored in the same case)
    config.json               model_type and tokenizer_class
    chat_template.jinja       the chat template, which goes into an export
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from lmjax.config import UserError
from lmjax.config.json_text import decode_utf8, parse_json
from lmjax.config.regular_files import read_regular

CONFIG, SPECIALS, ADDED, MODEL = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
LARGEST = 50_000_000  # bytes of one of these files

# The special tokens that every tokenizer class of transformers has, in its order.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Each setting that tokenizer classes of transformers read, and what lmjax does with it.
EFFECTS: Mapping[str, str] = {
    **dict.fromkeys(NAMES, "applied: the token is special; eos_token ends a document"),
    "NAME_token": "applied: any other key that ends in _token and holds a token adds a special token",
    "added_tokens_decoder": "applied: the tokens are added, in the order of their ids",
    "extra_special_tokens": "applied: the tokens are added as special tokens",
    "additional_special_tokens": "applied: the older name of extra_special_tokens",
    "tokenizer_class": "applied for GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, "
    "Qwen3_5Tokenizer, CohereTokenizer, LlamaTokenizer, CodeLlamaTokenizer, GemmaTokenizer, BertTokenizer and "
    "DistilBertTokenizer; other classes are read as tokenizer.json defines them, with a line where transformers builds "
    "them by rules of its own, and refused without tokenizer.json",
    "add_bos_token": "applied without tokenizer.json; with it, its post-processor decides",
    "add_eos_token": "no effect: lmjax ends documents itself, and never ends a prompt",
    "add_prefix_space": "applied for the classes above; with other classes tokenizer.json decides",
    "do_lower_case": "applied for BertTokenizer; with other classes tokenizer.json decides",
    "strip_accents": "applied for BertTokenizer; with other classes tokenizer.json decides",
    "tokenize_chinese_chars": "applied for BertTokenizer; with other classes tokenizer.json decides",
    "legacy": "applied for LlamaTokenizer; with other classes tokenizer.json decides",
    "fix_mistral_regex": "refused if true: the expression is then not the one in tokenizer.json",
    "auto_map": "refused if it names the code of a tokenizer and tokenizer_class is none of the classes above",
    "chat_template": "no effect on text; written by an export",
    "clean_up_tokenization_spaces": "no effect: transformers ignores it for BPE, and a word piece is cleaned up alone",
    "split_special_tokens": "no effect: lmjax splits special tokens in text unless it is asked to recognize them",
    "model_max_length": "no effect: the context of the model counts; written by an export",
    "model_input_names": "no effect; written by an export",
    "padding_side": "no effect: lmjax pads itself; written by an export",
    "truncation_side": "no effect: lmjax truncates itself; written by an export",
    "errors": "no effect: bytes that are not UTF-8 become U+FFFD",
    "trim_offsets": "no effect: offsets are not used",
    "do_basic_tokenize": "no effect in transformers 5",
    "never_split": "no effect in transformers 5",
    "wordpieces_prefix": "no effect in transformers 5",
    "use_default_system_prompt": "no effect in transformers 5",
    "sp_model_kwargs": "no effect: lmjax reads no SentencePiece model",
    "name_or_path": "no effect",
    "vocab_file": "no effect: files are found by their names in the folder",
    "merges_file": "no effect: files are found by their names in the folder",
    "tokenizer_file": "no effect: files are found by their names in the folder",
}
_FLAGS = ("add_bos_token", "add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "legacy")
#: Settings that are written again by an export; everything else is part of the exported tokenizer.json.
EXPORTED = (
    *NAMES,
    "chat_template",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)


@dataclass(frozen=True)
class Settings:
    """The settings of a folder's tokenizer."""

    #: The folder, for messages.
    folder: Path
    #: Content of tokenizer_config.json, with the special tokens and chat templates of the other files.
    values: Mapping[str, Any] = field(default_factory=dict)
    #: The class that a file names, without the suffix Fast; empty: no file names one.
    class_name: str = ""
    #: The model_type in config.json; empty: none.
    model_type: str = ""
    #: Special tokens by their names, bos_token and so on.
    named: Mapping[str, AddedToken] = field(default_factory=dict)
    #: Tokens of added_tokens_decoder or added_tokens.json.
    plain: tuple[AddedToken, ...] = ()
    #: Special tokens without one of the common names.
    others: tuple[AddedToken, ...] = ()
    #: Whether a tokenizer_config.json exists.
    configured: bool = False

    def flag(self, name: str, default: Any = None) -> Any:
        """Return the value of a setting; null and a missing setting are the default."""
        value = self.values.get(name)
        return default if value is None else value

    def refused(self, name: str, reason: str) -> UserError:
        """Return the error that refuses a setting of tokenizer_config.json."""
        value = str(self.values.get(name, self.class_name))[:60]
        return UserError(f"{self.folder / CONFIG}: {name}={value} is not supported: {reason}")


def read(folder: Path) -> Settings:
    """Read the settings of a tokenizer in a folder; without such files they are empty.

    Raises:
        UserError: A file is malformed, or has a setting that lmjax refuses.
    """
    config, model = _object(folder / CONFIG), _object(folder / MODEL)
    values = dict(config or {})
    decoder = values.get("added_tokens_decoder")
    if decoder is None:
        values |= _object(folder / SPECIALS) or {}
    if not values.get("extra_special_tokens") and "additional_special_tokens" in values:
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    templates = _templates(folder)
    if templates is not None:
        values["chat_template"] = templates
    where = folder / CONFIG
    for name in _FLAGS:
        if not isinstance(values.get(name), bool | None):
            raise UserError(f"{where}: {name}={str(values[name])[:40]!r} is neither true nor false")
    named = {name: _token(values[name], where, name) for name in NAMES if values.get(name) is not None}
    others = _others(values, where)
    plain = _plain(decoder, where) if decoder is not None else _older(folder / ADDED, [*named.values(), *others])
    class_name = values.get("tokenizer_class") or (model or {}).get("tokenizer_class") or ""
    model_type = (model or {}).get("model_type") or ""
    if not isinstance(class_name, str) or not isinstance(model_type, str):
        raise UserError(f"{where}: tokenizer_class is not a text")
    flags = {token.content: token for token in plain}
    settings = Settings(
        folder=folder,
        values=values,
        class_name=class_name.removesuffix("Fast"),
        model_type=model_type,
        named={name: flags.get(token.content, token) for name, token in named.items()},
        plain=tuple(plain),
        others=tuple(flags.get(token.content, token) for token in others),
        configured=config is not None,
    )
    if values.get("fix_mistral_regex"):
        raise settings.refused("fix_mistral_regex", "give a tokenizer.json with the corrected expression")
    return settings


def exist(folder: Path) -> bool:
    """Whether a folder has a file with settings of a tokenizer."""
    return any((folder / name).is_file() for name in (CONFIG, SPECIALS, ADDED, MODEL))


def _object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no file."""
    if not path.is_file():
        return None
    try:
        value = parse_json(read_regular(path, largest=LARGEST), str(path), largest=LARGEST)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not an object in JSON")
    return value


def _templates(folder: Path) -> Any:
    """Return the chat template in files: a text, or several with their names; None: no file."""
    paths = {"default": folder / TEMPLATE}
    if (folder / TEMPLATES).is_dir():
        paths |= {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    try:
        texts = {
            name: decode_utf8(read_regular(path, largest=LARGEST), str(path))
            for name, path in paths.items()
            if path.is_file()
        }
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    if texts.keys() <= {"default"}:
        return texts.get("default")
    return [{"name": name, "template": text} for name, text in texts.items()]


def _token(value: Any, where: Path, name: str) -> AddedToken:
    """Return a token that is given as text or as an object; it is special by default."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise UserError(f"{where}: {name}={str(value)[:60]} is not a token, a text or an object with 'content'")
    if not isinstance(value, dict):
        return AddedToken(content, special=True)
    flags = {key: value[key] for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{where}: {name} has a flag that is neither true nor false")
    return AddedToken(content, special=bool(value.get("special", True)), **flags)


def _others(values: Mapping[str, Any], where: Path) -> list[AddedToken]:
    """Return the special tokens that belong to one kind of model, and the extra ones."""
    extra = values.get("extra_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise UserError(f"{where}: extra_special_tokens is neither a list nor an object")
    own = [
        value
        for key, value in values.items()
        if key.endswith("_token") and key not in NAMES and isinstance(value, str | dict)
    ]
    return [_token(value, where, "extra_special_tokens") for value in (*own, *extra)]


def _plain(decoder: Any, where: Path) -> list[AddedToken]:
    """Return the tokens of added_tokens_decoder in the order of their ids."""
    if not isinstance(decoder, dict) or not all(key.isdecimal() and len(key) < 10 for key in decoder):
        raise UserError(f"{where}: added_tokens_decoder is not an object from ids to tokens")
    tokens = sorted(decoder.items(), key=lambda item: int(item[0]))
    if not all(isinstance(token, dict) for _, token in tokens):
        raise UserError(f"{where}: added_tokens_decoder has a token that is not an object")
    return [_token({"special": False, **token}, where, f"added_tokens_decoder.{id}") for id, token in tokens]


def _older(path: Path, special: list[AddedToken]) -> list[AddedToken]:
    """Return the tokens of added_tokens.json in the order of their ids."""
    table = _object(path) or {}
    if not all(type(id) is int for id in table.values()):
        raise UserError(f"{path} is not an object from tokens to ids")
    names = {token.content for token in special}
    tokens = sorted(table, key=lambda token: table[token])
    return [AddedToken(token, special=token in names, normalized=token not in names) for token in tokens if token]
