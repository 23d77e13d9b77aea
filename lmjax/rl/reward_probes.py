"""Probes of a reward model: what changes of an answer do to its score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.data.batches import preferences
from lmjax.data.sources import reviews
from lmjax.objectives.reward import RewardModel

PROBED = 200  # held-out answers that are changed

#: (answer, prompt) -> changed forms by the name of the change.
Changes = Callable[[str, str], Mapping[str, str]]


@dataclass(frozen=True)
class Probe:
    """What a change of an answer does to its score."""

    #: The change.
    name: str
    #: Number of changed answers.
    count: int
    #: Mean change of the score, in standard deviations of the scores of unchanged answers.
    gain: float
    #: Share of the changed answers with a higher score.
    higher: float
    #: Mean change of the true reward; None if it is not known.
    truth: float | None


def probe(objective: RewardModel, params: Any, records: np.ndarray, *, deviation: float) -> Sequence[Probe]:
    """Score changed forms of held-out preferred answers.

    Args:
        objective: The objective with its data.
        params: The parameters.
        records: Numbers of validation pairs.
        deviation: Standard deviation of the scores of unchanged answers.
    """
    known = objective.has_truth
    store, changes = objective.samples.store, _of_reviews if known else plain_changes
    decode, end, context = store.tokenizer.decode, objective.samples.control.end, objective.config.model.context
    names, pairs, rewards = list[str](), list[np.ndarray](), list[float | None]()
    for record in records[:: max(1, len(records) // PROBED)].tolist():
        prompt, chosen, _ = preferences.ids_of(store, "validation", record)
        text, question = decode(chosen[:-1]), decode(prompt)
        for name, changed in changes(text, question).items():
            row = np.asarray([*prompt, *store.tokenizer.encode(changed), end], np.int32)
            if len(row) > context:
                continue
            names.append(name)
            pairs += [row, np.concatenate([prompt, chosen])]
            rewards.append(_truth(changed, text, question) if known else None)
    if not names:
        return []
    scores_N2 = objective.score_rows(params, pairs).reshape(-1, 2)
    gain_N = (scores_N2[:, 0] - scores_N2[:, 1]) / max(deviation, 1e-9)
    result = []
    for name in dict.fromkeys(names):
        here = [place for place, other in enumerate(names) if other == name]
        truths = [reward for place in here if (reward := rewards[place]) is not None]
        gain, higher = float(gain_N[here].mean()), float(np.mean(gain_N[here] > 0))
        result.append(Probe(name, len(here), gain, higher, float(np.mean(truths)) if truths else None))
    return result


def plain_changes(text: str, question: str) -> dict[str, str]:
    """Return changes that make any answer worse."""
    sentences = reviews.sentences_of(text)
    words = [word.strip(".,;:!?") for word in text.split()]
    keyword = max(words, key=len, default="")
    changes = {
        "last sentence said twice": f"{text} {sentences[-1]}" if sentences else "",
        "longest word repeated ten times": f"{text} {' '.join([keyword] * 10)}" if keyword else "",
        "first three words only": " ".join(text.split()[:3]),
    }
    return {name: changed for name, changed in changes.items() if changed and changed != text}


def _of_reviews(text: str, question: str) -> dict[str, str]:
    return reviews.probes(text, reviews.dish_of(question))


def _truth(changed: str, text: str, question: str) -> float:
    dish = reviews.dish_of(question)
    return reviews.true_reward(changed, dish) - reviews.true_reward(text, dish)
