"""Interface between a run and its objective: loss, measurements and use of the model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from lmjax.config import Config, UserError
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models import registry
from lmjax.objectives.samples import Samples

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

    All methods are pure functions of the prepared data, the seed and the parameters. A subclass needs `samples_type`
    and `loss`; the other methods have defaults.
    """

    config: Config
    #: Linen module whose `init` takes the arrays of `example()`.
    model: nn.Module
    samples: Samples

    #: Class of the samples that the objective reads.
    samples_type: ClassVar[type[Samples]]
    #: Whether an update samples answers and learns from their rewards (`lmjax.rl.episode`); `loss` is then not used.
    episodic: ClassVar[bool] = False
    #: Example of a prompt for `answer`.
    prompt: ClassVar[str] = "Return the"

    # ---- Construction ------------------------------------------------------------------------------------------

    @classmethod
    def variant(cls, config: Config) -> "type[Objective]":
        """Return the class to build: this one, or a subclass that a setting selects."""
        return cls

    @classmethod
    def model_of(cls, config: Config) -> nn.Module:
        """Build the model of a resolved configuration."""
        return registry.build(config.model)

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the objective of a resolved configuration and its prepared data.

        Raises:
            UserError: The settings contradict each other or the data.
        """
        return cls(config, cls.model_of(config), cls.samples_type.build(config, store))

    @classmethod
    def without_data(cls, config: Config) -> Self:
        """Build the objective to load and use parameters; its samples read no data."""
        return cls(config, cls.model_of(config), cls.samples_type.without_data(config))

    # ---- Training ----------------------------------------------------------------------------------------------

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        return (jnp.zeros((1, 1), jnp.int32),), {}

    @abstractmethod
    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the sums of a batch: loss, weight, and further sums to divide by the weight.

        Args:
            params: Parameters of the model.
            batch: Arrays (B, ...) of `samples`.
            rng: Key for dropout, used only with `train`.
            carry: State after the previous batch, if `begin` returns one.
            train: Use dropout and regularization; otherwise measure.
        """

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return loss sums (B) and weights (B) per row, without dropout and regularization.

        The default computes `loss` row by row; override it to compute all rows at once.
        """

        def one_row(row: Mapping[str, Array]) -> tuple[Array, Array]:
            sums = self.loss(params, {name: array[None] for name, array in row.items()}, train=False)
            return sums.loss, sums.weight

        return jax.lax.map(one_row, dict(batch))

    def critic(self, params: Any, optimizer: optax.GradientTransformation) -> Any:
        """Return what is learned next to initial parameters: the carry of the state, or None.

        `values`, a tree of parameters, is sharded as the parameters are.
        """
        return None

    def begin(self, rows: tuple[int, ...]) -> Any:
        """Return the carry of the first batch: a tree of arrays (*rows, ...), or None."""
        return None

    # ---- Measuring ---------------------------------------------------------------------------------------------

    def measure(self, params: Any, batch: Mapping[str, Array], carry: Any) -> tuple[Sums, Any]:
        """Return sums over a validation microbatch, for `scores`, and the next carry."""
        sums = self.loss(params, batch, carry=carry, train=False)
        return {"loss": sums.loss, "weight": sums.weight, **sums.sums}, sums.carry

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return metrics named `val_...` from the sums over the split.

        `val_loss` is in nats per predicted token or row.
        """
        return {"val_loss": totals["loss"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """Return scores that need decoding, named `val_...`; called once, at the end of a run."""
        return {}

    def notes(self) -> list[str]:
        """Return lines on figures that are missing, or that do not mean what their name says."""
        return []

    def baselines(self) -> dict[str, float]:
        """Return the scores of simple baselines on the validation split, by metric name."""
        return {}

    # ---- Using -------------------------------------------------------------------------------------------------

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model, for inspection."""
        return ""

    def example_prompt(self) -> str:
        """Return a prompt for `answer` that suits the data of the run."""
        return self.samples.example() or self.prompt

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the output of the trained model for a prompt; reads no training data.

        Args:
            params: Parameters of the model.
            prompt: Input text.
            tokenizer: Tokenizer of the run.
            **settings: Sampling settings, as for `generate`.

        Raises:
            UserError: The prompt does not suit the model, or the objective answers no prompts.
        """
        family = self.config.objective.family
        raise UserError(f"objective.family={family} answers no prompts; define `answer` in {type(self).__name__}")
