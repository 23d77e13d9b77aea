"""A model with its parameters and its tokenizer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmjax.config import UserError
from lmjax.data.tokenizer import Tokenizer

#: What precedes a text without context: the rule of the model, its BOS, its end-of-text token, or nothing.
FirstToken = Literal["model", "bos", "end", "none"]


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
    #: Id of the BOS token that the model's files name, whether or not it precedes every text; None: not named.
    bos: int | None = None
    #: Id of the EOS token that the model's files name; None: the tokenizer's `end_of_text`.
    eos: int | None = None
    #: The generation_config.json of the files, which an export writes again.
    generation: Mapping[str, Any] = field(default_factory=dict)
    #: Id that precedes a text without context, or "none"; "model": BOS, else EOS. Set by `with_first`.
    start: int | Literal["model", "none"] = "model"
    #: Recognize special tokens in text; otherwise the text of a special token is ordinary text.
    special: bool = False

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text."""
        end = self.tokenizer.end_of_text
        return tuple({*self.stops, *(() if end is None else (end,))})

    @property
    def begins(self) -> int | None:
        """The BOS id: the one that the files name, or the one that precedes every text."""
        named = self.tokenizer.id_of("bos_token") if self.bos is None else self.bos
        return self.first if named is None else named

    @property
    def end(self) -> int | None:
        """The EOS id: the one that the files name, or the tokenizer's `end_of_text`."""
        named = self.tokenizer.id_of("eos_token") if self.eos is None else self.eos
        return self.tokenizer.end_of_text if named is None else named

    def before(self) -> tuple[int, ...]:
        """The ids that precede a text without context: one, or none if `with_first` says so.

        The rule is that of lm-evaluation-harness for Hugging Face models: the BOS, else the EOS.

        Raises:
            UserError: The model names neither.
        """
        if self.start == "none":
            return ()
        if self.start != "model":
            return (self.start,)
        begin = self.end if self.begins is None else self.begins
        if begin is None:
            raise UserError(
                f"{self.name or 'the model'} names no token that begins or ends a text, so nothing can precede a "
                "text without context; give a context"
            )
        return (begin,)

    def first_token(self) -> str | None:
        """The text of the token that precedes a text without context; None: there is none."""
        try:
            ids = self.before()
        except UserError:
            return None
        return self.tokenizer.token_text(ids[0]) if ids else None

    def encode(self, text: str) -> list[int]:
        """Encode a text without additional tokens.

        Raises:
            UserError: The model has no row for a token of the text.
        """
        ids, rows = self.tokenizer.encode(text, special=self.special), self.model.config.vocab_size
        if ids and max(ids) >= rows:
            token = self.tokenizer.token(max(ids))
            raise UserError(
                f"the text needs the token {token!r} of id {max(ids)}; the model has the ids 0 to {rows - 1}"
            )
        return ids

    def ids(self, text: str) -> list[int]:
        """Encode the beginning of a document; empty text gives the ids of `before`.

        A text that already begins with the first token does not get it twice.

        Raises:
            UserError: The text is empty, and nothing can precede it.
        """
        ids = self.encode(text)
        if not ids:
            return list(self.before())
        return ids if self.first in (None, ids[0]) else [self.first, *ids]


def with_first(lm: LanguageModel, first_token: FirstToken | int) -> LanguageModel:
    """Choose what precedes a text without context.

    Args:
        lm: The model.
        first_token: "model" (BOS, else EOS), "bos", "end" (the EOS), "none", or the id of a token.

    Raises:
        UserError: The model has no such token.
    """
    if isinstance(first_token, int):
        lm.tokenizer.token_text(first_token)  # refuses an id outside the vocabulary
        return dataclasses.replace(lm, start=first_token)
    if first_token in ("model", "none"):
        return dataclasses.replace(lm, start=first_token)
    if first_token not in ("bos", "end"):
        raise UserError(f"first token '{first_token}' is not one of model, bos, end, none")
    chosen = lm.begins if first_token == "bos" else lm.end
    if chosen is None:
        name = "begins" if first_token == "bos" else "ends"
        raise UserError(f"first token '{first_token}': {lm.name or 'the model'} names no token that {name} a text")
    return dataclasses.replace(lm, start=chosen)
