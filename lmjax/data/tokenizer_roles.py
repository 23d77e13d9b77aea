"""The roles of special tokens, recorded in a tokenizer.json.

They are entries in the table of special tokens of a TemplateProcessing post-processor, which no template uses.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from lmjax.data.tokenizer_steps import steps

_PREFIX = "lmjax:"


def recorded(backend: Backend) -> dict[str, str]:
    """Return the recorded tokens by their roles."""
    tokens = {}
    for step in steps(backend.post_processor):
        for name, entry in (step.get("special_tokens") or {}).items() if step["type"] == "TemplateProcessing" else ():
            if name.startswith(_PREFIX) and len(entry["tokens"]) == 1:
                tokens[name.removeprefix(_PREFIX)] = entry["tokens"][0]
    return tokens


def record(backend: Backend, tokens: Mapping[str, str]) -> None:
    """Record tokens of the vocabulary by their roles, after the post-processor's own steps."""
    entries = [
        {"id": _PREFIX + role, "ids": [backend.token_to_id(token)], "tokens": [token]} for role, token in tokens.items()
    ]
    step: Any = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=entries)
    if backend.post_processor is not None:
        step = processors.Sequence([backend.post_processor, step])
    backend.post_processor = step  # pyright: ignore[reportAttributeAccessIssue]
