"""One label for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import ClassificationConfig, Config
from lmjax.data.batches import records
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models.classifier import Classifier
from lmjax.objectives import losses
from lmjax.objectives.objective import Batch, Loss
from lmjax.objectives.pairs import SHOWN, RecordsObjective


@dataclass(frozen=True, eq=False)
class Classification(RecordsObjective):
    """A text, or a pair of texts, to its label (Devlin et al. 2019, section 4; Radford et al. 2018, section 3.2)."""

    @classmethod
    def build(cls, config: Config, store: Store) -> "Classification":
        """Build the objective from a resolved configuration and its prepared data."""
        order, plan = cls._parts(config, store)
        return cls(config, store, cls.model_of(config), order, plan)

    @classmethod
    def model_of(cls, config: Config) -> Classifier:
        """Build the model of a resolved configuration, which names the labels."""
        assert isinstance(config.objective, ClassificationConfig)
        return Classifier(config.model, len(config.objective.labels))

    @property
    def _objective(self) -> ClassificationConfig:
        assert isinstance(self.config.objective, ClassificationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one,), {"kinds_BT": one, "real_BT": one}

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return records.labelled(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape = rows, self.config.model.context
        whole = {name: np.zeros(shape, np.int32) for name in ("inputs_BT", "kinds_BT")}
        each = {"labels_B": np.zeros(rows, np.int32), "weights_B": np.zeros(rows, np.float32)}
        return whole | each | {"real_BT": np.zeros(shape, np.float32)}

    def logits(self, params: Any, batch: Mapping[str, Any], *, rng: Array | None = None, train: bool) -> Array:
        """Return the logits (B, C) of each row and label."""
        settings = {name: batch[name] for name in ("kinds_BT", "real_BT")}
        return losses.apply(self.model, params, batch["inputs_BT"], rng=rng, train=train, **settings)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        logits_BC, weights_B = self.logits(params, batch, rng=rng, train=train), batch["weights_B"]
        smoothing = self._objective.label_smoothing if train else 0.0
        loss, hits = losses.classified(logits_BC, batch["labels_B"], weights_B, label_smoothing=smoothing)
        return Loss(loss, jnp.sum(weights_B), {"accuracy": hits})

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss sum (B) and the weight (B) of each row, without regularisation."""
        log_BC = jax.nn.log_softmax(self.logits(params, batch, train=False))
        target_B, weights_B = jnp.take_along_axis(log_BC, batch["labels_B"][:, None], axis=-1)[:, 0], batch["weights_B"]
        return -weights_B * target_B, weights_B

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[dict[str, Array], Any]:
        """Return sums over a validation microbatch, with counts for the F1 score.

        For each label c: `has_c` counts the rows with this label, `given_c` the rows predicted as c, and `both_c`
        the rows where label and prediction are c.
        """
        logits_BC, weights_B, labels_B = self.logits(params, batch, train=False), batch["weights_B"], batch["labels_B"]
        loss, hits = losses.classified(logits_BC, labels_B, weights_B)
        sums = {"loss": loss, "weight": jnp.sum(weights_B), "accuracy": hits}
        given_B = jnp.argmax(logits_BC, axis=-1)
        for label in range(logits_BC.shape[-1]):
            has_B, is_given_B = labels_B == label, given_B == label
            sums |= {
                f"has_{label}": jnp.sum(weights_B * has_B),
                f"given_{label}": jnp.sum(weights_B * is_given_B),
                f"both_{label}": jnp.sum(weights_B * (has_B & is_given_B)),
            }
        return sums, carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per record), `val_accuracy` and `val_f1`.

        `val_f1` is the mean over labels of 2 both / (has + given).
        """
        f1 = [
            2 * totals[f"both_{label}"] / max(totals[f"has_{label}"] + totals[f"given_{label}"], 1)
            for label in range(len(self._objective.labels))
        ]
        accuracy = totals["accuracy"] / totals["weight"]
        return super().scores(totals) | {"val_accuracy": accuracy, "val_f1": float(np.mean(f1))}

    def baselines(self) -> dict[str, float]:
        """Return the accuracy of always predicting the most frequent training label."""
        train, held = (np.asarray(self.store.streams[f"{side}-label"].ids) for side in ("train", "validation"))
        most = np.bincount(train).argmax()
        return {"most_frequent_label_accuracy": float(np.mean(held == most))}

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model as text, for inspection."""
        batch = next(iter(self.validation()))
        names = self._objective.labels
        logits_BC = jax.jit(partial(self.logits, train=False))(params, batch)
        given_B = np.asarray(jnp.argmax(logits_BC, axis=-1))[:SHOWN]
        lines = []
        for row, given in enumerate(given_B.tolist()):
            label = names[int(batch["labels_B"][row])]
            verdict = names[given] if names[given] == label else f"{names[given]} (is {label})"
            lines.append(f"{verdict}: {self._row(batch, row)}")
        return "\n".join(lines)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """The chance of each label, highest first; a tab parts the two texts of a pair."""
        texts = (prompt.lower() if self._lowercase else prompt).split("\t")
        batch = records.row(tokenizer, texts, context=self.config.model.context)
        chances_C = np.asarray(jax.nn.softmax(self.logits(params, batch, train=False)[0]))
        order = np.argsort(-chances_C).tolist()
        return "\n".join(f"{chances_C[i]:6.1%}  {self._objective.labels[i]}" for i in order)

    def row_text(self, rows: Batch, row: int) -> str:
        """Return a row of a batch as text."""
        return f"{self._objective.labels[int(rows['labels_B'][row])]}: {self._row(rows, row)}"

    def _row(self, rows: Batch, row: int) -> str:
        return self.store.tokenizer.decode(rows["inputs_BT"][row][rows["real_BT"][row] > 0])
