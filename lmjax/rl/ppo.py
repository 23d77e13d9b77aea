"""PPO: advantages of tokens from a value model (Schulman et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lmjax.config import PPOConfig
from lmjax.models.scalar import Scalar
from lmjax.rl import advantages, estimates, policy_losses, rollouts
from lmjax.rl.episode import Answers, Episode, Measured, Metrics, divide, flat
from lmjax.rl.rollouts import Prompts
from lmjax.training.state import State


@dataclass(frozen=True)
class CriticEpisode(Episode):
    """Episodes of PPO.

    The carry of the state has the value model (`values`), the state of its optimizer (`moments`) and the present
    coefficient of the KL penalty (`kl_coefficient`).
    """

    objective: PPOConfig

    def _targets(
        self, state: State, answers: Answers, measured: Measured, scores_R: Array, chunks: int
    ) -> tuple[dict[str, Array], Metrics]:
        """Return advantages, values at the time of sampling, and returns; (R, N)."""
        config, rollout, coefficient = self.objective, answers.rollout, state.carry["kl_coefficient"]
        mask_RN = rollout.mask_BN

        def of_chunk(part: tuple[Prompts, Array]) -> Array:
            return self._values(state.carry["values"], *part)

        values_RN = flat(lax.map(of_chunk, divide((answers.prompts, rollout.tokens_BN), chunks)))
        rewards_RN = advantages.token_rewards(
            scores_R, measured.logprobs - measured.reference, mask_RN, coefficient=coefficient
        )
        advantages_RN, returns_RN = advantages.gae(
            rewards_RN, values_RN, mask_RN, discount=config.discount, decay=config.decay
        )
        rows = {
            "advantages_BN": advantages.whiten(advantages_RN, mask_RN),
            "values_BN": values_RN,
            "returns_BN": returns_RN,
        }
        return rows, {
            "explained_variance": estimates.explained_variance(values_RN, returns_RN, mask_RN),
            "kl_coefficient": coefficient,
        }

    def _loss(self, trees: Mapping[str, Any], rows: Mapping[str, Array], rng: Array) -> tuple[Array, Array, Metrics]:
        """Return the sums of a part of a minibatch.

        Policy and value model have no parameter in common: the gradient of the sum is that of each.
        """
        config, mask_BN = self.objective, rows["real_BN"]
        policy = policy_losses.policy_loss(
            self._logprobs(trees["policy"], rows),
            rows["old_BN"],
            rows["advantages_BN"],
            mask_BN,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        values_BN = self._values(trees["values"], Prompts(rows["ids_BP"], rows["mask_BP"]), rows["tokens_BN"])
        value = policy_losses.value_loss(
            values_BN, rows["values_BN"], rows["returns_BN"], mask_BN, clip=config.value_clip or None
        )
        sums = policy.sums | {"value_clipped": value.sums["value_clipped"]}
        losses = {"policy_loss": policy.loss, "value_loss": value.loss}
        return policy.loss + value.loss, policy.weight, sums | losses

    def _trees(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the trees of parameters that the steps change, and their optimizer states."""
        trees, moments = super()._trees(state)
        return trees | {"values": state.carry["values"]}, moments | {"values": state.carry["moments"]}

    def _rates(self) -> dict[str, float]:
        """Return the learning rate of each tree as a multiple of the batch's."""
        return {"policy": 1.0, "values": self.objective.value_rate}

    def _carry(self, state: State, trees: Mapping[str, Any], moments: Mapping[str, Any], measured: Measured) -> Any:
        """Return the carry of the next state."""
        config, coefficient = self.objective, state.carry["kl_coefficient"]
        if config.kl_target:
            rows = len(measured.kl)
            coefficient = advantages.adapt_coefficient(
                coefficient,
                jnp.sum(measured.kl) / rows,
                episodes=rows,
                target=config.kl_target,
                horizon=config.kl_horizon,
            )
        return {"values": trees["values"], "moments": moments["values"], "kl_coefficient": coefficient}

    def _values(self, params: Any, prompts: Prompts, tokens_BN: Array) -> Array:
        """Return the value (B, N) before each token of an answer."""
        scores_BT = Scalar(self.model.config, zero=True).apply(
            {"params": params}, **rollouts.sequences(prompts, tokens_BN), method=Scalar.at_every_place
        )
        assert isinstance(scores_BT, jax.Array)
        return estimates.predicting(scores_BT, prompt=prompts.ids_BP.shape[1])
