"""Calibration of a reward model by gain and bias.

Scores of answers of the reference policy get mean 0 and standard deviation 1. Coefficients of a KL penalty are then
comparable between runs (Ziegler et al. 2019, section 2.1). All functions are pure: the same parameters and seed give
the same samples, and the same gain and bias.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lmjax.data.batches import preferences
from lmjax.inference.generate import continue_ids
from lmjax.inference.sampling import Sampling
from lmjax.models import registry, scalar
from lmjax.objectives.reference import ReferenceSamples
from lmjax.objectives.reward import RewardModel

PROMPTS, EACH = 32, 16  # prompts, and answers to each
_SEARCHED = 2048  # pairs whose prompts are compared
_AT_ONCE = 64  # prompts that are answered, answers that are scored together
_LEAST = 1e-6  # standard deviation of scores that differ

Texts = Mapping[str, Any]


def reference_samples(objective: RewardModel, reference_params: Any) -> ReferenceSamples:
    """Sample answers at temperature 1 to training prompts, evenly chosen.

    The answers to a prompt follow each other. An answer that fills the context is read as if it ended there: the model
    has never seen a text without an end.

    Args:
        objective: The reward model's objective, for its data, its control tokens and its seed.
        reference_params: Parameters of the policy, of the model that the reward model began as.
    """
    config, end = objective.config, objective.samples.control.end
    policy, prompts = registry.build(config.model), [prompt for prompt in _prompts(objective) for _ in range(EACH)]
    rows: list[np.ndarray] = []
    for start in range(0, len(prompts), _AT_ONCE):
        batch = prompts[start : start + _AT_ONCE]
        space = config.model.context - max(map(len, batch))  # at least 1: a pair that is used has room for an end
        sampling = Sampling(max_tokens=space, temperature=1.0, seed=config.seed + start)
        *_, answers = continue_ids(policy, reference_params, batch, sampling=sampling, ends=(end,))
        for prompt, answer in zip(batch, answers, strict=True):
            rows.append(np.asarray([*prompt, *answer[: space - 1], end], np.int32))
    return ReferenceSamples(rows, [len(prompt) for prompt in prompts])


def _prompts(objective: RewardModel) -> list[list[int]]:
    """Return ids of `PROMPTS` different training prompts, or of all."""
    store, records = objective.samples.store, objective.samples.fitting["train"].records
    records = records[np.linspace(0, len(records) - 1, min(_SEARCHED, len(records))).astype(int)]
    ordered = sorted({tuple(preferences.ids_of(store, "train", record)[0].tolist()) for record in records.tolist()})
    places = np.linspace(0, len(ordered) - 1, min(PROMPTS, len(ordered))).astype(int)
    return [list(ordered[place]) for place in places.tolist()]


def texts_of(samples: ReferenceSamples) -> Texts:
    """Return answers as arrays for `numbers`: C chunks of m rows of T places."""
    count, width = len(samples.rows), max(map(len, samples.rows))
    chunks = -(-count // _AT_ONCE)
    ids = np.zeros((chunks * _AT_ONCE, width), np.int32)
    last, weights = (np.zeros(len(ids), dtype) for dtype in (np.int32, np.float32))
    for place, row in enumerate(samples.rows):
        ids[place, : len(row)], last[place], weights[place] = row, len(row) - 1, 1
    named = {"ids": ids, "last": last, "weights": weights}
    return {name: array.reshape(chunks, _AT_ONCE, *array.shape[1:]) for name, array in named.items()}


def numbers(model: Any, params: Any, texts: Texts) -> dict[str, Array]:
    """Return gain and bias with which scores of answers have mean 0 and standard deviation 1.

    The function is to be traced. Gain and bias stay as they are if all answers have the same score, or one that is not
    finite.
    """

    def raw(chunk: Texts) -> Array:
        return model.apply({"params": params}, chunk["ids"], last_B=chunk["last"], calibrated=False)

    raw_R, weights_R = lax.map(raw, texts).ravel(), texts["weights"].ravel()
    mean = jnp.average(raw_R, weights=weights_R)
    deviation = jnp.sqrt(jnp.average((raw_R - mean) ** 2, weights=weights_R))
    is_known = jnp.isfinite(mean) & (deviation > _LEAST)
    changed = scalar.calibrated(params, mean=mean, deviation=deviation)["calibration"]
    return {name: jnp.where(is_known, changed[name], before) for name, before in params["calibration"].items()}
