"""Tasks that read records: translating one text into another, and telling the label of a text or of two.

Shapes: B rows, S positions of a source, T positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import Config, RecordsConfig
from lmjax.data.batches import records
from lmjax.data.batches.buckets import bucket_order, make_buckets
from lmjax.data.store.store import Store
from lmjax.models import registry
from lmjax.objectives.objective import Batch, Objective
from lmjax.optim.batch_plan import batch_plan

SHOWN = 5  # records of the sample


@dataclass(frozen=True, eq=False)
class RecordsObjective(Objective):
    """Samples are records, in classes of length; a batch is of one class where no data are left out."""

    buckets: Any = None  # records.Buckets
    apart = False  # all rows of a batch are as long as the longest needs

    @classmethod
    def _parts(cls, config: Config, store: Store) -> tuple[Any, Any]:
        data, context = config.data, config.model.context
        assert isinstance(data, RecordsConfig)
        plan = make_buckets(store, classes=data.buckets, context=context)
        sizes = batch_plan(config.batch, config.train, registry.tokens(config.model)).sequences
        return bucket_order(plan, data, seed=config.seed, group=int(np.gcd.reduce(sizes))), plan

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads."""
        return [(0, self._record(sample))]

    def place(self, sample: int) -> str:
        """Describe the documents of a sample in words."""
        return f"record {self._record(sample)}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        return " | ".join(text[: 2 * count] for text in records.text_of(self.store, "train", document))

    def source_name(self, source: int) -> str:
        """Return the name of the only source."""
        return self.store.manifest["sources"][0]["name"]

    @property
    def epoch(self) -> int:
        """Number of tokens in one epoch."""
        return sum(map(len, self.buckets.members)) * registry.tokens(self.config.model)

    def share(self, rows: Batch) -> float:
        """Return the share of a full-length sample's tokens that these rows have places for."""
        places = sum(rows[name].shape[1] for name in ("source_BS", "inputs_BT") if name in rows)
        return places / registry.tokens(self.config.model)

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        return records.describe(self.store, plan=self.buckets)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        return records.validation(self.store, plan=self.buckets, microbatch=self.config.batch.microbatch)

    @property
    def _lowercase(self) -> bool:
        assert isinstance(self.config.data, RecordsConfig)
        return self.config.data.lowercase

    def _record(self, sample: int) -> int:
        return int(self.buckets.find(np.asarray([sample]), self.order)[1][0])
