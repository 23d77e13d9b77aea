"""Evaluation results: samples by document, number of shots and seed, and their scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmjax.evaluation.task_metrics import Statistic, measure, standard_error, statistics
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
    #: Hash of the question, its options and its answers; empty in results of older versions.
    digest: str = ""
    #: Whether `id` is the row's own id, not its number.
    named: bool = False
    #: Number of tokens at the beginning of the prompt that did not fit into the context.
    truncated: int = 0
    #: Number of tokens of an answer that did not fit into the context.
    answer_truncated: int = 0


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
    #: What a reader must know about the scores, as JSON values: `first_token`, the text of the token that precedes a
    #: text without context (None: nothing); `unreachable`, by task the number of documents that no generated text can
    #: answer exactly, by reason; `not_computed`, by task the metrics that it asks for and that lmjax does not have;
    #: `dropped`, by task the number of rows without text; `first_rows`, by task the number of rows that were read, if
    #: it has more; `unknown_tokens`, by task the number of documents with text that the tokenizer cannot represent.
    facts: dict[str, Any] = field(default_factory=dict)

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

    def group_scores(self) -> dict[tuple[str, int], dict[str, tuple[Score, Score]]]:
        """The mean scores of groups of tasks: {(group, shots): {metric: (macro, micro)}}.

        A macro score is the mean over the tasks, a micro score that over all their documents. Metrics that a task of
        the group does not have are left out.
        """
        samples = self.groups()
        return {
            (group, shots): self._means([samples[task, shots] for task in tasks])
            for (group, shots), tasks in self.members().items()
        }

    def members(self) -> dict[tuple[str, int], list[str]]:
        """The names of the tasks of each group: {(group, shots): tasks}."""
        members: dict[tuple[str, int], list[str]] = {}
        for task, shots in self.groups():
            parts = self.tasks[task].group.split("/") if self.tasks[task].group else []
            for depth in range(len(parts)):
                members.setdefault(("/".join(parts[: depth + 1]), shots), []).append(task)
        return members

    def _means(self, tasks: Sequence[list[Sample]]) -> dict[str, tuple[Score, Score]]:
        """The macro and the micro score of every metric that all of these tasks have."""
        named = [self.statistics(samples) for samples in tasks]
        common = [name for name in named[0] if all(others.get(name) == named[0][name] for others in named)]
        pooled = [replace(sample, id=f"{sample.task}\0{sample.id}") for samples in tasks for sample in samples]
        return {name: (_macro(tasks, named[0][name]), score(pooled, named[0][name])) for name in common}

    def truncations(self) -> list[dict[str, Any]]:
        """Where prompts or answers were cut: numbers of documents and maximum numbers of tokens."""
        cut = []
        for (task, shots), samples in self.groups().items():
            row = {"task": task, "shots": shots, "documents": len({sample.id for sample in samples})}
            row |= {
                "prompts": len({sample.id for sample in samples if sample.truncated}),
                "prompt_tokens": max(sample.truncated for sample in samples),
                "answers": len({sample.id for sample in samples if sample.answer_truncated}),
                "answer_tokens": max(sample.answer_truncated for sample in samples),
            }
            cut += [row] if row["prompts"] or row["answers"] else []
        return cut

    def statistics(self, samples: Sequence[Sample]) -> dict[str, Statistic]:
        """The metrics of samples of one task, by the measures that they contain."""
        kind = self.tasks[samples[0].task].kind
        return statistics(kind, list(dict.fromkeys(name for sample in samples for name in sample.metrics)))


def score(samples: Sequence[Sample], statistic: Statistic) -> Score:
    """Compute a metric from the samples of one task and number of shots."""
    columns_KD = columns(samples, statistic)
    seeds: dict[int, list[Sample]] = {}
    for sample in samples:
        seeds.setdefault(sample.seed, []).append(sample)
    by_seed = [_value(columns(seeds[seed], statistic), statistic) for seed in sorted(seeds)] if len(seeds) > 1 else []
    return Score(
        value=_value(columns_KD, statistic),
        stderr=standard_error(statistic.influences(*columns_KD)),
        count=columns_KD.shape[1],
        spread=float(np.std(by_seed, ddof=1)) if by_seed else None,
    )


def _macro(tasks: Sequence[Sequence[Sample]], statistic: Statistic) -> Score:
    """The mean of the scores of independent tasks."""
    scores = [score(samples, statistic) for samples in tasks]
    stderr = float(np.sqrt(np.sum([part.stderr**2 for part in scores]))) / len(scores)
    return Score(float(np.mean([part.value for part in scores])), stderr, sum(part.count for part in scores))


def has_measures(sample: Sample, statistic: Statistic) -> bool:
    """Whether a sample has all measures of a statistic."""
    return all(not name or name in sample.metrics for name in statistic.measures)


def columns(samples: Iterable[Sample], statistic: Statistic) -> np.ndarray:
    """K measures of each of D documents (K, D): means over shot seeds, in order of appearance."""
    documents: dict[str, list[Mapping[str, float]]] = {}
    for sample in samples:
        if has_measures(sample, statistic):
            documents.setdefault(sample.id, []).append(sample.metrics)
    means = (
        [_mean([measure(metrics, name) for metrics in d]) for d in documents.values()] for name in statistic.measures
    )
    return np.array([*means])


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else float(np.mean(values))


def _value(columns_KD: np.ndarray, statistic: Statistic) -> float:
    return float(statistic.of(*columns_KD.sum(1)))
