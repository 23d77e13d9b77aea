"""Supervised fine-tuning: the next token of the answers in conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from lmjax.config import CausalConfig, SFTConfig, UserError
from lmjax.data.chat_tokens import ChatTokens
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import continue_ids, generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.objectives import losses
from lmjax.objectives.chat_samples import ChatSamples
from lmjax.objectives.next_token import NextToken
from lmjax.objectives.objective import Loss

SHOWN = 5  # answers of the sample
_AT_ONCE = 64  # prompts that are answered together


@dataclass(frozen=True, eq=False)
class FineTuning(NextToken):
    """Next-token prediction of the targets of conversations.

    The loss of an update is the sum over the targets of the complete batch, divided by their number: a target counts
    the same in a short and in a long conversation, and in any division into microbatches.
    """

    samples: ChatSamples

    samples_type = ChatSamples
    prompt = "Spell out the number 967."

    @property
    def _options(self) -> SFTConfig:
        assert isinstance(self.config.objective, SFTConfig)
        return self.config.objective

    def _settings(self, train: bool) -> CausalConfig:
        """Return the configuration of the loss; regularization is off for measurements."""
        return CausalConfig(z_loss=self._options.z_loss if train else 0.0, chunk=self._options.chunk)

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[dict[str, Array], Any]:
        """Return sums over a validation microbatch, for `scores`."""
        sums = losses.causal(self.model, params, batch, config=self._settings(False), train=False, first_of_equal=True)
        loss = Loss(*sums)
        return {"loss": loss.loss, "weight": loss.weight, **loss.sums}, carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per target) and `val_accuracy`.

        The accuracy is the share of targets that are the most likely token.
        """
        return {"val_loss": totals["loss"] / totals["weight"], "val_accuracy": totals["accuracy"] / totals["weight"]}

    def notes(self) -> list[str]:
        """Return lines on figures that are missing."""
        return []

    def baselines(self) -> dict[str, float]:
        """Return no baselines: n-grams of answers say little."""
        return {}

    # ---- Answers -----------------------------------------------------------------------------------------------

    def finish(self, params: Any) -> dict[str, float]:
        """Return `val_exact` and `val_ended` of greedy answers to validation prompts.

        `val_exact` is the share of answers whose text equals that of the reference, without white space at the ends;
        `val_ended` the share that ends by itself.
        """
        decode = self.samples.store.tokenizer.decode
        questions = self._chosen(self._options.scored)
        if not questions:
            return {}
        exact = ended = 0
        answers = self._answers(params, [prompt for prompt, _ in questions])
        for (_, reference), (answer, has_ended) in zip(questions, answers, strict=True):
            exact += has_ended and decode(answer).strip() == decode(reference).strip()
            ended += has_ended
        return {"val_exact": exact / len(questions), "val_ended": ended / len(questions)}

    def sample(self, params: Any) -> str:
        """Return greedy answers to validation prompts, with the references."""
        decode, questions = self.samples.store.tokenizer.decode, self._chosen(SHOWN)
        answers = self._answers(params, [prompt for prompt, _ in questions])
        return "\n".join(
            f"{decode(prompt)}\n  -> {decode(answer)}{'' if has_ended else ' ...'}\n  ({decode(reference)})"
            for (prompt, reference), (answer, has_ended) in zip(questions, answers, strict=True)
        )

    def _chosen(self, most: int) -> list[tuple[list[int], list[int]]]:
        """Return (prompt, reference) of `most` validation conversations, or of all if 0."""
        questions = list(self.samples.questions())
        if not most or len(questions) <= most:
            return questions
        return [questions[i] for i in np.linspace(0, len(questions) - 1, most).astype(int).tolist()]

    def _answers(self, params: Any, prompts: Sequence[list[int]]) -> list[tuple[list[int], bool]]:
        """Return the greedy answer to each prompt, and whether it ended by itself.

        Prompts are answered together if they have equal space, so that no prompt shortens the answer to another.
        """
        tokenizer, context = self.samples.store.tokenizer, self.config.model.context
        ends = LanguageModel(self.model, params, tokenizer, stops=self.stops(tokenizer)).ends
        spaces = [min(self._options.answer_tokens, context - len(prompt) + 1) for prompt in prompts]
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
        return (ChatTokens(tokenizer).end,)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the answer to a prompt, which is the turn of a user.

        Raises:
            UserError: The prompt is empty, or does not fit into the context with an answer.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty; give a question")
        ids = ChatTokens(tokenizer).prompt([Turn("user", prompt, False)])
        if len(ids) > self.config.model.context:
            raise UserError(
                f"the prompt has {len(ids):,} tokens with its control tokens, model.context is "
                f"{self.config.model.context:,}; shorten it"
            )
        lm = LanguageModel(self.model, params, tokenizer, stops=self.stops(tokenizer))
        return generate(lm, [ids], sampling=Sampling(**settings), alone=True)[0]
