"""Next-token prediction with a recurrent state that is carried from window to window."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import Config, RNNConfig, UserError
from lmjax.data.batches.windows import validation_windows, window_start
from lmjax.data.store.store import Store
from lmjax.models import registry, rnn
from lmjax.objectives import losses
from lmjax.objectives.causal import Causal
from lmjax.objectives.objective import Batch, Loss
from lmjax.objectives.text import data_of, sample_order


@dataclass(frozen=True, eq=False)
class Carried(Causal):
    """Next-token prediction in which each row starts from the final state of its previous window.

    A row whose window does not follow its previous window (a new epoch, excluded data) starts from a zero state.
    """

    #: Number of rows of a batch. The windows of an epoch are cut into this many parts; row r reads part r in order.
    streams: int = 0

    @classmethod
    def build(cls, config: Config, store: Store) -> "Carried":
        """Build the objective from a resolved configuration and its prepared data."""
        sizes = {tokens for _, tokens in config.batch.tokens}
        if len(sizes) > 1:
            raise UserError(
                "model.carried needs one batch size: give batch.tokens one entry, or set model.carried=false"
            )
        if data_of(config).mixture:
            raise UserError("model.carried reads one source: leave data.mixture out, or set model.carried=false")
        unit = config.batch.microbatch * config.model.context
        streams = max(1, (2 * sizes.pop() + unit) // (2 * unit)) * config.batch.microbatch
        order = sample_order(config, store, streams=streams)
        return cls(config, store, registry.build(config.model), order, streams=streams)

    def begin(self, rows: tuple[int, ...]) -> Any:
        """Return the initial carry of the rows of the first batch."""
        model = self.config.model
        assert isinstance(model, RNNConfig)
        count = math.prod(rows)
        carry = {"state": rnn.begin(model, count), "place": jnp.full(count, -1, jnp.int32)}
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), carry)

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        place_B = np.asarray(ids % 2**31, np.int32)  # enough to tell whether windows follow each other
        part = self.order.windows[0] // self.streams
        first_B = self._window(ids) % part == 0
        follows_B = np.where(first_B, -2, np.asarray((ids - self.streams) % 2**31)).astype(np.int32)
        return super().arrays(ids) | {"place_B": place_B, "follows_B": follows_B}

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        return super().blank(rows) | {name: np.zeros(rows, np.int32) for name in ("place_B", "follows_B")}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        objective = self._objective(train)
        if carry is None:
            carry = self.begin((len(batch["inputs_BT"]),))
        goes_on_B = carry["place"] == batch["follows_B"]
        state = jax.tree.map(
            lambda x: jnp.where(goes_on_B.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), carry["state"]
        )
        found = losses.causal(self.model, params, batch, rng=rng, carry=state, config=objective, train=train)
        loss, weight, sums, state = found
        return Loss(loss, weight, sums, {"state": jax.lax.stop_gradient(state), "place": batch["place_B"]})

    def validation(self) -> Iterator[Batch]:
        """Yield the validation split; row r of every batch reads part r, so its state carries over."""
        context, rows = self.config.model.context, self.config.batch.microbatch
        parts = validation_windows(
            self.store.validation, context=context, microbatch=rows, streams=True, **self._packing()
        )
        for number, batch in enumerate(parts):
            follows = number - 1 if number else -2
            yield batch | {
                "place_B": np.full(rows, number, np.int32),
                "follows_B": np.full(rows, follows, np.int32),
            }

    def _window(self, ids: Any) -> np.ndarray:
        """Map sample ids to windows. Ids count places of a batch, so `Order` does not depend on `streams`."""
        _, _, index = self.order.split_id(ids)
        return index % self.streams * (self.order.windows[0] // self.streams) + index // self.streams

    def _begin(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        source, epoch, _ = self.order.split_id(ids)
        context = self.config.model.context
        start = window_start(self.store.sources, source, epoch, self._window(ids), order=self.order, context=context)
        return source, start
