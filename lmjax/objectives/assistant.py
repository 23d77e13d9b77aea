"""Objectives of models that answer the prompts of users, with control tokens for turns."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmjax.config import UserError
from lmjax.data.chat_tokens import chat_form
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import continue_ids, generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.objectives.next_token import NextToken

_AT_ONCE = 64  # prompts that are answered together


@dataclass(frozen=True, eq=False)
class Assistant(NextToken):
    """Prediction of the next token by a model that answers as an assistant."""

    @property
    @abstractmethod
    def _answer_tokens(self) -> int:
        """Length in tokens at which an answer is stopped."""

    def _answers(self, params: Any, prompts: Sequence[list[int]]) -> list[tuple[list[int], bool]]:
        """Return the greedy answer to each prompt, and whether it ended by itself.

        Prompts are answered together if they have equal space, so that no prompt shortens the answer to another.
        """
        tokenizer, context = self.samples.store.tokenizer, self.config.model.context
        ends = LanguageModel(self.model, params, tokenizer, stops=self.stops(tokenizer)).ends
        spaces = [min(self._answer_tokens, context - len(prompt) + 1) for prompt in prompts]
        answers: dict[int, tuple[list[int], bool]] = {}
        for space in sorted(set(spaces)):
            numbers = [number for number, own in enumerate(spaces) if own == space]
            for batch in (numbers[start : start + _AT_ONCE] for start in range(0, len(numbers), _AT_ONCE)):
                sampling = Sampling(max_tokens=space, temperature=0)
                *_, texts = continue_ids(
                    self.model, params, [prompts[number] for number in batch], sampling=sampling, ends=ends
                )
                # The end is not a part of an answer.
                answers |= {number: (text, len(text) < space) for number, text in zip(batch, texts, strict=True)}
        return [answers[number] for number in range(len(prompts))]

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids that end an answer, in addition to the tokenizer's `end_of_text`."""
        return (chat_form(tokenizer).end,)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the answer to a prompt, which is the turn of a user.

        Raises:
            UserError: The prompt is empty, or does not fit into the context with an answer.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty; give a question")
        ids = chat_form(tokenizer).prompt([Turn("user", prompt, False)])
        if len(ids) > self.config.model.context:
            raise UserError(
                f"the prompt has {len(ids):,} tokens with its control tokens, model.context is "
                f"{self.config.model.context:,}; shorten it"
            )
        lm = LanguageModel(self.model, params, tokenizer, stops=self.stops(tokenizer))
        return generate(lm, [ids], sampling=Sampling(**settings), alone=True)[0]
