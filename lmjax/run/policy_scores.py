"""Scores of a policy on held-out prompts, with their standard errors."""

import numpy as np

from lmjax.config.rewards import LearnedRewardConfig
from lmjax.parallel import mesh, processes
from lmjax.rl import rewards
from lmjax.run.build import averaged
from lmjax.run.episodes import Episodes
from lmjax.training.state import State


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of independent values; NaN for a single one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def greedy(parts: Episodes, state: State, *, prompts: int) -> dict[str, float]:
    """Return the mean reward of greedy answers to the first held-out prompts, with its error.

    Only the main process computes it; the result of the others is empty, as it is for a learned reward.

    Args:
        parts: The episodes of the run.
        state: The training state.
        prompts: Number of prompts.
    """
    params = mesh.local_copy(averaged(state))
    if isinstance(parts.episode.objective.reward, LearnedRewardConfig) or not processes.is_main():
        return {}
    samples = parts.objective.samples
    records = samples.fitting["validation"].records[:prompts].tolist()
    texts = parts.objective.greedy(params, [samples.question("validation", record)[0] for record in records])
    values_P = rewards.score(
        parts.reward, texts, [samples.columns("validation", record) for record in records]
    ).values_B
    return {"val_greedy_reward": float(values_P.mean()), "val_greedy_reward_error": standard_error(values_P)}
