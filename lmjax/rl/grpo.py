"""GRPO: advantages relative to the other answers to the same prompt (Shao et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax import Array

from lmjax.config import GRPOConfig
from lmjax.rl import advantages, policy_losses
from lmjax.rl.episode import Answers, Episode, Measured, Metrics
from lmjax.training.state import State


@dataclass(frozen=True)
class GroupEpisode(Episode):
    """Episodes of GRPO."""

    objective: GRPOConfig

    def _targets(
        self, state: State, answers: Answers, measured: Measured, scores_R: Array, chunks: int
    ) -> tuple[dict[str, Array], Metrics]:
        """Return the advantages, and log p of the reference."""
        rows = {"reference_BN": measured.reference, "advantages_B": relative(scores_R, self.objective)}
        return rows, {"dead_groups": advantages.share_without_signal(scores_R, group=self.objective.group)}

    def _loss(self, trees: Mapping[str, Any], rows: Mapping[str, Array], rng: Array) -> tuple[Array, Array, Metrics]:
        """Return the sums of a part of a minibatch."""
        config = self.objective
        loss = policy_losses.group_policy_loss(
            self._logprobs(trees["policy"], rows),
            rows["old_BN"],
            rows["advantages_B"],
            rows["real_BN"],
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            average=config.average,
            width=config.answer_tokens,
            reference_BT=rows["reference_BN"] if config.kl_coefficient else None,
            coefficient=config.kl_coefficient,
            kl=config.kl,
        )
        sums = {name: value for name, value in loss.sums.items() if name != "kl"}
        return loss.loss, loss.weight, sums | {"policy_loss": loss.loss}


def relative(scores_R: Array, config: GRPOConfig) -> Array:
    """Return the advantage of each answer in its group."""
    if config.advantage == "deviation":
        return advantages.scaled_in_group(scores_R, group=config.group)
    if config.advantage == "leave_one_out":
        return advantages.leave_one_out(scores_R, group=config.group)
    return advantages.centred_in_group(scores_R, group=config.group)
