r"""Preferences: pairs of answers to a prompt, of which one is preferred.

The prompt of a row is the column `prompt`. Without it, it is the common beginning of `chosen` and `rejected`:

    messages                              all but the last one
    \n\nHuman: ... \n\nAssistant: ...     all turns but the last one
    other texts                           up to the word in which they begin to differ

All pairs of a prompt are on the same side of a split.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmjax.config import PreferenceConfig, UserError
from lmjax.data.sources import chat_rows, reviews, row_files, streams, tables
from lmjax.data.sources.chat import prompt_key
from lmjax.data.sources.chat_rows import Role, Turn
from lmjax.data.sources.streams import Dropped
from lmjax.data.sources.tables import Side
from lmjax.system import readers

_KIND = "pair"  # what a row is, in messages
FORMAT = 1  # part of the fingerprint: raise it when a row becomes another pair
_LARGEST_MARGIN = 1e6  # sums of losses stay finite in float32

#: Why a row without an error is left out: an answer is empty, the answers are equal, or the pair occurred before.
Reason = Literal["empty", "tie", "duplicate"]
REASONS: tuple[Reason, ...] = ("empty", "tie", "duplicate")

_SPEAKERS: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(rf"(?:^|\n\n)({'|'.join(_SPEAKERS)}):")


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt."""

    #: The turns before the answers.
    prompt: tuple[Turn, ...]
    #: The preferred answer.
    chosen: str
    rejected: str
    #: By how much the preferred answer is better; 0 if unknown.
    margin: float
    #: Equal keys are on the same side of a split.
    key: str
    #: Location, for error messages.
    where: str


def pairs(
    config: PreferenceConfig, *, dropped: Dropped | None = None, left_out: Counter[Reason] | None = None
) -> Iterator[tuple[Side, Pair]]:
    """Return all pairs in order, each with its side.

    Needs memory for 16 bytes of each pair, to find duplicates.

    Args:
        config: The pairs.
        dropped: Counts the bad rows that `data.on_bad_record=skip` leaves out.
        left_out: Counts the other rows that are left out, by reason.

    Raises:
        UserError: A file is missing or unreadable, or a row is malformed.
    """
    counter: Counter[Reason] = Counter() if left_out is None else left_out
    seen: set[bytes] = set()
    return tables.divided(
        lambda names: _read(config, names, dropped, counter, seen),
        files=config.files,
        validation_files=config.validation_files,
        fraction=config.validation_fraction,
        limit=config.limit,
        counts=lambda pair: True,
    )


def fingerprint(config: PreferenceConfig) -> dict[str, Any]:
    """Identify the pairs without reading them, as a JSON value.

    Raises:
        UserError: The settings are invalid.
    """
    return {
        "preferences": row_files.content(config, reviews.fingerprint, kind=_KIND),
        "pairs": FORMAT,
        "limit": config.limit,
        "validation": None if config.validation_files else config.validation_fraction,
        **streams.file_settings(config),
    }


def name(config: PreferenceConfig) -> str:
    """Return the name of the pairs, for messages."""
    return row_files.name(config)


def notes(config: PreferenceConfig) -> list[str]:
    """Return what the names of the files leave out, a line for each reason."""
    return row_files.notes(config, kind=_KIND)


def repeated(config: PreferenceConfig) -> list[str]:
    """Return a line for each validation file whose pairs are trained on."""
    return tables.repeated(*row_files.listings(config, kind=_KIND))


# ---- From rows to pairs ---------------------------------------------------------------------------------------------


def _read(
    config: PreferenceConfig,
    names: tuple[str, ...],
    dropped: Dropped | None,
    left_out: Counter[Reason],
    seen: set[bytes],
) -> Iterator[Pair]:
    skip = None if config.on_bad_record == "error" else dropped or Dropped()
    for where, row, key in row_files.rows(config, names, reviews.pairs, kind=_KIND, skip=skip):
        try:
            pair = pair_of(row, where, key=key)
        except UserError as error:
            if skip is None:
                raise readers.BadRow(str(error)) from None
            skip(error)
            continue
        if reason := _reason(pair, seen):
            left_out[reason] += 1
        else:
            yield pair


def _reason(pair: Pair, seen: set[bytes]) -> Reason | None:
    """Return why a pair is left out, or None; add it to those that were seen."""
    chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
    if not (chosen and rejected):
        return "empty"
    if chosen == rejected:
        return "tie"
    digest = hashlib.blake2b(content(pair), digest_size=16).digest()
    if digest in seen:
        return "duplicate"
    seen.add(digest)
    return None


def content(pair: Pair) -> bytes:
    """Return the texts of a pair as bytes that identify it."""
    turns = [part for turn in pair.prompt for part in (turn.role, turn.text)]
    return "\0".join([*turns, pair.chosen, pair.rejected, str(pair.margin)]).encode()


