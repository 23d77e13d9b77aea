"""Reinforcement learning of a policy: the data and the use of its model.

What an update does is in `lmjax.rl.episode`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from lmjax.config import CausalConfig, Config, GPTConfig, PPOConfig, UserError
from lmjax.config.policies import PolicyConfig
from lmjax.data.store.store import Store
from lmjax.models.scalar import Scalar
from lmjax.objectives.objective import Loss
from lmjax.objectives.prompt_samples import PromptSamples
from lmjax.objectives.sft import FineTuning
from lmjax.pytrees import path_name
from lmjax.system.seeds import random_key


@dataclass(frozen=True, eq=False)
class Policy(FineTuning):
    """A policy that answers prompts, and learns from the rewards of its answers."""

    samples: PromptSamples

    samples_type = PromptSamples
    episodic: ClassVar[bool] = True

    @classmethod
    def build(cls, config: Config, store: Store) -> Self:
        """Build the objective of a resolved configuration and its prepared data.

        Raises:
            UserError: The minibatches do not divide the batch, or the data have no prompt with room for an answer.
        """
        objective = super().build(config, store)
        options, samples = objective._options, objective.samples
        unit = config.batch.microbatch * options.group * getattr(config.model, "context", 0)
        microbatches = (2 * config.batch.tokens[0][1] + unit) // (2 * unit)  # rounded as in the plan of the batches
        if microbatches % options.minibatches:
            raise UserError(
                f"objective.minibatches={options.minibatches} does not divide the {microbatches} microbatches of "
                f"batch.tokens={config.batch.tokens[0][1]} ({unit} tokens each: batch.microbatch prompts with "
                "objective.group answers); change one of them"
            )
        assert isinstance(samples, PromptSamples)
        return objective

    @property
    def _options(self) -> Any:
        assert isinstance(self.config.objective, PolicyConfig)
        return self.config.objective

    def _settings(self, train: bool) -> CausalConfig:
        """Return the configuration of the loss."""
        return CausalConfig()

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Raise UserError: prompts alone have no loss."""
        raise UserError(f"objective.family={self.config.objective.family} has a loss only for answers that it samples")

    def greedy(self, params: Any, prompts: Sequence[list[int]]) -> list[str]:
        """Return the texts of the greedy answers to prompts."""
        decode = self.samples.store.tokenizer.decode
        return [decode(answer) for answer, _ in self._answers(params, prompts)]

    def critic(self, params: Any, optimizer: optax.GradientTransformation) -> Any:
        """Return the value model of PPO, a copy of the policy with values of 0."""
        options = self._options
        if not isinstance(options, PPOConfig):
            return None
        assert isinstance(self.config.model, GPTConfig)
        model = Scalar(self.config.model, zero=True)
        known = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        ids_BT, last_B = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
        variables = model.init(random_key(self.config.seed), ids_BT, last_B=last_B)
        values = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.copy(known.get(path_name(path), leaf)), nn.unbox(variables["params"])
        )
        coefficient = jnp.float32(options.kl_coefficient)
        return {"values": values, "moments": optimizer.init(values), "kl_coefficient": coefficient}
