"""The text of ids that continue a text.

A tokenizer decodes some ids differently at the beginning of a text: LLaMA's removes a blank there, WordPiece keeps the
mark of a continued word, and bytes of a character mean nothing without the others. The text of new ids is therefore the
text of the previous ids and the new ones, without the text of the previous ids.
"""

import re
from collections.abc import Sequence

from lmjax.data.tokenizer import Tokenizer

_LEAST = 16  # minimum number of previous ids that are decoded with the new ones
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PARTIAL = "\ufffd"  # stands for bytes that are not (yet) a character


class Continuation:
    """The growing text of the ids that follow a prompt.

    The cost of a call does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, alone: bool = False) -> None:
        """Begin the continuation of a prompt; special ids at its beginning are no text.

        Args:
            tokenizer: The tokenizer.
            prompt: Ids of the prompt.
            alone: Decode the new ids as a text of their own, without special tokens.
        """
        self._skip = alone
        prompt = () if alone else prompt
        special, start = tokenizer.special_ids - {tokenizer.unknown}, 0
        while start < len(prompt) and prompt[start] in special:
            start += 1
        self._tokenizer = tokenizer
        self._bytes = getattr(tokenizer.backend.model, "byte_fallback", False)
        self._before, self._before_text = self._tail(prompt[start:])
        self._settled, self._settled_text = 0, ""

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of all ids after the prompt, of which previous calls had the first ones."""
        new = list(ids[self._settled :])
        text = self._after(new)
        if len(new) > 4 * _LEAST:
            count = len(new) - _LEAST
            settled_text = self._after(new[:count])
            if not self._open(new[:count], settled_text) and text.startswith(settled_text):
                self._before, self._before_text = self._tail(self._before + new[:count])
                self._settled, self._settled_text = self._settled + count, self._settled_text + settled_text
                return self._settled_text + self._after(new[count:])
        return self._settled_text + text

    def final(self, ids: Sequence[int], text: str) -> int:
        """Return the number of characters of the text of these ids that no later id can change."""
        run = self._byte_run(ids) if self._bytes else 0
        if run:
            text = self.text(ids[: len(ids) - run])
        return len(text.rstrip(_PARTIAL))

    def _after(self, new: list[int]) -> str:
        """The text of new ids after the settled ones."""
        complete, before = self._decode(self._before + new), self._before_text
        if complete.startswith(before):
            return complete[len(before) :]
        # The new ids complete the last character of the previous text.
        pairs = enumerate(zip(complete, before, strict=False))
        return complete[next((i for i, (new_char, char) in pairs if new_char != char), len(complete)) :]

    def _tail(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """The last ids, beginning with a complete character, with their text."""
        count = _LEAST
        while count < len(ids):
            tail = list(ids[-count:])
            text = self._decode(tail)
            if not text.startswith(_PARTIAL) and not (self._bytes and self._is_byte(tail[0])):
                return tail, text
            count *= 2
        return list(ids), self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        if self._skip:
            return self._tokenizer.backend.decode(ids, skip_special_tokens=True)
        return self._tokenizer.decode(ids)

    def _open(self, ids: Sequence[int], text: str) -> bool:
        """Whether the next id may change the end of this text."""
        return text.endswith(_PARTIAL) or bool(self._bytes and self._byte_run(ids))

    def _byte_run(self, ids: Sequence[int]) -> int:
        """The number of bytes at the end of ids: one invalid byte makes all of them invalid."""
        return next((i for i, id in enumerate(reversed(ids)) if not self._is_byte(id)), len(ids))

    def _is_byte(self, id: int) -> bool:
        token = self._tokenizer.backend.id_to_token(int(id))
        return token is not None and _BYTE.fullmatch(token) is not None
