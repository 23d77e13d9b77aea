"""Token ids of rendered chats, whose contents never become special tokens.

The tokenizer recognizes its special tokens in a rendered chat, as it does in transformers. `guard` marks each special
token that a content spells with a character inside it, before the chat is rendered. A chat with such marks is encoded
by a copy of the tokenizer whose special tokens begin with the mark: those of the template get the mark, those of the
contents lose it and are ordinary text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.data.template_renderer import CLOSE, OPEN
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.tokenizer_checks import library_errors

_MARK = "\U0010fff2"  # a character for private use
Span = tuple[int, ...]  # begin and end


@dataclass(frozen=True)
class Encoded:
    """A rendered chat as token ids."""

    ids: list[int]
    #: 1 for a token that overlaps a span, else 0.
    mask: list[int]


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes rendered chats with a tokenizer."""

    tokenizer: Tokenizer

    @cached_property
    def _names(self) -> dict[str, int]:
        """All added tokens by their text: special tokens, and others that text may have."""
        return {token.content: id for id, token in self.tokenizer.backend.get_added_tokens_decoder().items()}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.backend.get_added_tokens_decoder().values()
        return _any_of([token.content for token in added if token.special])

    @cached_property
    def _added(self) -> re.Pattern[str]:
        return _any_of(list(self._names))

    def guard(self, content: str) -> str:
        """Return the content with marks in the special tokens that it spells.

        Raises:
            UserError: It has a character that lmjax uses as a mark.
        """
        if any(mark in content for mark in (_MARK, OPEN, CLOSE)):
            raise UserError("a text has one of the characters U+10FFF0 to U+10FFF2, which lmjax uses as marks")
        return self._special.sub(lambda match: match[0][:1] + _MARK + match[0][1:], content)

    def find(self, text: str) -> list[tuple[Span, int]]:
        """Return the place and the id of each added token that the template wrote."""
        return [(match.span(), self._names[match[0]]) for match in self._added.finditer(text)]

    def encode(self, text: str, spans: Sequence[Span] = ()) -> Encoded:
        """Encode a rendered chat.

        Args:
            text: The chat, whose contents went through `guard`.
            spans: Places of characters, in order, whose tokens are marked.

        Raises:
            UserError: The text cannot be encoded, or a content becomes a special token even as ordinary text.
        """
        if _MARK not in text:
            return self._encoded(self.tokenizer.recognizing, text, spans)
        swapped = re.compile(f"{_MARK}|{self._added.pattern}")
        shifts = [(match.end(), -1 if match[0] == _MARK else 1) for match in swapped.finditer(text)]
        moved = [tuple(edge + sum(n for place, n in shifts if place <= edge) for edge in span) for span in spans]
        text = swapped.sub(lambda match: "" if match[0] == _MARK else _MARK + match[0], text)
        copy = self._encoded(self._copy, text, moved)
        original = {self._copy.token_to_id(_MARK + name): id for name, id in self._names.items()}
        spelled = {self._names[name] for name in self._special.findall(text.replace(_MARK, ""))}
        wrong = next((id for id in copy.ids if id not in original and id in spelled), None)
        if wrong is not None:
            name = self.tokenizer.token(wrong)
            raise UserError(f"the text {name!r} in a message becomes the special token of this name; change the text")
        return Encoded([original.get(id, id) for id in copy.ids], copy.mask)

    @cached_property
    def _copy(self) -> Backend:
        """A tokenizer with `_MARK` before the text of each added token."""
        tree = json.loads(self.tokenizer.json)
        for token in tree["added_tokens"]:
            token["content"] = _MARK + token["content"]
        backend = Backend.from_str(json.dumps(tree))
        backend.encode_special_tokens = False
        return backend

    def _encoded(self, backend: Backend, text: str, spans: Sequence[Span]) -> Encoded:
        with library_errors("the tokenizer cannot encode this chat", quiet=bool(self.tokenizer.budget.patterns)):
            self.tokenizer.budget.check([text])
            encoding = backend.encode(text, add_special_tokens=False)
        mask, number = [], 0
        for begin, end in encoding.offsets:  # both in order; a token counts if it overlaps a span, as in transformers
            while number < len(spans) and begin >= spans[number][1]:
                number += 1
            mask.append(int(number < len(spans) and end > spans[number][0]))
        return Encoded(list(encoding.ids), mask)


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """An expression that finds the longest of the texts at a place."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
