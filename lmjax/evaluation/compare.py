"""Comparison of two results on the same documents, with significance tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.config import UserError
from lmjax.display.console import Console
from lmjax.evaluation.results import Result, Sample, columns
from lmjax.evaluation.task_metrics import Statistic, standard_error

EXACT = 16  # with at most this number of differing documents the test enumerates all sign flips
FLIPS = 10_000  # random sign flips otherwise; the standard error of a p-value is at most 0.005


@dataclass(frozen=True)
class Row:
    """One metric of one task and number of shots, on the documents that both results contain."""

    #: Name of the task.
    task: str
    #: Number of examples in the prompt.
    shots: int
    #: Name of the metric.
    metric: str
    #: Value of the first result.
    a: float
    #: Value of the second result.
    b: float
    #: b - a.
    difference: float
    #: Standard error of the difference, paired by document (perplexities: by the delta method); NaN for one document.
    stderr: float
    #: p-value of a two-sided paired permutation test.
    p_value: float
    #: p-value of McNemar's exact test, if every measure is 0 or 1.
    mcnemar: float | None
    #: Number of documents that both results contain.
    count: int
    #: Number of pairs of document and shot seed that only one result contains.
    unmatched: int


def compare_results(a: Result, b: Result) -> list[Row]:
    """Compare two results by the metrics that both contain.

    Samples match if they have the same task, number of shots, shot seed and document.

    Raises:
        UserError: No sample matches.
    """
    groups_a, groups_b = a.groups(), b.groups()
    rows = []
    for key in (key for key in groups_a if key in groups_b):
        samples_a, samples_b = ({(s.seed, s.id): s for s in groups[key]} for groups in (groups_a, groups_b))
        matched = [at for at in samples_a if at in samples_b]
        if matched and a.tasks[key[0]].kind == b.tasks[key[0]].kind:
            pair = ([samples_a[at] for at in matched], [samples_b[at] for at in matched])
            names_b = b.statistics(pair[1])
            common = {name: statistic for name, statistic in a.statistics(pair[0]).items() if name in names_b}
            unmatched = len(samples_a.keys() ^ samples_b.keys())
            rows += [_row(name, statistic, *pair, unmatched=unmatched) for name, statistic in common.items()]
    if not rows:
        raise UserError(
            f"the results have no document in common: one has {_named(groups_a)}, the other {_named(groups_b)}; "
            "evaluate both with the same tasks, shots and shot seeds"
        )
    return rows


def print_comparison(rows: Sequence[Row], console: Console, *, names: tuple[str, str] = ("a", "b")) -> None:
    """Print the rows of `compare_results`: the difference ± its standard error.

    Args:
        rows: The rows.
        console: Where to print.
        names: The names of the two models.
    """
    exact = any(row.mcnemar is not None for row in rows)
    cells = [
        (
            *(row.task, row.shots, row.metric, f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}", _error(row)),
            *(f"{row.p_value:.2g}", *(["" if row.mcnemar is None else f"{row.mcnemar:.2g}"] if exact else [])),
            row.count,
        )
        for row in rows
    ]
    header = ("task", "shots", "metric", "a", "b", "b - a", "±", "p", *(["McNemar"] if exact else []), "n")
    console.table(f"a: {names[0]}, b: {names[1]}", cells, header=header)
    if any(row.unmatched for row in rows):
        most = max(row.unmatched for row in rows)
        console.event(f"up to {most} documents of a task are in only one result and are ignored")


def _error(row: Row) -> str:
    return "" if math.isnan(row.stderr) else f"{row.stderr:.3f}"


def _row(name: str, statistic: Statistic, a: list[Sample], b: list[Sample], *, unmatched: int) -> Row:
    a_2D, b_2D = (np.stack(columns(samples, statistic)) for samples in (a, b))
    value_a, value_b = (float(statistic.of(*x_2D.sum(1))) for x_2D in (a_2D, b_2D))
    moved_D = statistic.influences(*b_2D) - statistic.influences(*a_2D)
    single = len({sample.seed for sample in a}) == 1
    return Row(
        task=a[0].task,
        shots=a[0].shots,
        metric=name,
        a=value_a,
        b=value_b,
        difference=value_b - value_a,
        stderr=standard_error(moved_D),
        p_value=permutation(statistic, a_2D, b_2D=b_2D),
        mcnemar=mcnemar(a_2D[0], b_2D[0]) if single and not statistic.weight else None,
        count=a_2D.shape[1],
        unmatched=unmatched,
    )


def permutation(statistic: Statistic, a_2D: np.ndarray, *, b_2D: np.ndarray) -> float:
    """Two-sided p-value of the paired permutation test (Fisher 1935, section 21).

    Under the null hypothesis the two outcomes of a document are exchangeable: p is the share of assignments whose
    difference is at least as large as the observed difference. For a mean this is the sign-flip test. With at most
    `EXACT` differing documents the test enumerates all assignments. Otherwise it draws `FLIPS` assignments with a
    fixed seed and counts the observed one too (Phipson and Smyth 2010), so that p is never 0.

    Args:
        statistic: The metric.
        a_2D: Value and weight of D documents of the first result.
        b_2D: The same for the second result.
    """
    sum_2, half_2D = (a_2D + b_2D).sum(1) / 2, (b_2D - a_2D) / 2
    half_2D = half_2D[:, np.any(half_2D != 0, axis=0)]
    count = half_2D.shape[1]

    def distances(signs_PD: np.ndarray) -> np.ndarray:
        moved_2P = half_2D @ signs_PD.T
        return np.abs(statistic.of(*(sum_2[:, None] + moved_2P)) - statistic.of(*(sum_2[:, None] - moved_2P)))

    true = distances(np.ones((1, count)))[0]
    least = true - 1e-12 * max(np.abs(statistic.of(*x_2D.sum(1))) for x_2D in (a_2D, b_2D))  # tolerates rounded sums
    if count <= EXACT:
        bits_PD = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(distances(1.0 - 2 * bits_PD) >= least))
    generator = np.random.default_rng(0)
    blocks = (2.0 * generator.integers(0, 2, (1000, count)) - 1 for _ in range(FLIPS // 1000))
    return (1 + sum(int(np.sum(distances(block_PD) >= least)) for block_PD in blocks)) / (1 + FLIPS)


def mcnemar(a_D: np.ndarray, b_D: np.ndarray) -> float | None:
    """Two-sided p-value of McNemar's exact test; None if a measure is neither 0 nor 1.

    Null hypothesis: of the documents that exactly one model answers correctly, each model answers half on average
    (McNemar 1947, in its binomial form).
    """
    if not np.isin([a_D, b_D], (0, 1)).all():
        return None
    only_a, only_b = int(np.sum(a_D > b_D)), int(np.sum(b_D > a_D))
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def _named(groups: dict[tuple[str, int], list[Sample]]) -> str:
    return ", ".join(f"{task}@{shots}" for task, shots in groups) or "none"
