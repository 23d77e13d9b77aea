"""The chat template of a model, recorded in its tokenizer.json.

A model of another library that is fine-tuned keeps its chat template. The template and the special tokens that it
writes by name are entries in the table of special tokens of a TemplateProcessing post-processor that no text uses, as
`tokenizer_roles` records roles: one file then says how the turns of a run's conversations become token ids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.tokenizer_steps import steps
from lmjax.system import paths

LARGEST = 1 << 20  # characters of a template
IDS = "ids"  # the choice of control tokens
_TEMPLATE, _TOKEN = "lmjax:chat_template", "lmjax:chat_template:"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template."""

    #: A program in the language of Jinja.
    source: str
    #: Texts of special tokens by their names in transformers, which it may write.
    tokens: Mapping[str, str] = field(default_factory=dict)


def read(path: str, tokens: Mapping[str, str]) -> ChatTemplate:
    """Read a chat template from a file.

    Args:
        path: The file.
        tokens: The special tokens of the tokenizer by their names in transformers.

    Raises:
        UserError: The file cannot be read.
    """
    return ChatTemplate(text_of(paths.local(path, key="data.template")), dict(tokens))


def chosen(tokenizer: Tokenizer, choice: str, tokens: Mapping[str, str] | None = None) -> Tokenizer:
    """Return the tokenizer with the recorded chat template that `data.template` chooses.

    Args:
        tokenizer: The tokenizer.
        choice: A file, `ids` for none, or empty for the one that is recorded.
        tokens: Special tokens by their names in transformers; None: those that are recorded, or the tokenizer's.

    Raises:
        UserError: The file cannot be read.
    """
    if not choice:
        return tokenizer
    if tokens is None:
        present = recorded(tokenizer)
        tokens = present.tokens if present else tokenizer.named
    return with_template(tokenizer, None if choice == IDS else read(choice, tokens))


def text_of(path: Path) -> str:
    """Return the text of a template.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if len(text) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST} characters, too many for a chat template")
    return text


def recorded(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template that is recorded in a tokenizer, or None."""
    source, tokens = None, {}
    for step in steps(tokenizer.backend.post_processor):
        for name, entry in _table(step).items():
            if name == _TEMPLATE:
                source = entry["tokens"][0]
            elif name.startswith(_TOKEN):
                tokens[name.removeprefix(_TOKEN)] = entry["tokens"][0]
    return None if source is None else ChatTemplate(source, tokens)


def with_template(tokenizer: Tokenizer, template: ChatTemplate | None) -> Tokenizer:
    """Return the tokenizer with another recorded chat template, or without one."""
    if recorded(tokenizer) == template:
        return tokenizer
    tree = json.loads(tokenizer.json)
    parts = tree["post_processor"]
    parts = [] if parts is None else parts["processors"] if parts["type"] == "Sequence" else [parts]
    kept = [step for step in parts if _TEMPLATE not in _table(step)]
    if template is not None:
        kept.append(_record(template))
    tree["post_processor"] = {"type": "Sequence", "processors": kept} if len(kept) > 1 else next(iter(kept), None)
    return Tokenizer(Backend.from_str(json.dumps(tree)), tokenizer.named, tokenizer.config)


def _table(step: Mapping[str, Any]) -> Mapping[str, Any]:
    return (step.get("special_tokens") or {}) if step["type"] == "TemplateProcessing" else {}


def _record(template: ChatTemplate) -> dict[str, Any]:
    """Return a step that changes no text and has the template in its table."""
    entries = {_TEMPLATE: template.source, **{_TOKEN + name: token for name, token in template.tokens.items()}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first],
        "pair": [first, second],
        "special_tokens": {name: {"id": name, "ids": [0], "tokens": [text]} for name, text in entries.items()},
    }
