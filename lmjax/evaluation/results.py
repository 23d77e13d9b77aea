"""Evaluation results: samples by document, number of shots and seed, and their scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax.evaluation.task_metrics import Statistic, standard_error, statistics
from lmjax.tasks.spec import TaskConfig

Response = tuple[float, bool] | str  # (log-probability in nats, whether greedy decoding gives it), or generated text


@dataclass(frozen=True)
class Sample:
    """The outcome for one document."""

    #: Name of the task.
    task: str
    #: Identifier of the document.
    id: str
    #: Number of examples in the prompt.
    shots: int
    #: Seed of the draw of examples.
    seed: int
    #: The complete prompt, including examples.
    prompt: str
    #: The correct answer.
    target: str
    #: One response for each choice or accepted answer, or the generated text.
    responses: tuple[Response, ...]
    #: Measures of this document (see `lmjax.evaluation.task_metrics`).
    metrics: dict[str, float]


@dataclass(frozen=True)
class Score:
    """A metric over documents."""

    #: The value.
    value: float
    #: Standard error over documents, each averaged over its shot seeds (clustered); NaN for a single document.
    stderr: float
    #: Number of documents.
    count: int
    #: Sample standard deviation of the score over the shot seeds; None for a single seed.
    spread: float | None = None


@dataclass(frozen=True)
class Result:
    """The result of a model on tasks."""

    #: Name of the model.
    model: str
    #: All samples.
    samples: tuple[Sample, ...]
    #: Configuration of each task, by the name that the samples use.
    tasks: dict[str, TaskConfig]
    #: Settings of the evaluation, as JSON values.
    settings: dict[str, Any] = field(default_factory=dict)
    #: Number of documents of each task without the limit.
    sizes: dict[str, int] = field(default_factory=dict)

    def scores(self) -> dict[tuple[str, int], dict[str, Score]]:
        """The scores as {(task, shots): {metric: score}}, ordered by task, then by shots."""
        return {
            key: {name: score(samples, statistic) for name, statistic in self.statistics(samples).items()}
            for key, samples in self.groups().items()
        }

    def groups(self) -> dict[tuple[str, int], list[Sample]]:
        """The samples by (task, shots), ordered by task, then by shots."""
        groups: dict[tuple[str, int], list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.task, sample.shots), []).append(sample)
        places = {name: place for place, name in enumerate(self.tasks)}
        return {key: groups[key] for key in sorted(groups, key=lambda key: (places[key[0]], key[1]))}

    def statistics(self, samples: Sequence[Sample]) -> dict[str, Statistic]:
        """The metrics of samples of one task, by the measures that they contain."""
        kind = self.tasks[samples[0].task].kind
        return statistics(kind, list(dict.fromkeys(name for sample in samples for name in sample.metrics)))


def score(samples: Sequence[Sample], statistic: Statistic) -> Score:
    """Compute a metric from the samples of one task and number of shots."""
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
    """Value and weight of each of D documents: means over shot seeds, in order of appearance."""
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
