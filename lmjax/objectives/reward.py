"""A reward model: scores of answers, learned from pairs of which one is preferred.

Shapes: B pairs, 2 answers (the preferred one first), N pairs or texts of a split, T positions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import Config, GPTConfig, PreferenceConfig, RewardConfig, UserError
from lmjax.data.batches import preferences
from lmjax.data.batches.buckets import MULTIPLE
from lmjax.data.chat_tokens import chat_form
from lmjax.data.sources import reviews
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.sources.tables import Side
from lmjax.data.tokenizer import Tokenizer
from lmjax.models.scalar import Scalar
from lmjax.objectives import losses, preference_losses, reference, reward_measures
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.preference_samples import PreferenceSamples
from lmjax.objectives.reference import ReferenceSamples

SHOWN = 4  # pairs of the sample
_AT_ONCE = 64  # texts that are scored together


@dataclass(frozen=True, eq=False)
class RewardModel(Objective):
    """Scores whose differences are the log-odds that an answer is preferred.

    As in Ouyang et al. 2022, section 3.5. The loss is of raw scores; gain and bias of the model have no part in it.
    """

    samples: PreferenceSamples
    #: Answers of the reference policy, whose scores get mean 0 and standard deviation 1 at the end.
    answers: ReferenceSamples | None = None

    samples_type = PreferenceSamples
    prompt = "Write a review of the soup.\tThe soup was perfect and tasty."
    reference_name: ClassVar[str] = reference.SAMPLES

    @classmethod
    def model_of(cls, config: Config) -> Scalar:
        """Build the model of a resolved configuration."""
        assert isinstance(config.model, GPTConfig)
        return Scalar(config.model)

    def example_prompt(self) -> str:
        """Return a question of the validation pairs and the preferred answer to its first prompt."""
        asked, store = self.samples.example(), self.samples.store
        if not asked:
            return self.prompt
        _, chosen, _ = preferences.ids_of(store, "validation", 0)
        return f"{asked}\t{' '.join(store.tokenizer.decode(chosen[:-1]).split())}"

    @property
    def _options(self) -> RewardConfig:
        assert isinstance(self.config.objective, RewardConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        return (jnp.zeros((1, 1), jnp.int32),), {"last_B": jnp.zeros(1, jnp.int32)}

    # ---- Training ----------------------------------------------------------------------------------------------

    def raw_scores(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, train: bool = False
    ) -> Array:
        """Return the scores (B, 2) of both answers without gain and bias."""
        tokens_B2T, last_B2 = batch["tokens_B2T"], batch["last_B2"]
        rows = tokens_B2T.reshape(-1, tokens_B2T.shape[-1])  # the answers of a pair stay on one device
        named: dict[str, Any] = {"last_B": last_B2.reshape(-1), "calibrated": False}
        return losses.apply(self.model, params, rows, rng=rng, train=train, **named).reshape(last_B2.shape)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the number of pairs, and sums of accuracy and margin.

        A measurement has neither margins nor the centring term.
        """
        scores_B2, options = self.raw_scores(params, batch, rng=rng, train=train), self._options
        return preference_losses.bradley_terry(
            scores_B2[:, 0],
            scores_B2[:, 1],
            batch["weights_B"],
            margins_B=batch["margins_B"] if train and options.margins else None,
            centring=options.centring if train else 0.0,
        )

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss (B) and the weight (B) of each pair, without margins and centring."""
        scores_B2, weights_B = self.raw_scores(params, batch), batch["weights_B"]
        return weights_B * jax.nn.softplus(scores_B2[:, 1] - scores_B2[:, 0]), weights_B

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per pair), `val_accuracy` and `val_margin`.

        `val_accuracy` is the share of pairs whose preferred answer has the higher score, `val_margin` the mean
        difference of the two raw scores.
        """
        further = {f"val_{name}": totals[name] / totals["weight"] for name in ("accuracy", "margin")}
        return super().scores(totals) | further

    def baselines(self) -> dict[str, float]:
        """Return the accuracy of the rule about length that is best on the training pairs."""
        chosen, rejected = self._lengths("train", self.samples.fitting["train"].records).T
        sign = 1 if np.sum(chosen > rejected) >= np.sum(chosen < rejected) else -1
        chosen, rejected = self._lengths("validation", self.samples.fitting["validation"].records).T
        hits = np.mean(sign * (chosen - rejected) > 0) + np.mean(chosen == rejected) / 2
        return {"length_rule_accuracy": float(hits)}

    # ---- Held-out pairs ----------------------------------------------------------------------------------------

    def finish(self, params: Any) -> dict[str, float]:
        """Return the measures of `reward_measures` on the held-out pairs."""
        records, scores_N2 = self.held_out(params)
        measures = reward_measures.of_pairs(scores_N2, self._lengths("validation", records))
        truth_N2 = self.truth(records)
        if truth_N2 is not None:
            measures |= reward_measures.of_truth(scores_N2, truth_N2)
        return {f"val_{name}": value for name, value in measures.items() if name not in ("loss", "accuracy", "margin")}

    def held_out(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers (N) and the raw scores (N, 2) of all validation pairs."""
        return self.pair_scores(params, "validation", np.concatenate(self.samples.buckets.validation))

    def pair_scores(self, params: Any, side: Side, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the same numbers and the raw scores (N, 2) of pairs of a side."""
        rows = []
        for record in records.tolist():
            prompt, *answers = preferences.ids_of(self.samples.store, side, record)
            rows += [np.concatenate([prompt, answer]) for answer in answers]
        return records, self.score_rows(params, rows).reshape(-1, 2)

    def score_rows(self, params: Any, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Return the raw scores of rows of ids, each a prompt and an answer with its end.

        Rows of similar length are scored together, in programs of a few widths.
        """
        scores, lengths = np.zeros(len(rows), np.float32), np.asarray([len(row) for row in rows])
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(rows), _AT_ONCE):
            here = order[start : start + _AT_ONCE]
            width = -(-int(lengths[here].max()) // MULTIPLE) * MULTIPLE
            ids_BT = np.zeros((_AT_ONCE, width), np.int32)
            for place, number in enumerate(here.tolist()):
                ids_BT[place, : lengths[number]] = rows[number]
            last_B = np.zeros(_AT_ONCE, np.int32)
            last_B[: len(here)] = lengths[here] - 1
            scores[here] = np.asarray(self._raw(params, ids_BT, last_B))[: len(here)]
        return scores

    @cached_property
    def _raw(self) -> Any:
        def raw(params: Any, ids_BT: Array, last_B: Array) -> Array:
            scores_B: Any = self.model.apply({"params": params}, ids_BT, last_B=last_B, calibrated=False)
            return scores_B

        return jax.jit(raw)

    @property
    def has_truth(self) -> bool:
        """Whether the data are reviews, whose true rewards are known."""
        data = self.config.data
        assert isinstance(data, PreferenceConfig)
        return not data.files and data.source == "reviews"

    def truth(self, records: np.ndarray) -> np.ndarray | None:
        """Return the true rewards (N, 2) of validation pairs, or None if they are not known."""
        if not self.has_truth:
            return None
        decode, rewards = self.samples.store.tokenizer.decode, []
        for record in records.tolist():
            prompt, *answers = preferences.ids_of(self.samples.store, "validation", record)
            dish = reviews.dish_of(decode(prompt))
            rewards.append([reviews.true_reward(decode(answer[:-1]), dish) for answer in answers])
        return np.asarray(rewards, np.float64)

    def _lengths(self, side: Side, records: np.ndarray) -> np.ndarray:
        return preferences.answer_lengths(self.samples.store, side)[records]

    # ---- The reference -----------------------------------------------------------------------------------------

    def with_reference(self, content: bytes) -> Self:
        """Return the objective with answers of the reference policy.

        Args:
            content: The content of their file.

        Raises:
            ValueError: It has other rows than this model reads.
        """
        model = self.config.model
        return dataclasses.replace(
            self, answers=reference.to_samples(content, context=model.context, vocab_size=model.vocab_size)
        )

    # ---- Using -------------------------------------------------------------------------------------------------

    def sample(self, params: Any) -> str:
        """Return validation pairs with the scores of both answers."""
        records = np.concatenate(self.samples.buckets.validation)
        shown = records[np.linspace(0, len(records) - 1, min(SHOWN, len(records))).astype(int)]
        _, scores_N2 = self.pair_scores(params, "validation", shown)
        lines = []
        for record, (chosen, rejected) in zip(shown.tolist(), scores_N2.tolist(), strict=True):
            texts = preferences.text_of(self.samples.store, "validation", record)
            verdict = "right" if chosen > rejected else "WRONG"
            lines += [texts[0], f"  preferred {chosen:6.2f}  {texts[1]}", f"  other     {rejected:6.2f}  {texts[2]}"]
            lines[-1] += f"  ({verdict})"
        return "\n".join(lines)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the score of an answer; a tab separates it from the prompt.

        Raises:
            UserError: The text has no tab, or is longer than the context.
        """
        question, tab, text = prompt.partition("\t")
        if not tab:
            raise UserError("a reward model scores an answer to a prompt: give both, with a tab between them")
        before, answer = chat_form(tokenizer).answered([Turn("user", question, False)], [text])
        ids = [*before, *answer]
        if len(ids) > self.config.model.context:
            raise UserError(
                f"the text has {len(ids):,} tokens with its control tokens, model.context is "
                f"{self.config.model.context:,}; shorten it"
            )
        score = self.model.apply({"params": params}, jnp.asarray([ids]), last_B=jnp.asarray([len(ids) - 1]))
        return f"{float(np.asarray(score)[0]):.3f}"
