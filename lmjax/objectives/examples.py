"""Example prompts: beginnings of validation documents."""

import itertools
from collections.abc import Iterable, Sequence

from lmjax.config import ChatConfig, PreferenceConfig, UserError
from lmjax.data.sources import chat, preferences
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.sources.tables import Side

TOKENS = 64  # of a document that are decoded
_WORDS, _LETTERS = 4, 40
_SEARCHED = 1000  # rows of files


def beginning(text: str) -> str:
    """Return the first words of a text, or its first letters if it has no spaces."""
    shown = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return " ".join(shown.split()[:_WORDS])[:_LETTERS].strip()


def question(config: ChatConfig | PreferenceConfig) -> str:
    """Return the first question of a user in the validation split, on one line.

    Empty if none of the first conversations has one, or if they cannot be read any more.
    """
    try:
        for side, turns in itertools.islice(_conversations(config), _SEARCHED):
            asked = next((turn.text for turn in turns if turn.role == "user"), "")
            if side == "validation" and asked.strip():
                return " ".join(asked.split())
    except UserError:
        pass
    return ""


def _conversations(config: ChatConfig | PreferenceConfig) -> Iterable[tuple[Side, Sequence[Turn]]]:
    if isinstance(config, ChatConfig):
        return ((side, conversation.turns) for side, conversation in chat.conversations(config))
    return ((side, pair.prompt) for side, pair in preferences.pairs(config))
