"""What every task has: the interface between a run and what it learns."""

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
    """Sums over a batch: of the loss, of its weights, and further ones; `carry` is what a recurrent model goes on
    with (None: nothing)."""

    loss: Array
    weight: Array
    sums: Sums
    carry: Any = None


@dataclass(frozen=True, eq=False)
class Objective(ABC):
    """What a run learns, of a resolved configuration: pure functions of the prepared data, the seed and the parameters.

    model: a Linen module whose `init` takes the arrays of `example()`. order: which sample stands at which position.
    """

    config: Config
    store: Store
    model: nn.Module
    order: Order

    apart: ClassVar[bool] = True  # a row of `arrays` does not depend on the others: some can be made without the rest

    # ---- Training ----------------------------------------------------------------------------------------------

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Arrays, and named ones, that the model can be called with."""
        return (jnp.zeros((1, 1), jnp.int32),), {}

    @abstractmethod
    def arrays(self, ids: np.ndarray) -> Batch:
        """The rows (B, ...) of these samples."""

    @abstractmethod
    def blank(self, rows: int) -> Batch:
        """Rows of zeros, shaped and typed as those of `arrays`; reads no data. Records are as long as the context."""

    def share(self, rows: Batch) -> float:
        """The share of a whole sample's tokens that these rows have places for."""
        return 1.0

    @abstractmethod
    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """The loss of a batch, its weights and further sums, to be divided by the weight."""

    @abstractmethod
    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Loss sums (B) and weights (B) of each row, without dropout and regularisation."""

    def begin(self, rows: tuple[int, ...]) -> Any:
        """What the rows of the first batch go on with: a tree of arrays (*rows, ...); None: nothing."""
        return None

    # ---- Measuring ---------------------------------------------------------------------------------------------

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """The whole validation split as microbatches."""

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[Sums, Any]:
        """Sums over a microbatch of the validation split, for `scores`, and the next carry."""
        found = self.loss(params, batch, carry=carry, train=False)
        return {"loss": found.loss, "weight": found.weight, **found.sums}, found.carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The metrics of sums over the split, named `val_...`; `val_loss` is in nats per predicted token or row."""
        return {"val_loss": totals["loss"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """What is measured once, at the end: scores that take decoding, named `val_...`."""
        return {}

    def baselines(self) -> dict[str, float]:
        """What simple means reach on the same split, by the metric's name."""
        return {}

    def sample(self, params: Any) -> str:
        """What the model makes of something, to look at."""
        return ""

    @property
    def epoch(self) -> int:
        """The tokens that an epoch counts for."""
        return sum(len(tokens.ids) for tokens in self.store.sources)

    def describe(self) -> list[str]:
        """What there is to read, a line each."""
        store = self.store
        tokens = f"{self.epoch:,} for training, {len(store.validation.ids):,} for validation"
        return [f"tokens: {tokens}, {store.tokenizer.vocab_size:,} in the vocabulary"]

    # ---- Using -------------------------------------------------------------------------------------------------

    prompt: ClassVar[str] = "Return the"  # an example for `answer`

    @abstractmethod
    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """What the trained model makes of a text; reads no data. `settings` are those of `generate`."""

    # ---- Where samples come from -------------------------------------------------------------------------------

    @abstractmethod
    def row_text(self, rows: Batch, row: int) -> str:
        """A row as it was computed with, as text."""

    @abstractmethod
    def documents_of(self, sample: int) -> list[tuple[int, int]]:
        """(source, document) of every document that a sample reads, counted from 0 in the training split."""

    @abstractmethod
    def place(self, sample: int) -> str:
        """The documents of a sample in words."""

    @abstractmethod
    def beginning(self, source: int, document: int, count: int) -> str:
        """The first `count` tokens of a document as text."""

    def source_name(self, source: int) -> str:
        """What the store calls a source."""
        return self.store.manifest["sources"][source]["name"]
