"""Tasks that read records: translating one text into another, and telling the label of a text or of two.

Shapes: B rows, S positions of a source, T positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax import objectives
from lmjax.beam import translate
from lmjax.config import ClassificationConfig, Config, RecordsConfig, TranslationConfig, UserError
from lmjax.data import records
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models import families
from lmjax.models.classifier import Classifier
from lmjax.optim import batch_plan
from lmjax.tasks.task import Batch, Loss, Task

SHOWN = 5  # records of the sample


@dataclass(frozen=True, eq=False)
class RecordsTask(Task):
    """Samples are records, in classes of length; a batch is of one class where no data are left out."""

    buckets: Any = None  # records.Buckets
    apart = False  # all rows of a batch are as long as the longest needs

    @classmethod
    def _parts(cls, config: Config, store: Store) -> tuple[Any, Any]:
        data, context = config.data, config.model.context
        assert isinstance(data, RecordsConfig)
        plan = records.buckets(store, classes=data.buckets, context=context)
        sizes = batch_plan(config.batch, config.train, families.tokens(config.model)).sequences
        return records.order(plan, data, seed=config.seed, group=int(np.gcd.reduce(sizes))), plan

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        return [(0, self._record(sample))]

    def place(self, sample: int) -> str:
        return f"record {self._record(sample)}"

    def beginning(self, source: int, document: int, count: int) -> str:
        return " | ".join(text[: 2 * count] for text in records.text_of(self.store, "train", document))

    def source_name(self, source: int) -> str:
        return self.store.manifest["sources"][0]["name"]

    @property
    def epoch(self) -> int:
        return sum(map(len, self.buckets.members)) * families.tokens(self.config.model)

    def share(self, rows: Batch) -> float:
        places = sum(rows[name].shape[1] for name in ("source_BS", "inputs_BT") if name in rows)
        return places / families.tokens(self.config.model)

    def describe(self) -> list[str]:
        return records.describe(self.store, plan=self.buckets)

    def validation(self) -> Iterator[Batch]:
        return records.validation(self.store, plan=self.buckets, microbatch=self.config.batch.microbatch)

    @property
    def _lowercase(self) -> bool:
        assert isinstance(self.config.data, RecordsConfig)
        return self.config.data.lowercase

    def _record(self, sample: int) -> int:
        return int(self.buckets.find(np.asarray([sample]), self.order)[1][0])


@dataclass(frozen=True, eq=False)
class Translation(RecordsTask):
    """Source text to target text (Vaswani et al. 2017)."""

    prompt = "3 March 1987"

    @classmethod
    def build(cls, config: Config, store: Store) -> "Translation":
        order, plan = cls._parts(config, store)
        return cls(config, store, families.build(config.model), order, plan)

    @property
    def _objective(self) -> TranslationConfig:
        assert isinstance(self.config.objective, TranslationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        one = jnp.zeros((1, 1), jnp.int32)
        return (one, one), {}

    def arrays(self, ids: np.ndarray) -> Batch:
        return records.pairs(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        shape, kinds = (rows, self.config.model.context), {"source_mask_BS": np.float32, "weights_BT": np.float32}
        names = ("source_BS", "source_mask_BS", "inputs_BT", "targets_BT", "weights_BT")
        return {name: np.zeros(shape, kinds.get(name, np.int32)) for name in names}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        smoothing = self._objective.label_smoothing if train else 0.0  # measured without
        found = objectives.translation(self.model, params, batch, rng=rng, label_smoothing=smoothing, train=train)
        return Loss(*found)

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        return objectives.translation_by_row(self.model, params, batch)

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """`val_loss` in nats per target token, without smoothing, and the share of tokens that are told right."""
        return super().scores(totals) | {"val_accuracy": totals["accuracy"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """`val_exact`: the share of pairs translated exactly; `val_bleu` (sacrebleu's, 0 to 100)."""
        import sacrebleu

        found = list(self._translated(params, self._objective.scored))
        exact = sum(made == target for _, target, made in found) / len(found)
        made, targets = [made for *_, made in found], [target for _, target, _ in found]
        return {"val_exact": exact, "val_bleu": sacrebleu.corpus_bleu(made, [targets]).score}

    def sample(self, params: Any) -> str:
        lines = [f"{source}\n  -> {made}\n  ({target})" for source, target, made in self._translated(params, SHOWN)]
        return "\n".join(lines)

    def row_text(self, rows: Batch, row: int) -> str:
        source = rows["source_BS"][row][rows["source_mask_BS"][row] > 0]
        target = rows["targets_BT"][row][rows["weights_BT"][row] > 0]
        return " -> ".join(self._text(ids) for ids in (source, target))

    def _translated(self, params: Any, most: int) -> Iterator[tuple[str, str, str]]:
        """(source, target, what the model makes of it) of the validation split's records, evenly spread if `most`."""
        count = int(sum(map(len, self.buckets.validation)))
        wanted = set(np.linspace(0, count - 1, min(most, count) or count).astype(int).tolist()) if most else None
        number, end = 0, self.store.tokenizer.end_of_text or 0
        for batch in self.validation():
            rows = [row for row in range(len(batch["source_BS"])) if batch["weights_BT"][row].any()]
            if wanted is None or wanted & set(range(number, number + len(rows))):
                ids_BT = self._decode(params, batch["source_BS"], batch["source_mask_BS"], end)
                for row in rows:
                    if wanted is None or number + row in wanted:
                        target = batch["targets_BT"][row][batch["weights_BT"][row] > 0]
                        source = batch["source_BS"][row][batch["source_mask_BS"][row] > 0]
                        yield self._text(source), self._text(target), self._text(ids_BT[row])
            number += len(rows)

    def _decode(self, params: Any, source_BS: np.ndarray, mask_BS: np.ndarray, end: int) -> np.ndarray:
        objective = self._objective
        return translate(
            self.model,
            params,
            source_BS,
            mask_BS,
            begin=end,
            end=end,
            max_length=self.config.model.context,
            beams=objective.beam,
            length_penalty=objective.length_penalty,
        )

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """The prompt, translated as `objective.beam` says. UserError: it is too long."""
        end, text = tokenizer.end_of_text or 0, prompt.lower() if self._lowercase else prompt
        ids = [*tokenizer.encode(text), end]
        if len(ids) > self.config.model.context:
            raise UserError(f"the prompt has {len(ids)} tokens, model.context is {self.config.model.context}")
        source_BS = np.asarray([ids], np.int32)
        made_T = self._decode(params, source_BS, np.ones(source_BS.shape, np.float32), end)[0]
        return tokenizer.decode(made_T[made_T != end])

    def _text(self, ids: np.ndarray) -> str:
        return self.store.tokenizer.decode(ids[ids != self.store.tokenizer.end_of_text])


@dataclass(frozen=True, eq=False)
class Classification(RecordsTask):
    """A text, or a pair of texts, to its label (Devlin et al. 2019, section 4; Radford et al. 2018, section 3.2)."""

    @classmethod
    def build(cls, config: Config, store: Store) -> "Classification":
        order, plan = cls._parts(config, store)
        return cls(config, store, cls.model_of(config), order, plan)

    @classmethod
    def model_of(cls, config: Config) -> Classifier:
        """The model of a resolved configuration, which names the labels."""
        assert isinstance(config.objective, ClassificationConfig)
        return Classifier(config.model, len(config.objective.labels))

    @property
    def _objective(self) -> ClassificationConfig:
        assert isinstance(self.config.objective, ClassificationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        one = jnp.zeros((1, 1), jnp.int32)
        return (one,), {"kinds_BT": one, "real_BT": one}

    def arrays(self, ids: np.ndarray) -> Batch:
        return records.labelled(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        shape = rows, self.config.model.context
        whole = {name: np.zeros(shape, np.int32) for name in ("inputs_BT", "kinds_BT")}
        each = {"labels_B": np.zeros(rows, np.int32), "weights_B": np.zeros(rows, np.float32)}
        return whole | each | {"real_BT": np.zeros(shape, np.float32)}

    def logits(self, params: Any, batch: Mapping[str, Any], *, rng: Array | None = None, train: bool) -> Array:
        """Of each row, for each label (B, C)."""
        settings = {name: batch[name] for name in ("kinds_BT", "real_BT")}
        return objectives.apply(self.model, params, batch["inputs_BT"], rng=rng, train=train, **settings)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        logits_BC, weights_B = self.logits(params, batch, rng=rng, train=train), batch["weights_B"]
        smoothing = self._objective.label_smoothing if train else 0.0
        loss, hits = objectives.classified(logits_BC, batch["labels_B"], weights_B, label_smoothing=smoothing)
        return Loss(loss, jnp.sum(weights_B), {"accuracy": hits})

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        log_BC = jax.nn.log_softmax(self.logits(params, batch, train=False))
        target_B, weights_B = jnp.take_along_axis(log_BC, batch["labels_B"][:, None], axis=-1)[:, 0], batch["weights_B"]
        return -weights_B * target_B, weights_B

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[dict[str, Array], Any]:
        """Also, for each label c, how many rows have it (`has_c`), are given it (`given_c`), and both (`both_c`)."""
        logits_BC, weights_B, labels_B = self.logits(params, batch, train=False), batch["weights_B"], batch["labels_B"]
        loss, hits = objectives.classified(logits_BC, labels_B, weights_B)
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
        """`val_loss` in nats a record, `val_accuracy`, `val_f1`: the mean over labels of 2 both / (has + given)."""
        f1 = [
            2 * totals[f"both_{label}"] / max(totals[f"has_{label}"] + totals[f"given_{label}"], 1)
            for label in range(len(self._objective.labels))
        ]
        accuracy = totals["accuracy"] / totals["weight"]
        return super().scores(totals) | {"val_accuracy": accuracy, "val_f1": float(np.mean(f1))}

    def baselines(self) -> dict[str, float]:
        """How often the most frequent label of the training records is right."""
        train, held = (np.asarray(self.store.streams[f"{side}-label"].ids) for side in ("train", "validation"))
        most = np.bincount(train).argmax()
        return {"most_frequent_label_accuracy": float(np.mean(held == most))}

    def sample(self, params: Any) -> str:
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
        return f"{self._objective.labels[int(rows['labels_B'][row])]}: {self._row(rows, row)}"

    def _row(self, rows: Batch, row: int) -> str:
        return self.store.tokenizer.decode(rows["inputs_BT"][row][rows["real_BT"][row] > 0])
