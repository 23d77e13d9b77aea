"""Supervised fine-tuning: the next token of the answers in conversations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from lmjax.config import CausalConfig, SFTConfig
from lmjax.objectives import losses
from lmjax.objectives.assistant import Assistant
from lmjax.objectives.chat_samples import ChatSamples
from lmjax.objectives.objective import Loss

SHOWN = 5  # answers of the sample


@dataclass(frozen=True, eq=False)
class FineTuning(Assistant):
    """Next-token prediction of the targets of conversations.

    The loss of an update is the sum over the targets of the complete batch, divided by their number: a target counts
    the same in a short and in a long conversation, and in any division into microbatches.
    """

    samples: ChatSamples

    samples_type = ChatSamples
    prompt = "How are you?"

    @property
    def _options(self) -> SFTConfig:
        assert isinstance(self.config.objective, SFTConfig)
        return self.config.objective

    @property
    def _answer_tokens(self) -> int:
        return self._options.answer_tokens

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
