"""A model with its parameters and its tokenizer."""

from dataclasses import dataclass
from typing import Any

from lmjax.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A next-token model with its tokenizer, for generation and evaluation."""

    #: A Linen module, ids (B, T) to logits (B, T, V), whose `config` is a `ModelConfig`.
    model: Any
    #: Its parameters.
    params: Any
    #: Its tokenizer.
    tokenizer: Tokenizer
    #: A display name.
    name: str = ""
    #: Id that precedes every text if the model was trained with it (LLaMA's <s>); None: no such id.
    first: int | None = None
    #: Ids that end a text, in addition to the tokenizer's `end_of_text`.
    stops: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text."""
        end = self.tokenizer.end_of_text
        return tuple({*self.stops, *(() if end is None else (end,))})

    def ids(self, text: str) -> list[int]:
        """Encode the beginning of a document.

        For empty text: the end-of-text token that precedes every document.
        """
        first = [] if self.first is None else [self.first]
        end = self.tokenizer.end_of_text
        return first + self.tokenizer.encode(text) or [0 if end is None else end]
