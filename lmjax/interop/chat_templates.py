"""The chat templates in the files of models of other libraries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.data.chat_template import ChatTemplate, text_of
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import hub, weights

_GGUF_KEYS = {"unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator"}  # spelled so in the format
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a model."""

    #: Templates by name; a single one is called "default".
    templates: Mapping[str, str]
    #: Texts of special tokens by their names in transformers.
    tokens: Mapping[str, str]

    def choose(self, name: str | None = None) -> ChatTemplate:
        """Return a template.

        Raises:
            UserError: There is no such template.
        """
        if not self.templates:
            raise UserError("the model has no chat template; evaluate it without apply_chat_template")
        name = name or "default"
        if name not in self.templates:
            raise UserError(f"the model has no chat template '{name}'; it has {', '.join(sorted(self.templates))}")
        return ChatTemplate(self.templates[name], self.tokens)


def of_path(path: Path) -> ChatTemplates:
    """Read the chat templates of a model folder or of a .gguf file; a run has none.

    Raises:
        UserError: A file is malformed.
    """
    path = hub.snapshot(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        from lmjax.interop.gguf import file  # needs an optional package

        return _of_gguf(file.read(path).metadata)
    settings = _optional(path / "tokenizer_config.json")
    templates = _listed(settings.get("chat_template"))
    files = {"default": path / "chat_template.jinja"}
    more = path / "additional_chat_templates"
    files |= {file.stem: file for file in sorted(more.glob("*.jinja"))} if more.is_dir() else {}
    if any(file.is_file() for file in files.values()):  # which replace those of tokenizer_config.json
        templates = {name: text_of(file) for name, file in files.items() if file.is_file()}
    tokens = {name: _token(settings.get(name)) for name in _TOKENS}
    return ChatTemplates(templates, {name: token for name, token in tokens.items() if token is not None})


def of_model(lm: LanguageModel) -> ChatTemplates:
    """Return the chat templates and special tokens that a loaded model has."""
    return ChatTemplates(_listed(lm.tokenizer.config.get("chat_template")), lm.tokenizer.named)


def _listed(value: Any) -> dict[str, str]:
    """Return the templates of a setting `chat_template`: one, or several with their names."""
    pairs = [("default", value)]
    if isinstance(value, list):
        pairs = [(item.get("name"), item.get("template")) for item in value if isinstance(item, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _of_gguf(metadata: Mapping[str, Any]) -> ChatTemplates:
    prefix, tokens = "tokenizer.chat_template", metadata.get("tokenizer.ggml.tokens")
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(text, str)
    }
    usual = {"bos": 1, "eos": 2} if metadata.get("tokenizer.ggml.model") == "llama" else {}  # as in llama.cpp
    keys = {name: _GGUF_KEYS.get(name, name.removesuffix("_token")) for name in _TOKENS}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id", usual.get(key)) for name, key in keys.items()}
    known = tokens if isinstance(tokens, list) else []
    named = {name: known[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(known)}
    return ChatTemplates(templates, named)


def _optional(path: Path) -> dict[str, Any]:
    return weights.json_object(path) if path.is_file() else {}


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
