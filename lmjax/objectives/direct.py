"""Direct preference optimization: a policy learned from pairs of answers.

Rafailov et al. 2023, "Direct preference optimization: your language model is secretly a reward model".

Shapes: B pairs, 2 answers (the preferred one first), T positions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import CausalConfig, DirectConfig
from lmjax.data.batches import preferences
from lmjax.data.sources.tables import SIDES, Side
from lmjax.objectives import losses, preference_losses, reference
from lmjax.objectives.assistant import Assistant
from lmjax.objectives.objective import Loss
from lmjax.objectives.preference_samples import PreferenceSamples
from lmjax.objectives.samples import Batch

SHOWN = 4  # answers of the sample


@dataclass(frozen=True, eq=False)
class DirectPreference(Assistant):
    """Prediction of the next token by a policy that prefers what the pairs prefer.

    The log-probability of an answer is the sum over its tokens and its end; `ipo` takes the mean. A pair counts as one,
    however long its answers are.
    """

    samples: PreferenceSamples

    samples_type = PreferenceSamples
    prompt = "Write a review of the soup."
    reference_name: ClassVar[str] = reference.LOGPROBS

    @property
    def _options(self) -> DirectConfig:
        assert isinstance(self.config.objective, DirectConfig)
        return self.config.objective

    @property
    def _answer_tokens(self) -> int:
        return self._options.answer_tokens

    def _settings(self, train: bool) -> CausalConfig:
        return CausalConfig(chunk=self._options.chunk)

    # ---- Training ----------------------------------------------------------------------------------------------

    def logprobs(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return log p (B, 2) of each answer, in nats, and the number (B, 2) of its tokens.

        Both answers of a pair are read in one call, with the same prompt and the same width.
        """
        tokens_B2T, mask_B2T = batch["tokens_B2T"], batch["mask_B2T"]
        shape = tokens_B2T.shape[:2]
        rows = {
            "inputs_BT": tokens_B2T[..., :-1],
            "targets_BT": tokens_B2T[..., 1:],  # the place of a token is predicted at the place before it
            "weights_BT": mask_B2T[..., 1:],
        }
        rows = {name: array.reshape(-1, array.shape[-1]) for name, array in rows.items()}
        negative, counts = losses.causal_by_row(self.model, params, rows, chunk=self._options.chunk)
        return -negative.reshape(shape), counts.reshape(shape)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the number of pairs, and the sums of `preference_losses.direct`.

        A measurement has neither label smoothing nor the term of preferred answers.
        """
        options = self._options
        logprobs_B2, counts_B2 = self.logprobs(params, batch)
        smoothing, coefficient = (options.label_smoothing, options.sft) if train else (0.0, 0.0)
        return preference_losses.direct(
            options.loss,
            *self._log_ratios(logprobs_B2, counts_B2, batch),
            batch["weights_B"],
            beta=options.beta,
            label_smoothing=smoothing,
            chosen_nll_B=-logprobs_B2[:, 0] / jnp.maximum(counts_B2[:, 0], 1),
            nll_coefficient=coefficient,
        )

    def _log_ratios(self, logprobs_B2: Array, counts_B2: Array, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return log p of policy minus reference of the preferred and of the other answers."""
        ratios_B2 = logprobs_B2 - batch["reference_B2"]
        if self._options.loss == "ipo":
            ratios_B2 /= jnp.maximum(counts_B2, 1)
        return ratios_B2[:, 0], ratios_B2[:, 1]

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss (B) and the weight (B) of each pair, as measured."""
        options = self._options
        ratios = self._log_ratios(*self.logprobs(params, batch), batch)
        rows = jax.vmap(
            lambda chosen, rejected, weight: (
                preference_losses.direct(
                    options.loss, chosen[None], rejected[None], weight[None], beta=options.beta
                ).loss
            )
        )
        return rows(*ratios, batch["weights_B"]), batch["weights_B"]

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per pair) and means over pairs.

        `val_accuracy` is the share of pairs whose preferred answer has the higher implied reward, `val_margin` the mean
        difference of the implied rewards, `val_chosen_reward` and `val_rejected_reward` their means, and `val_nll` the
        mean negative log-probability of the tokens of preferred answers.
        """
        names = ("accuracy", "margin", "chosen_reward", "rejected_reward", "nll")
        return super().scores(totals) | {f"val_{name}": totals[name] / totals["weight"] for name in names}

    # ---- The reference -----------------------------------------------------------------------------------------

    def reference_logprobs(self, logprobs: Callable[[Batch], np.ndarray]) -> dict[Side, np.ndarray]:
        """Return the log-probabilities (pairs, 2) of all used pairs of each side.

        The rows have the widths of the training, so that at the parameters of the reference, policy and reference
        differ only by rounding.

        Args:
            logprobs: Log-probabilities (B, 2) of the rows of a microbatch under the reference.
        """
        samples, rows, table = self.samples, self.config.batch.microbatch, dict[Side, np.ndarray]()
        for side, count in self._counts.items():
            table[side] = np.zeros((count, 2), np.float32)
            parts = samples.buckets.members if side == "train" else samples.buckets.validation
            for members, (width,) in zip(parts, samples.buckets.widths, strict=False):
                for start in range(0, len(members), rows):
                    here = members[np.minimum(start + np.arange(rows), len(members) - 1)]
                    table[side][here] = logprobs(preferences.arrays(samples.store, side, here, width=width))
        return table

    @property
    def _counts(self) -> dict[Side, int]:
        return {side: len(self.samples.store.streams[f"{side}-prompt"].starts) for side in SIDES}

    def with_reference(self, content: bytes) -> Self:
        """Return the objective whose samples have the log-probabilities of the reference.

        Args:
            content: The content of their file.

        Raises:
            ValueError: It is that of other pairs.
        """
        table = reference.to_table(content, self._counts)
        return dataclasses.replace(self, samples=dataclasses.replace(self.samples, reference=table))

    # ---- Using -------------------------------------------------------------------------------------------------

    def sample(self, params: Any) -> str:
        """Return greedy answers to validation prompts, with the preferred answers."""
        samples, decode = self.samples, self.samples.store.tokenizer.decode
        records = np.concatenate(samples.buckets.validation)
        shown = records[np.linspace(0, len(records) - 1, min(SHOWN, len(records))).astype(int)].tolist()
        parts = [preferences.ids_of(samples.store, "validation", record) for record in shown]
        answers = self._answers(params, [prompt.tolist() for prompt, _, _ in parts])
        return "\n".join(
            f"{decode(prompt)}\n  -> {decode(answer)}{'' if has_ended else ' ...'}\n  ({decode(chosen[:-1])})"
            for (prompt, chosen, _), (answer, has_ended) in zip(parts, answers, strict=True)
        )
