"""The form of conversations as token ids: by control tokens or by a chat template."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lmjax.data.sources.chat_rows import Turn
from lmjax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids."""

    ids: list[int]
    #: 1 for a target, else 0; the first id is never a target.
    mask: list[int]


@dataclass(frozen=True)
class ChatForm(ABC):
    """The form of the conversations of a tokenizer."""

    tokenizer: Tokenizer

    @cached_property
    @abstractmethod
    def end(self) -> int:
        """The id that ends an answer."""

    @abstractmethod
    def describe(self) -> str:
        """Describe how turns are written."""

    @abstractmethod
    def with_template(self) -> Tokenizer:
        """Return the tokenizer with the chat template among the settings that an export writes."""

    @abstractmethod
    def rendered(self, turns: Sequence[Turn]) -> Rendered:
        """Return the ids and the targets of a conversation.

        Raises:
            UserError: The conversation cannot be written in this form.
        """

    @abstractmethod
    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of turns and of the beginning of an answer."""

    @abstractmethod
    def answered(self, turns: Sequence[Turn], answers: Sequence[str]) -> list[list[int]]:
        """Return the ids of turns up to an answer, and those of each answer with its end.

        Raises:
            UserError: The conversation cannot be written in this form, or an answer changes the ids before it.
        """

    @abstractmethod
    def last_answer(self, ids: Sequence[int], mask: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Return the ids before the last answer, and those of the answer without its end.

        None if the conversation has no answer, or if nothing shows where it begins.

        Args:
            ids: The conversation.
            mask: Its targets.
        """

    def _plain(self, text: Sequence[int]) -> Rendered:
        """Return plain text between the tokens that end a text; all of it is learned."""
        end = self.tokenizer.end_of_text
        around = [] if end is None else [end]
        ids = [*around, *text, *around]
        return Rendered(ids, [0] * len(ids[:1]) + [1] * len(ids[1:]))