def pair_of(row: Any, where: str, *, key: str = "") -> Pair:
    """Return the pair of a row.

    Args:
        row: The columns.
        where: Location, for error messages.
        key: Key of the side (empty: the prompt).

    Raises:
        UserError: The row is malformed.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with columns but {type(row).__name__}")
    lacking = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if lacking:
        if lacking[0] in row:
            raise UserError(f"{where} has no value in the column '{lacking[0]}', but null; leave the row out")
        present = ", ".join(f"'{str(name)[:40]}'" for name, value in list(row.items())[:24] if value is not None)
        raise UserError(
            f"{where} has no column '{lacking[0]}', but {present or 'no column'}; a pair has the columns 'chosen', "
            "'rejected' and, unless both begin with it, 'prompt'; rename the columns"
        )
    prompt, chosen, rejected = _with_prompt(row, where) if row.get("prompt") is not None else _without(row, where)
    prompt = tuple(Turn(turn.role, turn.text, False) for turn in prompt)
    return Pair(prompt, chosen, rejected, _margin(row.get("margin"), where), key or prompt_key(prompt), where)


def _with_prompt(row: Mapping[str, Any], where: str) -> tuple[Sequence[Turn], str, str]:
    prompt = chat_rows.part(row["prompt"], "user", f"{where}: the column 'prompt'")
    answers = []
    for name in ("chosen", "rejected"):
        turns = chat_rows.part(row[name], "assistant", f"{where}: the column '{name}'")
        if len(turns) > 1 and _said(turns[: len(prompt)]) == _said(prompt):  # the answer repeats the prompt
            turns = turns[len(prompt) :]
        answers.append(_answer(turns, f"{where}: the column '{name}'"))
    return prompt, answers[0], answers[1]


def _without(row: Mapping[str, Any], where: str) -> tuple[Sequence[Turn], str, str]:
    """Return prompt and answers of a row without the column `prompt`."""
    values = row["chosen"], row["rejected"]
    if not any(isinstance(value, list) for value in values):
        texts = [chat_rows.text_of(row[name], f"{where}: the column '{name}'") for name in ("chosen", "rejected")]
        if not all("\n\nAssistant:" in text for text in texts):
            return _common_text(texts[0], texts[1], where)
        values = _dialogue(texts[0], where), _dialogue(texts[1], where)
    turns = [
        chat_rows.part(value, "assistant", f"{where}: the column '{name}'")
        for name, value in zip(("chosen", "rejected"), values, strict=True)
    ]
    if any(len(side) < 2 for side in turns) or _said(turns[0][:-1]) != _said(turns[1][:-1]):
        raise UserError(
            f"{where} has no column 'prompt', and its answers differ before their last messages: add the column, or "
            "set data.on_bad_record=skip to leave such rows out"
        )
    answers = [_answer(side[-1:], f"{where}: the last message") for side in turns]
    return turns[0][:-1], answers[0], answers[1]


def _common_text(chosen: str, rejected: str, where: str) -> tuple[Sequence[Turn], str, str]:
    letters = enumerate(zip(chosen, rejected, strict=False))
    equal = next((place for place, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    common = chosen[: max(chosen.rfind(space, 0, equal) for space in (" ", "\n", "\t")) + 1]  # divides no word
    if not common.strip():
        raise UserError(
            f"{where} has no column 'prompt', and 'chosen' and 'rejected' have no common beginning; add the prompt"
        )
    return [Turn("user", common.strip(), False)], chosen[len(common) :], rejected[len(common) :]


def _dialogue(text: str, where: str) -> list[dict[str, str]]:
    """Return the messages of a text with speakers."""
    lead, *parts = _SPEAKER.split(text)
    if lead.strip():
        raise UserError(f"{where} has text before the first speaker ({lead.strip()[:40]!r}); give the column 'prompt'")
    speakers, contents = parts[::2], parts[1::2]
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def _answer(turns: Sequence[Turn], where: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        raise UserError(f"{where} is not one answer of the assistant but {roles}; put what precedes it into 'prompt'")
    return turns[0].text


def _said(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in turns]


def _margin(value: Any, where: str) -> float:
    if value in (None, ""):  # an empty cell of a csv file, whose cells are texts
        return 0.0
    is_readable = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        margin = float(value) if is_readable else math.nan
    except (ValueError, OverflowError):
        margin = math.nan
    if not abs(margin) <= _LARGEST_MARGIN:
        raise UserError(
            f"{where}: the column 'margin' is {str(value)[:40]!r}, which is no number from -{_LARGEST_MARGIN:,.0f} to "
            f"{_LARGEST_MARGIN:,.0f}; correct or remove it"
        )
    return margin
