"""Calibration of a reward model by gain and bias.

Scores of answers of the reference policy get mean 0 and standard deviation 1. Coefficients of a KL penalty are then
comparable between runs (Ziegler et al. 2019, section 2.1). All functions are pure: the same parameters and seed give
the same samples, and the same gain and bias.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.batches import preferences
from lmjax.inference.generate import continue_ids
from lmjax.inference.sampling import Sampling
from lmjax.models import registry, scalar
from lmjax.objectives import reward_measures
from lmjax.objectives.reward import RewardModel

SAMPLES = 256
_AT_ONCE = 64  # prompts that are answered together


@dataclass(frozen=True)
class ReferenceSamples:
    """Answers of the reference policy to training prompts."""

    #: Ids of each prompt and its answer, with the end if the answer has one.
    rows: list[np.ndarray]
    #: Tokens of each prompt.
    prompt_sizes: list[int]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer."""
        return np.asarray([len(row) - size for row, size in zip(self.rows, self.prompt_sizes, strict=True)])


def reference_samples(objective: RewardModel, reference_params: Any, *, count: int = SAMPLES) -> ReferenceSamples:
    """Sample answers at temperature 1 to training prompts, evenly chosen.

    Args:
        objective: The reward model's objective, for its data, its control tokens and its seed.
        reference_params: Parameters of the policy, of the model that the reward model began as.
        count: Number of answers.
    """
    samples, config = objective.samples, objective.config
    policy, end, records = registry.build(config.model), samples.control.end, samples.fitting["train"].records
    chosen = records[np.linspace(0, len(records) - 1, count).astype(int)].tolist()
    prompts = [preferences.ids_of(samples.store, "train", record)[0].tolist() for record in chosen]
    rows: list[np.ndarray] = []
    for start in range(0, count, _AT_ONCE):
        batch = prompts[start : start + _AT_ONCE]
        space = config.model.context - max(map(len, batch))
        if space < 1:
            raise UserError(
                f"a prompt of the data fills model.context={config.model.context}, so that no answer can be sampled; "
                "raise model.context"
            )
        sampling = Sampling(max_tokens=space, temperature=1.0, seed=config.seed + start)
        *_, answers = continue_ids(policy, reference_params, batch, sampling=sampling, ends=(end,))
        for prompt, answer in zip(batch, answers, strict=True):
            closing = [end] if len(answer) < space else []
            rows.append(np.asarray([*prompt, *answer, *closing], np.int32))
    return ReferenceSamples(rows, [len(prompt) for prompt in prompts])


def calibrate(objective: RewardModel, params: Any, samples: ReferenceSamples) -> Any:
    """Return the parameters with gain and bias of the samples.

    Raises:
        UserError: All samples have the same score.
    """
    try:
        mean, deviation = reward_measures.normalization(objective.score_rows(params, samples.rows))
    except ValueError as error:
        raise UserError(f"the reward model cannot be calibrated: {error}; train it longer") from None
    return scalar.calibrated(params, mean=mean, deviation=deviation)
