"""Samples that are records: pairs of texts, or texts with a label.

Shapes: B rows, S positions of a source, T positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from lmjax.config import Config, RecordsConfig, UserError
from lmjax.data.batches import records
from lmjax.data.batches.buckets import bucket_order, lead_ids, make_buckets, text_streams
from lmjax.data.sources.rows import clean
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.store import Store
from lmjax.models import registry
from lmjax.objectives.samples import Batch, Samples
from lmjax.optim.batch_plan import batch_plan


@dataclass(frozen=True, eq=False)
class RecordSamples(Samples):
    """Records in classes of length.

    Without excluded data, all rows of a batch have the same class.
    """

    #: `lmjax.data.batches.buckets.Buckets`: the classes of length.
    buckets: Any = None

    rows_independent = False  # all rows of a batch are as long as the longest needs

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data."""
        data, context = config.data, config.model.context
        assert isinstance(data, RecordsConfig)
        buckets = make_buckets(store, classes=data.buckets, context=context)
        sizes = batch_plan(config.batch, config.train, registry.tokens(config.model)).sequences
        order = bucket_order(buckets, data, seed=config.seed, group=int(np.gcd.reduce(sizes)))
        return cls(config, store, order, buckets)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        return records.validation(self.store, plan=self.buckets, microbatch=self.config.batch.microbatch)

    def share(self, rows: Batch) -> float:
        """Return the share of a full-length sample's tokens that these rows have places for."""
        places = sum(rows[name].shape[1] for name in ("source_BS", "inputs_BT") if name in rows)
        return places / registry.tokens(self.config.model)

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch."""
        return sum(map(len, self.buckets.members)) * registry.tokens(self.config.model)

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        return records.describe(self.store, plan=self.buckets)

    #: Names of what the context can cut, for counts.
    _kinds: ClassVar[tuple[str, ...]] = ("texts",)

    def truncated(self) -> dict[str, int]:
        """Return the number of texts that do not fit into the context, by side and kind."""
        return {
            f"{side}_{kind}": count
            for side in SIDES
            for kind, count in zip(self._kinds, self._truncated(side), strict=True)
        }

    def _truncated(self, side: Side) -> list[int]:
        sizes = sum(self._sizes(side)) + len(lead_ids(self.store.tokenizer)) + len(text_streams(self.store, side))
        return [int(np.count_nonzero(sizes > self.config.model.context))]

    def _sizes(self, side: Side) -> list[np.ndarray]:
        """Return the number of tokens of each text, by column."""
        return [np.diff(tokens.starts, append=len(tokens.ids)) for tokens in text_streams(self.store, side)]

    def split_prompt(self, prompt: str) -> list[str]:
        """Return the texts of a prompt, prepared as those of a record in training. Reads no data.

        A tab separates two texts if records have two and the prompt contains both.

        Raises:
            UserError: The prompt has another number of texts, or an empty text.
        """
        data, count = self.config.data, self.texts_in_prompt
        assert isinstance(data, RecordsConfig)
        texts = prompt.split("\t") if count > 1 else [prompt]
        if len(texts) != count:
            raise UserError(
                f"the prompt has {len(texts) - 1} tabs, but this run was trained on pairs of texts: give two texts "
                "with one tab between them"
            )
        texts = [clean(text, lowercase=data.lowercase) for text in texts]
        if not all(texts):
            raise UserError("the prompt has an empty text; training left out such records, so give it some text")
        return texts

    @property
    def texts_in_prompt(self) -> int:
        """Number of texts that a prompt has."""
        return 1

    def example(self) -> str:
        """Return the texts of a validation record that a prompt has."""
        texts = records.text_of(self.store, "validation", int(np.concatenate(self.buckets.validation)[0]))
        return "\t".join(" ".join(text.split()) for text in list(texts)[: self.texts_in_prompt])

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads."""
        return [(0, self._record(sample))]

    def place(self, sample: int) -> str:
        """Describe the documents of a sample."""
        return f"record {self._record(sample)}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        return " | ".join(text[: 2 * count] for text in records.text_of(self.store, "train", document))

    def source_name(self, source: int) -> str:
        """Return the name of the only source."""
        return self.store.manifest["sources"][0]["name"]

    def _record(self, sample: int) -> int:
        return int(self.buckets.find(np.asarray([sample]), self.order)[1][0])


@dataclass(frozen=True, eq=False)
class PairSamples(RecordSamples):
    """Pairs of a source text and a target text."""

    _kinds = ("sources", "targets")

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return records.pairs(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape, kinds = (rows, self.config.model.context), {"source_mask_BS": np.float32, "weights_BT": np.float32}
        names = ("source_BS", "source_mask_BS", "inputs_BT", "targets_BT", "weights_BT")
        return {name: np.zeros(shape, kinds.get(name, np.int32)) for name in names}

    def validation_texts(self) -> Iterator[tuple[str, str]]:
        """Yield complete source and target of the validation records, in order of `validation`.

        A row of a batch may have less of them: the context cuts it.
        """
        for record in np.concatenate(self.buckets.validation).tolist():
            source, target = records.text_of(self.store, "validation", record)
            yield source, target

    def _truncated(self, side: Side) -> list[int]:
        context, (sources, targets) = self.config.model.context, self._sizes(side)
        return [int(np.count_nonzero(sources + 1 > context)), int(np.count_nonzero(targets > context))]

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""
        source = rows["source_BS"][row][rows["source_mask_BS"][row] > 0]
        target = rows["targets_BT"][row][rows["weights_BT"][row] > 0]
        return f"{self.decode(source)} -> {self.decode(target)}"

    def decode(self, ids: np.ndarray) -> str:
        """Decode tokens without the marks of the end."""
        return self.store.tokenizer.decode(ids[ids != self.store.tokenizer.end_of_text])


@dataclass(frozen=True, eq=False)
class LabelledSamples(RecordSamples):
    """A text, or a pair of texts, with a label."""

    @property
    def texts_in_prompt(self) -> int:
        """Number of texts that a prompt has: that of a record."""
        assert isinstance(self.config.data, RecordsConfig)
        return len(self.config.data.texts)

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return records.labelled(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape = rows, self.config.model.context
        integers = {name: np.zeros(shape, np.int32) for name in ("inputs_BT", "kinds_BT")}
        labels = {"labels_B": np.zeros(rows, np.int32), "weights_B": np.zeros(rows, np.float32)}
        return integers | labels | {"real_BT": np.zeros(shape, np.float32)}

    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to its label and its text."""
        return f"{records.labels(self.store)[int(rows['labels_B'][row])]}: {self.text(rows, row)}"

    def text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to its text."""
        return self.store.tokenizer.decode(rows["inputs_BT"][row][rows["real_BT"][row] > 0])
