"""Interface between a run and its samples: the data side of an objective.

Shapes: B rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from lmjax.config import Config
from lmjax.data.order.order import Order
from lmjax.data.store.facts import notes, store_facts
from lmjax.data.store.store import Store

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Samples(ABC):
    """Samples of a resolved configuration: order, arrays, validation split, documents.

    All methods are pure functions of the prepared data and the seed. A subclass needs `build`, `arrays`, `blank`,
    `validation` and `row_text`.
    """

    config: Config
    store: Store
    #: Maps positions to samples.
    order: Order

    #: Whether a row of `arrays` is independent of the other rows, so that each process can build its own rows.
    rows_independent: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the samples of a resolved configuration and its prepared data.

        Raises:
            UserError: The settings contradict each other or the data.
        """

    @classmethod
    def without_data(cls, config: Config) -> Self:
        """Build samples without data, of which only `blank` works."""
        nothing: Any = None
        return cls(config, nothing, nothing)

    # ---- Batches -----------------------------------------------------------------------------------------------

    @abstractmethod
    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""

    @abstractmethod
    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`.

        Reads no data. Records have the length of the context.
        """

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""

    def by_source(self, number: int, rows: Batch) -> dict[str, Batch]:
        """Return validation batch `number` once for each source of a mixture that it has.

        The key is the source's label. A batch has only the weights of that source; if all weights are of one source, it
        is `rows` itself.
        """
        return {}

    def mixture(self, samples: int) -> dict[str, float]:
        """Return the share of each source in the training after this number of samples.

        The key is the source's label.
        """
        return {}

    def share(self, rows: Batch) -> float:
        """Return the share of a full-length sample's tokens that these rows have places for."""
        return 1.0

    def example(self) -> str:
        """Return a prompt from the validation data; empty if there is none."""
        return ""

    # ---- The data as a set -------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of training tokens in an epoch."""
        return sum(len(tokens.ids) for tokens in self.store.sources)

    def epochs(self, samples: int) -> dict[str, float]:
        """Return the epochs of each source of a mixture in `samples`; empty without one."""
        return {}

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        store = self.store
        tokens = f"{self.epoch:,} for training, {len(store.validation.ids):,} for validation"
        return [f"tokens: {tokens}, {store.tokenizer.vocab_size:,} in the vocabulary", *notes(store)]

    def lost(self) -> dict[str, Any]:
        """Return what the tokenizer and the context lose of the data, as fields of summary.json.

        `lossless` says whether decoding returns the text (null: unknown), `truncated` counts the texts that the
        context cuts; `store_facts` has the others.
        """
        return store_facts(self.store) | {"lossless": self.store.lossless, "truncated": self.truncated()}

    def truncated(self) -> dict[str, int]:
        """Return the number of texts that do not fit into the context, by side and kind."""
        return {}

    # ---- Texts and documents, for reports ----------------------------------------------------------------------

    @abstractmethod
    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""

    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads.

        Documents are counted from 0 in the training split.
        """
        return []

    def place(self, sample: int) -> str:
        """Describe the documents of a sample."""
        return f"sample {sample}"

    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""
        return ""

    def source_name(self, source: int) -> str:
        """Return the name of a source in the store."""
        return self.store.manifest["sources"][source]["name"]
