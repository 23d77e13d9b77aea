"""Conversations: rows of tables, or generated questions with answers, as turns.

The side of the split of a row of a table depends only on its prompt, what precedes the first answer, so that answers
to equal prompts are always on the same side. Generated conversations have keys of their own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmjax.config import ChatConfig, UserError
from lmjax.data.sources import facts, reviews, row_files, streams, tables, verifiable
from lmjax.data.sources.chat_rows import Role, Turn, turns
from lmjax.data.sources.streams import Dropped
from lmjax.data.sources.tables import Side
from lmjax.system import readers

_KIND = "conversation"  # what a row is, in messages
FORMAT = 1  # part of the fingerprint: raise it when a row becomes other turns


@dataclass(frozen=True)
class Conversation:
    """A conversation with something to learn."""

    turns: tuple[Turn, ...]
    #: Equal keys are on the same side of a split.
    key: str
    #: Location, for error messages.
    where: str


#: Why a row without an error is left out.
Reason = Literal["empty", "no_target"]


class NoTarget(UserError):
    """The error of a row without an answer to learn."""


def conversations(
    config: ChatConfig, *, dropped: Dropped | None = None, left_out: Counter[Reason] | None = None
) -> Iterator[tuple[Side, Conversation]]:
    """Return all conversations in order, each with its side, in bounded memory.

    Args:
        config: The conversations.
        dropped: Counts the bad rows that `data.on_bad_record=skip` leaves out.
        left_out: Counts the rows without text and, with `data.on_bad_record=skip`, those without an answer.

    Raises:
        UserError: A file is missing or unreadable, or a row is malformed or has no answer to learn.
    """
    counter: Counter[Reason] = Counter() if left_out is None else left_out
    return tables.divided(
        lambda names: _read(config, names, dropped, counter),
        files=config.files,
        validation_files=config.validation_files,
        fraction=config.validation_fraction,
        limit=config.limit,
        counts=lambda conversation: True,
    )


def fingerprint(config: ChatConfig) -> dict[str, Any]:
    """Identify the conversations without reading them, as a JSON value.

    Files are identified by path, size and modification time.

    Raises:
        UserError: The settings are invalid.
    """
    return {
        "chat": row_files.content(config, lambda: _generated(config).fingerprint(), kind=_KIND),
        "turns": FORMAT,
        "columns": config.format,
        "targets": config.targets,
        "limit": config.limit,
        "validation": None if config.validation_files else config.validation_fraction,
        **streams.file_settings(config),
    }


def name(config: ChatConfig) -> str:
    """Return the name of the conversations, for messages."""
    return row_files.name(config)


def notes(config: ChatConfig) -> list[str]:
    """Return what the names of the files leave out, a line for each reason."""
    return row_files.notes(config, kind=_KIND)


def repeated(config: ChatConfig) -> list[str]:
    """Return a line for each validation file whose conversations are trained on."""
    return tables.repeated(*row_files.listings(config, kind=_KIND))


def _generated(config: ChatConfig) -> Any:
    """Return the module that generates the conversations of an own source."""
    return {"reviews": reviews, "sorting": verifiable}.get(config.source, facts)


# ---- From rows to conversations -----------------------------------------------------------------------------------


def _read(
    config: ChatConfig, names: tuple[str, ...], dropped: Dropped | None, left_out: Counter[Reason]
) -> Iterator[Conversation]:
    skip = None if config.on_bad_record == "error" else dropped or Dropped()
    rows = row_files.rows(config, names, lambda: _generated(config).conversations(), kind=_KIND, skip=skip)
    for where, row, key in rows:
        try:
            conversation = _conversation(row, config, where, key)
        except UserError as error:
            if skip is None:
                raise error if isinstance(error, NoTarget) else readers.BadRow(str(error)) from None
            if isinstance(error, NoTarget):
                left_out["no_target"] += 1
            else:
                skip(error)
            continue
        if conversation is None:
            left_out["empty"] += 1
        else:
            yield conversation


def _conversation(row: Any, config: ChatConfig, where: str, key: str) -> Conversation | None:
    """Return the conversation of a row; None if it has no text to learn.

    Raises:
        UserError: The row is malformed; NoTarget if it has no answer.
    """
    parts = _learned(turns(row, config.format, where), config.targets)
    if not any(turn.text.strip() for turn in parts):
        return None
    if not any(turn.learn for turn in parts):
        roles = ", ".join(dict.fromkeys(turn.role for turn in parts))
        raise NoTarget(
            f"{where} has no answer of the assistant, so there is nothing to learn (its turns are of: {roles}); "
            "add an answer (PPO and GRPO do not learn from it: any text serves if the reward needs none), or set "
            "data.on_bad_record=skip to leave such rows out"
        )
    if not any(turn.learn and turn.text.strip() for turn in parts):
        return None
    return Conversation(tuple(parts), key or prompt_key(parts), where)


def _learned(parts: Sequence[Turn], targets: str) -> list[Turn]:
    """Return the turns with the mark of those that are learned."""
    if targets == "all":
        return [Turn(turn.role, turn.text, True) for turn in parts]
    if targets == "last":
        last = max((place for place, turn in enumerate(parts) if turn.learn), default=-1)
        return [Turn(turn.role, turn.text, place == last) for place, turn in enumerate(parts)]
    return list(parts)


def prompt_key(parts: Sequence[Turn]) -> str:
    """Return what decides the side: the turns before the first answer, or the text."""
    roles: list[Role] = [turn.role for turn in parts]
    count = roles.index("assistant") if "assistant" in roles else len(parts)
    return "\0".join(f"{turn.role}\0{turn.text}" for turn in parts[: count or len(parts)])
