"""Conversations as token ids by the chat template of a model; needs the package jinja2.

The rendered chat is encoded as transformers does, with the special tokens that the template writes; contents never
become special tokens (`chat_encoding`). The targets of an answer are what the template marks with its tag `generation`.
A template without the tag is rendered up to each answer: the answer is what follows the prompt, up to the token that
ends it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from lmjax.config import UserError
from lmjax.data.chat_encoding import ChatEncoder, Span
from lmjax.data.chat_form import ChatForm, Rendered
from lmjax.data.chat_template import ChatTemplate, with_template
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.template_renderer import CLOSE, OPEN, render
from lmjax.data.tokenizer import Tokenizer

#: The date that every template writes, so that ids do not depend on the day: the default of Llama 3's template.
DATE = datetime(2024, 7, 26)
_PROBE = ("Is water wet?", "Yes, it is.")  # a conversation that shows how an answer ends


@dataclass(frozen=True)
class TemplateTokens(ChatForm):
    """How turns become token ids with a chat template.

    Raises:
        UserError: The template cannot be rendered, or writes no special token after an answer.
    """

    template: ChatTemplate

    def __post_init__(self) -> None:
        if self.end not in self.tokenizer.special_ids:
            raise self._refusal(f"ends an answer with {self.tokenizer.token(self.end)!r}, which is no special token")

    @cached_property
    def end(self) -> int:
        """The id that ends an answer: that of the first added token after one."""
        text = self._text([{"role": role, "content": text} for role, text in zip(_ROLES, _PROBE, strict=True)])
        place = text.rfind(_PROBE[1])
        if place < 0:
            raise self._refusal("does not write the text of an answer")
        after = [(span, id) for span, id in self._encoder.find(text) if span[0] >= place + len(_PROBE[1])]
        ends = [id for (start, stop), id in after if not text[start:stop].isspace()]
        if not ends:
            raise self._refusal(
                "writes no special token of the tokenizer after an answer, so that a model cannot learn to end one"
            )
        return ends[0]

    def describe(self) -> str:
        """Describe how turns are written."""
        return (
            f"turns are written by the chat template of the model; {self.tokenizer.token(self.end)} ({self.end}) ends "
            "an answer"
        )

    def with_template(self) -> Tokenizer:
        """Return the tokenizer with the chat template among the settings that an export writes."""
        known, template = with_template(self.tokenizer, None), self.template
        tokens = {name: token for name, token in template.tokens.items() if known.id_of_token(token) is not None}
        ends = {name: tokens.pop(name) for name in ("bos_token", "eos_token") if name in tokens}
        settings = {**known.config, **ends, "chat_template": template.source}
        return Tokenizer(known.backend, tokens | dict(known.named), settings)

    def rendered(self, turns: Sequence[Turn]) -> Rendered:
        """Return the ids and the targets of a conversation.

        Raises:
            UserError: The template refuses the conversation, or does not show where its answers begin and end.
        """
        if any(turn.role == "text" for turn in turns):
            return self._plain([id for turn in turns for id in self.tokenizer.encode(turn.text)])
        messages = self._messages(turns)
        text, marked = _marked(self._text(messages, marked=True))
        if all(turn.learn for turn in turns) and any(turn.role != "assistant" for turn in turns):
            spans = [(0, len(text))]  # all tokens are learned, those of the template too
        elif marked:
            spans = self._of_marks(turns, text, marked)
        else:
            spans = self._of_prefixes(turns, messages, text)
        encoded = self._encoder.encode(text, spans)
        encoded.mask[:1] = [0] * len(encoded.mask[:1])
        if not any(encoded.mask):
            raise self._refusal("writes no answer of this conversation")
        return Rendered(encoded.ids, encoded.mask)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of turns and of the beginning of an answer."""
        return self._encoder.encode(self._text(self._messages(turns), prompt=True)).ids

    def answered(self, turns: Sequence[Turn], answers: Sequence[str]) -> list[list[int]]:
        """Return the ids of turns up to an answer, and those of each answer with its end.

        What the template writes between the prompt and an answer, such as empty reasoning, is a part of the answer.

        Raises:
            UserError: The template refuses the conversation, or an answer changes the ids before it.
        """
        before = [Turn(turn.role, turn.text, False) for turn in turns]
        parts = [prompt := self.prompt(turns)]
        for answer in answers:
            ids, mask = (written := self.rendered([*before, Turn("assistant", answer, True)])).ids, written.mask
            stop = len(mask) - mask[::-1].index(1)
            if ids[: len(prompt)] != prompt:
                raise self._refusal(f"writes other ids before the answer {answer[:40]!r} than before others")
            if ids[stop - 1] != self.end:
                raise self._refusal(f"does not end the answer {answer[:40]!r} with {self.tokenizer.token(self.end)}")
            parts.append(ids[len(prompt) : stop])
        return parts

    def last_answer(self, ids: Sequence[int], mask: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """Return the ids before the last answer, and those of the answer without its end.

        None if all tokens are targets, so that nothing shows where the answer begins.

        Args:
            ids: The conversation.
            mask: Its targets.
        """
        learned = [place for place, target in enumerate(mask) if target]
        if not learned or sum(mask) == len(mask) - 1:
            return None
        start = stop = learned[-1] + 1
        while mask[start - 1]:
            start -= 1
        answer = list(ids[start:stop])
        return list(ids[:start]), answer[: answer.index(self.end)] if self.end in answer else answer

    # ---- Where answers are -----------------------------------------------------------------------------------------

    def _of_marks(self, turns: Sequence[Turn], text: str, marked: Sequence[Span]) -> list[Span]:
        """Return the marked places that are learned, each with the token that ends it."""
        answers = [turn for turn in turns if turn.role == "assistant"]
        if len(marked) != len(answers) and not all(turn.learn for turn in answers):
            raise self._refusal(
                f"marks {len(marked)} answers of a conversation that has {len(answers)}, so that those to learn are "
                "unknown"
            )
        learned = [span for span, turn in zip(marked, answers, strict=False) if turn.learn]
        end = self.tokenizer.token_text(self.end)
        spans = marked if len(marked) != len(answers) else learned
        return [(start, stop + len(end) * text.startswith(end, stop)) for start, stop in spans]

    def _of_prefixes(self, turns: Sequence[Turn], messages: Sequence[Mapping[str, Any]], text: str) -> list[Span]:
        """Return the places of the answers that are learned.

        Each begins where its prompt ends, and ends with the token that ends an answer.
        """
        spans, end = [], self.tokenizer.token_text(self.end)
        for place, turn in enumerate(turns):
            if turn.role != "assistant" or not turn.learn:
                continue
            number, last = place + 1, place == len(turns) - 1
            start = len(prompt := self._text(messages[:place], prompt=True))
            if not text.startswith(prompt):
                raise self._refusal(
                    f"does not write the prompt of turn {number} in the same way {_WITHIN}", cure=not last
                )
            until = text if last else self._text(messages[:number])
            stop = text.rfind(end, start, _common(text, until))
            if stop < 0:
                raise self._refusal(f"does not end turn {number} with {end} in the same way {_WITHIN}", cure=not last)
            spans.append((start, stop + len(end)))
        return spans

    def _refusal(self, reason: str, *, cure: bool = False) -> UserError:
        """Return the error that refuses the template."""
        begin = " ".join(self.template.source.split())[:60]
        cure_text = "learn the last answer only with data.targets=last, " * cure
        return UserError(
            f"the chat template that begins with {begin!r} {reason}; {cure_text}give a template that marks answers by "
            "{% generation %} with data.template=FILE.jinja, or mark turns by control tokens with data.template=ids"
        )

    # ---- Text ------------------------------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return ChatEncoder(self.tokenizer)

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        return [{"role": turn.role, "content": self._encoder.guard(turn.text)} for turn in turns]

    def _text(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False, marked: bool = False) -> str:
        return render(self.template, list(messages), prompt=prompt, now=lambda: DATE, marked=marked)


_ROLES = ("user", "assistant")
_WITHIN = "within the complete conversation as alone"


def _common(a: str, b: str) -> int:
    """Return the length of the common beginning of two texts."""
    if b.startswith(a) or a.startswith(b):
        return min(len(a), len(b))
    return next(place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def _marked(text: str) -> tuple[str, list[Span]]:
    """Return a chat without the marks of the tag `generation`, and what they enclose."""
    spans: list[Span] = []
    plain, *pieces = text.split(OPEN)
    for piece in pieces:
        inside, _, after = piece.partition(CLOSE)
        start, stop = len(plain), len(plain) + len(inside)
        if spans and spans[-1][1] == start:  # two tags that follow each other are one answer
            start = spans.pop()[0]
        if stop > start:
            spans.append((start, stop))
        plain += inside + after
    return plain.replace(CLOSE, ""), spans
