"""Objectives of models that predict the next token, and with which text can be generated."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from jax import Array

from lmjax.config import CausalConfig, Config, CustomModelConfig
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models.probe import check_language_model
from lmjax.objectives import losses
from lmjax.objectives.objective import Loss, Objective


@dataclass(frozen=True, eq=False)
class NextToken(Objective):
    """Prediction of the next token of rows with `inputs_BT`, `targets_BT` and `weights_BT`."""

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the objective; a user's model is checked first.

        Raises:
            UserError: The settings contradict each other or the data, or the model is no causal language model.
        """
        if isinstance(config.model, CustomModelConfig):
            check_language_model(config.model, cls.model_of(config))
        return super().build(config, store)

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        return Loss(*losses.causal(self.model, params, batch, rng=rng, config=self._settings(train), train=train))

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the cross-entropy sum (B) and the weight (B) of each row."""
        return losses.causal_by_row(self.model, params, batch, chunk=self._settings(False).chunk)

    @abstractmethod
    def _settings(self, train: bool) -> CausalConfig:
        """Return the configuration of the loss; regularization is off for measurements."""

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids that end a text, in addition to the tokenizer's `end_of_text`."""
        return ()
