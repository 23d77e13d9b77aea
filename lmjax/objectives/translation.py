"""Sequence to sequence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import TranslationConfig, UserError
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.beam import translate
from lmjax.objectives import losses
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.record_samples import PairSamples

SHOWN = 5  # pairs of the sample


@dataclass(frozen=True, eq=False)
class Translation(Objective):
    """Source text to target text (Vaswani et al. 2017)."""

    samples: PairSamples

    samples_type = PairSamples
    prompt = "3 March 1987"

    @property
    def _settings(self) -> TranslationConfig:
        assert isinstance(self.config.objective, TranslationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one, one), {}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        smoothing = self._settings.label_smoothing if train else 0.0  # measured without
        sums = losses.translation(self.model, params, batch, rng=rng, label_smoothing=smoothing, train=train)
        return Loss(*sums)

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss sum (B) and the weight (B) of each row, without regularization."""
        return losses.translation_by_row(self.model, params, batch)

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per target token, without smoothing) and `val_accuracy`."""
        return super().scores(totals) | {"val_accuracy": totals["accuracy"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """Return `val_exact` (share of exact translations) and sacrebleu's `val_bleu` (0 to 100).

        The references are the complete targets of the records, whatever the context cuts from a batch.
        """
        import sacrebleu

        _, targets, outputs = zip(*self._translated(params, self._settings.scored), strict=True)
        exact = sum(output == target for output, target in zip(outputs, targets, strict=True)) / len(targets)
        return {"val_exact": exact, "val_bleu": sacrebleu.corpus_bleu(list(outputs), [list(targets)]).score}

    def notes(self) -> list[str]:
        """Return lines on references that are not original texts, or that no output can equal."""
        cut, total = self.samples.truncated()["validation_targets"], sum(map(len, self.samples.buckets.validation))
        context = self.config.model.context
        lossy = "val_exact, val_bleu: the references are decoded tokens; the tokenizer does not give the texts back"
        long = (
            f"val_exact, val_bleu: {cut:,} of {total:,} targets have more than model.context={context} "
            "tokens, which no output can equal"
        )
        return [lossy] * (not self.samples.store.lossless) + [long] * (cut > 0)

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model as text, for inspection."""
        translated = self._translated(params, SHOWN)
        return "\n".join(f"{source}\n  -> {output}\n  ({target})" for source, target, output in translated)

    def _translated(self, params: Any, most: int) -> Iterator[tuple[str, str, str]]:
        """Yield (source, target, translation) of validation records: `most` of them, or all if 0."""
        samples, texts = self.samples, self.samples.validation_texts()
        count = int(sum(map(len, samples.buckets.validation)))
        wanted = set(np.linspace(0, count - 1, min(most, count) or count).astype(int).tolist()) if most else None
        number, end = 0, samples.store.tokenizer.end_of_text or 0
        for batch in samples.validation():
            rows = [row for row in range(len(batch["source_BS"])) if batch["weights_BT"][row].any()]
            texts_of_rows = [next(texts) for _ in rows]
            if wanted is None or wanted & set(range(number, number + len(rows))):
                ids_BT = self._decode(params, batch["source_BS"], batch["source_mask_BS"], end)
                for row in rows:
                    if wanted is None or number + row in wanted:
                        yield *texts_of_rows[row], samples.decode(ids_BT[row])
            number += len(rows)

    def _decode(self, params: Any, source_BS: np.ndarray, mask_BS: np.ndarray, end: int) -> np.ndarray:
        settings = self._settings
        return translate(
            self.model,
            params,
            source_BS,
            mask_BS,
            begin=end,
            end=end,
            max_length=self.config.model.context,
            beams=settings.beam,
            length_penalty=settings.length_penalty,
        )

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Translate a prompt with `objective.beam` beams.

        Raises:
            UserError: The prompt is longer than `model.context`.
        """
        end = tokenizer.end_of_text or 0
        ids = [*tokenizer.encode(*self.samples.split_prompt(prompt)), end]
        if len(ids) > self.config.model.context:
            raise UserError(f"the prompt has {len(ids)} tokens, model.context is {self.config.model.context}")
        source_BS = np.asarray([ids], np.int32)
        output_T = self._decode(params, source_BS, np.ones(source_BS.shape, np.float32), end)[0]
        return tokenizer.decode(output_T[output_T != end])
