"""The tokenizer of a file, or of a folder with what its other files say."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.config.errors import printable
from lmjax.data import vocabularies
from lmjax.data.tokenizer_checks import library_errors
from lmjax.data.tokenizer_classes import CLASSES, apply_class, class_of, defaults
from lmjax.data.tokenizer_registry import BACKEND, NOT_FOLLOWED, REGISTERED
from lmjax.data.tokenizer_settings import CONFIG, EXPORTED, NAMES, Settings, read
from lmjax.system import paths


@dataclass(frozen=True)
class Loaded:
    """A tokenizer with its special tokens."""

    #: The tokenizer.
    backend: Backend
    #: Special tokens by their names in transformers, bos_token and so on; all are in the vocabulary.
    named: Mapping[str, str] = field(default_factory=dict)
    #: Settings of tokenizer_config.json that an export writes again.
    config: Mapping[str, Any] = field(default_factory=dict)


def load(path: Path, end_of_text: str) -> Loaded:
    """Load a tokenizer; a file stands alone, and the other files of a folder count.

    Args:
        path: The file or folder.
        end_of_text: The token that ranks get as the last entry.

    Raises:
        UserError: The path has no valid tokenizer, or a setting is not supported.
    """
    path = paths.local(path, key="data.tokenizer.path")
    parts = vocabularies.files(path)
    if not path.is_dir():
        return Loaded(vocabularies.load(parts, end_of_text))
    settings = read(path)
    stored = parts[0].read_text("utf-8", "replace") if parts[0].name == "tokenizer.json" else None
    class_name = _supported(settings, parts, class_of(settings, stored))
    if class_name in NOT_FOLLOWED:
        _warn(settings, class_name)
    of_bert = defaults(settings, "BertTokenizer")
    special = [_content(settings, name) or of_bert[name] for name in ("pad_token", "unk_token", "cls_token")]
    special += [_content(settings, name) or of_bert[name] for name in ("sep_token", "mask_token")]
    backend = vocabularies.load(parts, end_of_text, special)
    with library_errors(f"bad tokenizer in '{path}'", quiet=True):
        if class_name in CLASSES:
            backend = apply_class(backend, settings, class_name)
        named = _named(backend, settings, class_name)
        present = {token.content for token in backend.get_added_tokens_decoder().values()}
        tokens = (*settings.plain, *named.values(), *settings.others, *_of_class(settings, class_name))
        backend.add_tokens([token for token in tokens if token.content not in present])
        begins = settings.flag("add_bos_token", False) if stored is None else _begins(class_name)
        if begins and "bos_token" in named:
            _begin(backend, named["bos_token"].content)
    return Loaded(backend, {name: token.content for name, token in named.items()}, _exported(settings))


def _supported(settings: Settings, parts: tuple[Path, ...], class_name: str) -> str:
    """Return the class whose steps to apply; a UserError if it reads other files."""
    auto = settings.values.get("auto_map")
    code = auto.get("AutoTokenizer") if isinstance(auto, dict) else auto
    if code and settings.class_name not in CLASSES and settings.class_name != "PreTrainedTokenizer":
        raise settings.refused("auto_map", "it names code, which is not executed; give the tokenizer.json alone")
    if parts[0].name == "tokenizer.json":
        return class_name
    names = " and ".join(part.name for part in parts)
    registered = REGISTERED.get(settings.model_type, "")
    other_files = len(parts) == 2 and registered != "GPT2Tokenizer"
    if not class_name and (other_files or registered in NOT_FOLLOWED):
        class_name = registered  # of a folder without tokenizer_config.json
    if not class_name and not settings.configured:
        return ""
    if len(parts) == 2:
        class_name = class_name or "GPT2Tokenizer"
        supported = class_name in CLASSES and CLASSES[class_name].two_files
    elif parts[0].suffix == ".txt":
        class_name = class_name or "BertTokenizer"
        supported = class_name in CLASSES and CLASSES[class_name] is CLASSES["BertTokenizer"]
    else:
        supported = not class_name
    if not supported:
        shown = settings.class_name or (class_name if class_name != BACKEND else "none")
        raise UserError(
            f"{settings.folder / CONFIG}: tokenizer_class={shown} is not supported with {names}: save the tokenizer "
            "with transformers, which writes a tokenizer.json"
        )
    return class_name


@cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)


def _warn(settings: Settings, class_name: str) -> None:
    """Print that tokenizer.json is read as it is although transformers does not."""
    _print_once(
        f"{printable(str(settings.folder), 500)}: transformers builds a {class_name} by rules of its own; lmjax reads "
        "its tokenizer.json as it is, so that ids can differ from those of transformers"
    )


def _content(settings: Settings, name: str) -> str | None:
    token = settings.named.get(name)
    return None if token is None else token.content


def _named(backend: Backend, settings: Settings, class_name: str) -> dict[str, AddedToken]:
    """Return the special tokens that files name or that the class names by default.

    The order is that of transformers. Without an applied class, a default counts if it is in the vocabulary.
    """
    usual = {
        name: AddedToken(token, special=True)
        for name, token in defaults(settings, class_name).items()
        if name not in settings.values and (class_name in CLASSES or backend.token_to_id(token) is not None)
    }
    named = usual | dict(settings.named)
    return {name: named[name] for name in NAMES if name in named}


def _of_class(settings: Settings, class_name: str) -> list[AddedToken]:
    """Return the special tokens without common names that the class adds."""
    others = CLASSES[class_name].others if class_name in CLASSES else {}
    return [AddedToken(token, special=True) for name, token in others.items() if name not in settings.values]


def _begins(class_name: str) -> bool:
    """Whether the class puts bos_token in front of every text, whatever tokenizer.json says."""
    return class_name in CLASSES and CLASSES[class_name].begins


def _begin(backend: Backend, token: str) -> None:
    """Put a token in front of every text."""
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, _id(backend, token))]
    )


def _id(backend: Backend, token: str) -> int:
    id = backend.token_to_id(token)
    assert id is not None
    return id


def _exported(settings: Settings) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.values.items()
        if name in EXPORTED or (name.endswith("_token") and isinstance(value, str | dict))
    }
