"""Chat templates of model folders and GGUF files, rendered as transformers renders them.

A template is a program in the language of Jinja that a stranger wrote: it runs in Jinja's sandbox, which gives it no
access to files, modules or attributes, and its size, its time and its output are bounded.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols

from lmjax.config import UserError
from lmjax.evaluation.time_limit import Allowance, limited
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import hub, weights
from lmjax.serve.template_sandbox import BoundedEnvironment, checked

_log = logging.getLogger(__name__)

_LARGEST = 1 << 20  # characters of a template
_LONGEST = 1 << 24  # characters of a rendered chat
SECONDS = 10.0  # to render a chat
_JINJA = (3, 1, 6)  # older versions have known ways out of the sandbox
_OPEN = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of a message that the model continues
_GGUF_KEYS = {"unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator"}  # spelled so in the format
_RENDERED = Allowance(20.0, 0.1)  # an honest template is compiled and rendered in about 20 ms
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a model."""

    #: Templates by name; a single one is called "default".
    templates: Mapping[str, str]
    #: Texts of special tokens by their names in transformers.
    tokens: Mapping[str, str]

    def choose(self, name: str | None = None) -> str:
        """Return the source of a template.

        Raises:
            UserError: There is no such template.
        """
        if not self.templates:
            raise UserError("the model has no chat template; evaluate it without apply_chat_template")
        name = name or "default"
        if name not in self.templates:
            raise UserError(f"the model has no chat template '{name}'; it has {', '.join(sorted(self.templates))}")
        return self.templates[name]

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool, name: str | None = None) -> str:
        """Render a chat.

        Args:
            messages: The messages, each with a role and a content.
            reply: Whether the beginning of a reply follows; otherwise the last message stays open.
            name: Name of the template.

        Raises:
            UserError: The template is malformed, or refuses the chat.
        """
        source = self.choose(name)
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        last = str(chat[-1].get("content", "")) if chat else ""
        if not reply and chat:
            chat[-1]["content"] = last + _OPEN
        try:
            text = _render(source, messages=chat, add_generation_prompt=reply, **self.tokens)
        except UserError as error:
            others = [message for message in messages if message.get("role") != "system"]
            if len(others) == len(messages):
                raise
            _log.warning("%s; the system message is left out", error)
            return self.render(others, reply=reply, name=name)  # as the harness does for Hugging Face models
        return text if reply or not chat else _cut(text, last)


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
        templates = {name: _text(file) for name, file in files.items() if file.is_file()}
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


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _cut(text: str, last: str) -> str:
    """The text up to the end of the open last message."""
    if _OPEN.strip() not in text or last.strip() not in text:
        raise UserError("the chat template does not contain the last message, so that it cannot be continued")
    place = text.rindex(_OPEN.strip())
    spaced = text[place : place + len(_OPEN)] == _OPEN  # otherwise the template strips the end of messages
    return text[:place] if spaced else text[:place].rstrip()


# ---- Rendering --------------------------------------------------------------------------------------------------


class _Generation(Extension):
    """The tag `generation`, which marks replies for training: its content is rendered."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> Any:
        """Return the content of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _render(source: str, **variables: Any) -> str:
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdecimal()) < _JINJA:
        raise UserError(f"chat templates need jinja2 of version 3.1.6, not {jinja2.__version__}: pip install -U jinja2")
    if len(source) > _LARGEST:
        raise UserError(f"the chat template has more than {_LARGEST} characters")
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = checked("tojson", _to_json, environment.measured)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _dict, "namespace": _namespace}
    parts, size = [], 0
    try:
        limit = limited(
            SECONDS, f"the chat template takes more than {SECONDS:g} s to render; write it without long loops"
        )
        with limit, _RENDERED.count("the chat templates"):
            for part in environment.from_string(source).generate(tools=None, documents=None, **variables):
                size += len(part)
                if size > _LONGEST:
                    raise UserError(f"the chat template writes more than {_LONGEST} characters")
                parts.append(part)
    except UserError:
        raise
    except Exception as error:  # whatever a program in a template may raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the chat template cannot be rendered: {reason}") from None
    return "".join(parts)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes cannot have names of Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names([name])
        super().__setitem__(name, value)


def _namespace(*arguments: Any, **named: Any) -> _Namespace:
    _check_names(dict(*arguments, **named))
    return _Namespace(*arguments, **named)


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    return dict(*arguments, **named)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
    sort_keys = bool(more.get("sort_keys", False))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(format: str) -> str:
    return datetime.now().strftime(format)
