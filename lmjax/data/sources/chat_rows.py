"""Rows of conversation data in the formats of other trainers, as turns."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmjax.config import UserError
from lmjax.system import readers

#: Who speaks; `text` is plain text without turns.
Role = Literal["system", "user", "assistant", "text"]


@dataclass(frozen=True)
class Turn:
    """A message of a conversation."""

    role: Role
    text: str
    #: Whether its tokens are targets.
    learn: bool


# Names of the roles in ShareGPT and in the chats of other programs.
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


def turns(row: Any, format: str, where: str) -> list[Turn]:
    """Return the turns of a row; every answer of the assistant is to be learned.

    Args:
        row: The columns.
        format: Name of a format, or `auto`: the first one whose columns the row has.
        where: Location, for error messages.

    Raises:
        UserError: The row is not in the format.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with columns but {type(row).__name__}")
    names = [format] if format != "auto" else [name for name in FORMATS if _has(row, FORMATS[name].columns)]
    if not names or not _has(row, FORMATS[names[0]].columns):
        raise UserError(_wrong_columns(row, format, where))
    return FORMATS[names[0]].read(row, where)


def _has(row: Mapping[str, Any], columns: tuple[str, ...]) -> bool:
    return all(row.get(column) is not None for column in columns)


def _wrong_columns(row: Mapping[str, Any], format: str, where: str) -> str:
    """Describe the columns of a row and the nearest format."""
    present = [str(name)[:40] for name, value in row.items() if value is not None][:24]
    nulls = [name for form in FORMATS.values() for name in form.columns if name in row]
    if nulls and not present:
        return f"{where} has no value in the column '{nulls[0]}', but null; leave the row out, or give it a value"
    likeness = {
        name: sum(_likeness(column, present) for column in form.columns) / len(form.columns)
        for name, form in FORMATS.items()
    }
    best = max(likeness, key=lambda name: likeness[name])
    if format == "auto":
        name = best if likeness[best] >= 0.5 else "prompt_completion"
        lead = f"is in no format of conversations: it has {_quoted(present) or 'no column'}; the nearest one, {name},"
    else:
        name = format
        lead = f"is not in data.format={format}: it has {_quoted(present) or 'no column'}; this format"
    columns = FORMATS[name].columns
    lacking = [column for column in columns if column not in present]
    near = [match for column in lacking for match in difflib.get_close_matches(column, present)]
    hint = f" (or are these {_quoted(near)}?)" if near else ""
    advice = "rename the columns"
    if lacking == ["completion"] and not near:
        advice = "add a completion (PPO and GRPO do not learn from it; any text serves if the reward needs none)"
    return f"{where} {lead} has {_quoted(columns)}{hint}; {advice}"


def _likeness(column: str, present: Sequence[str]) -> float:
    return max((difflib.SequenceMatcher(None, column, name).ratio() for name in present), default=0.0)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# ---- Formats --------------------------------------------------------------------------------------------------------


def _messages(row: Mapping[str, Any], where: str) -> list[Turn]:
    return _list(row["messages"], f"{where}: the column 'messages'")


def _sharegpt(row: Mapping[str, Any], where: str) -> list[Turn]:
    system = row.get("system")
    lead = [Turn("system", text_of(system, f"{where}: the column 'system'"), False)] if system else []
    return lead + _list(row["conversations"], f"{where}: the column 'conversations'")


def _prompt_completion(row: Mapping[str, Any], where: str) -> list[Turn]:
    prompt = part(row["prompt"], "user", f"{where}: the column 'prompt'")
    completion = part(row["completion"], "assistant", f"{where}: the column 'completion'")
    return [Turn(turn.role, turn.text, False) for turn in prompt] + completion


def _alpaca(row: Mapping[str, Any], where: str) -> list[Turn]:
    question, context, answer = (
        text_of(row.get(name), f"{where}: the column '{name}'") for name in ("instruction", "input", "output")
    )
    text = f"{question}\n\n{context}" if question and context else question or context
    return [Turn("user", text, False), Turn("assistant", answer, True)]


def _plain(row: Mapping[str, Any], where: str) -> list[Turn]:
    return [Turn("text", text_of(row["text"], f"{where}: the column 'text'"), True)]


def part(value: Any, role: Role, where: str) -> list[Turn]:
    """Return the turns of a text, which is one turn, or of a list of messages.

    Raises:
        UserError: The value is neither, or a message is malformed.
    """
    if isinstance(value, list):
        return _list(value, where)
    return [Turn(role, text_of(value, where), role == "assistant")]


def _list(value: Any, where: str) -> list[Turn]:
    if not isinstance(value, list):
        raise UserError(f"{where} is not a list of messages but {type(value).__name__}")
    return [_turn(item, f"{where}, message {number}") for number, item in enumerate(value, 1)]


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise UserError(f"{where} is not an object but {type(item).__name__}")
    speaker, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if speaker is None:
        keys = ", ".join(map(repr, item)) or "nothing"
        raise UserError(f"{where} has neither 'role' nor 'from', but {keys}")
    role = _ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise UserError(
            f"{where} has the role {str(speaker)[:40]!r}; known are {', '.join(_ROLES)} (calls of tools are not "
            "supported)"
        )
    if item.get("tool_calls"):
        raise UserError(f"{where} calls a tool, which is not supported")
    return Turn(role, _content(content, where), role == "assistant")


def _content(content: Any, where: str) -> str:
    """Return the text of a message, also of one in parts of type text."""
    if not isinstance(content, list):
        return text_of(content, where)
    texts = []
    for item in content:
        if not isinstance(item, dict) or item.get("type") != "text":
            kind = item.get("type") if isinstance(item, dict) else type(item).__name__
            raise UserError(f"{where} has a part of type {str(kind)[:40]!r}; only text is supported")
        texts.append(text_of(item.get("text"), where))
    return "".join(texts)


def text_of(value: Any, where: str) -> str:
    """Return a text; None is an empty one.

    Raises:
        UserError: The value is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}")
    if wrong := readers.not_text(value):
        raise UserError(f"{where} holds {wrong}")
    return value


@dataclass(frozen=True)
class _Format:
    #: Columns that a row must have.
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], list[Turn]]


FORMATS: Mapping[str, _Format] = {
    "messages": _Format(("messages",), _messages),
    "prompt_completion": _Format(("prompt", "completion"), _prompt_completion),
    "sharegpt": _Format(("conversations",), _sharegpt),
    "alpaca": _Format(("instruction", "output"), _alpaca),
    "text": _Format(("text",), _plain),
}
