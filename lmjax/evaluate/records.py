"""What an evaluation found: one sample a document, number of shots and shot seed, and the scores they add up to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax.evaluate.metrics import Statistic, standard_error, statistics
from lmjax.prompting.task import TaskConfig

Response = tuple[float, bool] | str  # (log-probability in nats, whether greedy decoding gives it), or generated text


@dataclass(frozen=True)
class Sample:
    """One document, after `shots` examples that were drawn with `seed`.

    prompt: the whole of it, examples included. target: the right answer. responses: one a choice or accepted answer, or
    the generated text. metrics: the measures of this document (see `lmjax.evaluate.metrics`).
    """

    task: str
    id: str
    shots: int
    seed: int
    prompt: str
    target: str
    responses: tuple[Response, ...]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Score:
    """A metric over `count` documents.

    stderr: over documents, each the mean of its shot seeds (clustered); NaN of one document. spread: sample standard
    deviation, over the shot seeds, of the score with each; None of a single seed.
    """

    value: float
    stderr: float
    count: int
    spread: float | None = None


@dataclass(frozen=True)
class Result:
    """What a model did on some tasks.

    tasks: by the name that the samples have. settings: what the evaluation was asked for, values of JSON. sizes: the
    documents of a whole task, where a limit left some out.
    """

    model: str
    samples: tuple[Sample, ...]
    tasks: dict[str, TaskConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def scores(self) -> dict[tuple[str, int], dict[str, Score]]:
        """{(task, shots): {metric: score}}, in the order of the tasks, then of the shots."""
        return {
            key: {name: score(samples, statistic) for name, statistic in self.statistics(samples).items()}
            for key, samples in self.groups().items()
        }

    def groups(self) -> dict[tuple[str, int], list[Sample]]:
        """The samples by (task, shots), in the order of the tasks, then of the shots."""
        groups: dict[tuple[str, int], list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.task, sample.shots), []).append(sample)
        places = {name: place for place, name in enumerate(self.tasks)}
        return {key: groups[key] for key in sorted(groups, key=lambda key: (places[key[0]], key[1]))}

    def statistics(self, samples: Sequence[Sample]) -> dict[str, Statistic]:
        """The metrics of these samples of one task, by the measures that they have."""
        kind = self.tasks[samples[0].task].kind
        return statistics(kind, list(dict.fromkeys(name for sample in samples for name in sample.metrics)))


def score(samples: Sequence[Sample], statistic: Statistic) -> Score:
    """The metric of the samples of one task and number of shots."""
    values_D, weights_D = columns(samples, statistic)
    seeds = sorted({sample.seed for sample in samples})
    by_seed = [_value(columns([s for s in samples if s.seed == seed], statistic), statistic) for seed in seeds]
    return Score(
        value=_value((values_D, weights_D), statistic),
        stderr=standard_error(statistic.influences(values_D, weights_D)),
        count=len(values_D),
        spread=float(np.std(by_seed, ddof=1)) if len(seeds) > 1 else None,
    )


def columns(samples: Iterable[Sample], statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """Value and weight of each of D documents, the means over its shot seeds, in the order they are met."""
    documents: dict[str, list[Mapping[str, float]]] = {}
    for sample in samples:
        if statistic.value in sample.metrics:
            documents.setdefault(sample.id, []).append(sample.metrics)
    values = [np.mean([metrics[statistic.value] for metrics in seeds]) for seeds in documents.values()]
    weight = statistic.weight
    weights = [np.mean([metrics[weight] if weight else 1.0 for metrics in seeds]) for seeds in documents.values()]
    return np.array(values), np.array(weights)


def _value(columns_D: tuple[np.ndarray, np.ndarray], statistic: Statistic) -> float:
    values_D, weights_D = columns_D
    return float(statistic.of(values_D.sum(), weights_D.sum()))
