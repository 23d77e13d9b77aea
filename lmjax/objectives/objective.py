"""Interface between a run and its objective."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from lmjax.config import Config
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
Sums = dict[str, Array]


class Loss(NamedTuple):
    """Sums over a batch, and the carry for the next batch."""

    #: Sum of the loss.
    loss: Array
    #: Sum of the weights.
    weight: Array
    #: Further sums, by metric name.
    sums: Sums
    #: State with which a recurrent model starts the next batch, or None.
    carry: Any = None


@dataclass(frozen=True, eq=False)
class Objective(ABC):
    """Training objective of a resolved configuration.

    All methods are pure functions of the prepared data, the seed and the parameters.
    """

    config: Config
    store: Store
    #: Linen module whose `init` takes the arrays of `example()`.
    model: nn.Module
    #: Maps positions to samples.
    order: Order

    #: Whether a row of `arrays` is independent of the other rows, so that each process can build its own rows.
    apart: ClassVar[bool] = True

    # ---- Training ----------------------------------------------------------------------------------------------

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        return (jnp.zeros((1, 1), jnp.int32),), {}

    @abstractmethod
    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""

    @abstractmethod
    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`.

        Reads no data. Records have the length of the context.
        """

    def share(self, rows: Batch) -> float:
        """Return the share of a full-length sample's tokens that these rows have places for."""
        return 1.0

    @abstractmethod
    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the sums of a batch: loss, weight, and further sums to divide by the weight."""

    @abstractmethod
    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return loss sums (B) and weights (B) per row, without dropout and regularisation."""

    def begin(self, rows: tuple[int, ...]) -> Any:
        """Return the carry of the first batch: a tree of arrays (*rows, ...), or None."""
        return None

    # ---- Measuring ---------------------------------------------------------------------------------------------

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[Sums, Any]:
        """Return sums over a validation microbatch, for `scores`, and the next carry."""
        found = self.loss(params, batch, carry=carry, train=False)
        return {"loss": found.loss, "weight": found.weight, **found.sums}, found.carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return metrics named `val_...` from the sums over the split.

        `val_loss` is in nats per predicted token or row.
        """
        return {"val_loss": totals["loss"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """Return scores that need decoding, named `val_...`; called once, at the end of a run."""
        return {}

    def baselines(self) -> dict[str, float]:
        """Return the scores of simple baselines on the validation split, by metric name."""
        return {}

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model, for inspection."""
        return ""

    @property
    def epoch(self) -> int:
        """Number of training tokens in an epoch."""
        return sum(len(tokens.ids) for tokens in self.store.sources)

    def describe(self) -> list[str]:
        """Describe the prepared data, one line per fact."""
        store = self.store
        tokens = f"{self.epoch:,} for training, {len(store.validation.ids):,} for validation"
        return [f"tokens: {tokens}, {store.tokenizer.vocab_size:,} in the vocabulary"]

    # ---- Using -------------------------------------------------------------------------------------------------

    prompt: ClassVar[str] = "Return the"  # an example for `answer`

    @abstractmethod
    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the output of the trained model for a prompt; reads no training data.

        Args:
            params: Parameters of the model.
            prompt: Input text.
            tokenizer: Tokenizer of the run.
            **settings: Sampling settings, as for `generate`.
        """

    # ---- Where samples come from -------------------------------------------------------------------------------

    @abstractmethod
    def row_text(self, rows: Batch, row: int) -> str:
        """Decode a row of a batch to text."""

    @abstractmethod
    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """Return (source, document) of every document that a sample reads.

        Documents are counted from 0 in the training split.
        """

    @abstractmethod
    def place(self, sample: int) -> str:
        """Describe the documents of a sample."""

    @abstractmethod
    def beginning(self, source: int, document: int, count: int) -> str:
        """Return the first `count` tokens of a document as text."""

    def source_name(self, source: int) -> str:
        """Return the name of a source in the store."""
        return self.store.manifest["sources"][source]["name"]
