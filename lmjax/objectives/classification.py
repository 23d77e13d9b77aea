"""One label for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import ClassificationConfig, Config
from lmjax.data.batches import records
from lmjax.data.batches.buckets import lead_ids
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import NotFinite
from lmjax.models.classifier import Classifier
from lmjax.objectives import losses
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.record_samples import LabelledSamples

SHOWN = 5  # records of the sample


@dataclass(frozen=True, eq=False)
class Classification(Objective):
    """Prediction of the label of a text, or of a pair of texts.

    As in Devlin et al. 2019, section 4, and Radford et al. 2018, section 3.2.
    """

    samples: LabelledSamples

    samples_type = LabelledSamples

    @classmethod
    def model_of(cls, config: Config) -> Classifier:
        """Build the model of a resolved configuration, which names the labels."""
        assert isinstance(config.objective, ClassificationConfig)
        return Classifier(config.model, len(config.objective.labels))

    @classmethod
    def without_data(cls, config: Config) -> Self:
        """Build the objective without data; labels that only the data know are taken to be two."""
        assert isinstance(config.objective, ClassificationConfig)
        labels = config.objective.labels or ("first", "second")
        return super().without_data(replace(config, objective=replace(config.objective, labels=labels)))

    @property
    def _settings(self) -> ClassificationConfig:
        assert isinstance(self.config.objective, ClassificationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one,), {"kinds_BT": one, "real_BT": one}

    def logits(self, params: Any, batch: Mapping[str, Any], *, rng: Array | None = None, train: bool) -> Array:
        """Return the logits (B, C) of each row and label."""
        settings = {name: batch[name] for name in ("kinds_BT", "real_BT")}
        return losses.apply(self.model, params, batch["inputs_BT"], rng=rng, train=train, **settings)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        logits_BC, weights_B = self.logits(params, batch, rng=rng, train=train), batch["weights_B"]
        smoothing = self._settings.label_smoothing if train else 0.0
        loss, hits = losses.classified(logits_BC, batch["labels_B"], weights_B, label_smoothing=smoothing)
        return Loss(loss, jnp.sum(weights_B), {"accuracy": hits})

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss sum (B) and the weight (B) of each row, without regularization."""
        log_BC = jax.nn.log_softmax(self.logits(params, batch, train=False))
        target_B, weights_B = jnp.take_along_axis(log_BC, batch["labels_B"][:, None], axis=-1)[:, 0], batch["weights_B"]
        return -weights_B * target_B, weights_B

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[dict[str, Array], Any]:
        """Return sums over a validation microbatch, with counts for the F1 score.

        For each label c, `has_c` counts the rows with this label, `given_c` the rows predicted as c, and `both_c`
        the rows where label and prediction are c.
        """
        logits_BC, weights_B, labels_B = self.logits(params, batch, train=False), batch["weights_B"], batch["labels_B"]
        loss, hits = losses.classified(logits_BC, labels_B, weights_B)
        sums = {"loss": loss, "weight": jnp.sum(weights_B), "accuracy": hits}
        predicted_B = jnp.argmax(logits_BC, axis=-1)
        for label in range(logits_BC.shape[-1]):
            has_B, is_predicted_B = labels_B == label, predicted_B == label
            sums |= {
                f"has_{label}": jnp.sum(weights_B * has_B),
                f"given_{label}": jnp.sum(weights_B * is_predicted_B),
                f"both_{label}": jnp.sum(weights_B * (has_B & is_predicted_B)),
            }
        return sums, carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per record), `val_accuracy` and `val_f1`.

        `val_f1` is the mean over labels of 2 both / (has + given).
        """
        f1 = [
            2 * totals[f"both_{label}"] / max(totals[f"has_{label}"] + totals[f"given_{label}"], 1)
            for label in range(len(self._settings.labels))
        ]
        accuracy = totals["accuracy"] / totals["weight"]
        return super().scores(totals) | {"val_accuracy": accuracy, "val_f1": float(np.mean(f1))}

    def baselines(self) -> dict[str, float]:
        """Return the accuracy of always predicting the most frequent training label."""
        train, held = (np.asarray(self.samples.store.streams[f"{side}-label"].ids) for side in ("train", "validation"))
        most = np.bincount(train).argmax()
        return {"most_frequent_label_accuracy": float(np.mean(held == most))}

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model as text, for inspection."""
        batch = next(iter(self.samples.validation()))
        names = self._settings.labels
        logits_BC = jax.jit(partial(self.logits, train=False))(params, batch)
        predicted_B = np.asarray(jnp.argmax(logits_BC, axis=-1))[:SHOWN]
        lines = []
        for row, predicted in enumerate(predicted_B.tolist()):
            label = names[int(batch["labels_B"][row])]
            verdict = names[predicted] if names[predicted] == label else f"{names[predicted]} (is {label})"
            lines.append(f"{verdict}: {self.samples.text(batch, row)}")
        return "\n".join(lines)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the probability of each label, highest first.

        The prompt is prepared as a record is in training. A tab separates the two texts of a pair.

        Raises:
            NotFinite: The logits are not finite.
        """
        texts, context = self.samples.split_prompt(prompt), self.config.model.context
        batch = records.row(tokenizer, texts, context=context)
        chances_C = np.asarray(jax.nn.softmax(self.logits(params, batch, train=False)[0]))
        if not np.isfinite(chances_C).all():
            raise NotFinite()
        order = np.argsort(-chances_C).tolist()
        lines = [f"{chances_C[i]:6.1%}  {self._settings.labels[i]}" for i in order]
        size = sum(map(len, tokenizer.encode_batch(texts))) + len(lead_ids(tokenizer)) + len(texts)
        if size > context:
            lines.append(f"cut: with its marks the text has {size:,} tokens, the model reads {context:,}")
        return "\n".join(lines)
