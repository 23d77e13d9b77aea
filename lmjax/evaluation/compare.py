"""Comparison of two results on the same documents, with significance tests."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from lmjax.config import UserError
from lmjax.display.console import Console
from lmjax.evaluation.results import Result, Sample, columns, has_measures
from lmjax.evaluation.task_metrics import Statistic, standard_error
from lmjax.tasks.spec import TaskConfig

Key = tuple[int, str, int]  # of a sample: its shot seed, its id or digest, and its number among equal ones

EXACT = 16  # with at most this number of differing documents the test enumerates all sign flips
FLIPS = 10_000  # random sign flips otherwise; the standard error of a p-value is at most 0.005
MOST = 2000  # tasks and numbers of shots
BLOCK = 1 << 22  # random signs in memory
_LISTED = 5  # tasks in a message
_LARGE = 10_000  # documents that only one model answers correctly, from which McNemar's test uses logarithms


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
    #: p-value of a two-sided paired permutation test; NaN if a value is not finite.
    p_value: float
    #: p-value of McNemar's exact test, if every measure is 0 or 1.
    mcnemar: float | None
    #: Number of documents that both results contain.
    count: int
    #: Number of pairs of document and shot seed that only one result contains.
    unmatched: int
    #: How the documents were paired: by the rows' own ids, by a hash of question and answers, or by the rows' numbers,
    #: if a result has no hashes.
    paired_by: Literal["id", "hash", "number"] = "id"
    #: Number of pairs with the same hash as another pair: the rows are equal, and paired in their order.
    duplicates: int = 0
    #: Number of pairs with the same id but another question, because the tasks have other templates.
    changed: int = 0


def compare_results(a: Result, b: Result) -> list[Row]:
    """Compare two results by the metrics that both contain.

    Samples match if they have the same task, number of shots, shot seed and document. A document is identified by its
    row's own id, or by a hash of question and answers if not all rows of both results have an id.

    Raises:
        UserError: No sample matches.
    """
    groups_a, groups_b = a.groups(), b.groups()
    common, rows = [key for key in groups_a if key in groups_b], []
    if len(common) > MOST:
        raise UserError(
            f"the results have {len(common)} tasks and numbers of shots in common; at most {MOST} fit a table"
        )
    for key in common:
        config_a, config_b = a.tasks[key[0]], b.tasks[key[0]]
        if config_a.kind == config_b.kind:
            pairing = pair(groups_a[key], groups_b[key], same_task=_rendering(config_a) == _rendering(config_b))
            rows += _rows(a, b, pairing)
    if not rows:
        raise UserError(
            f"the results have no document in common: one has {_named(groups_a)}, the other {_named(groups_b)}; "
            "evaluate both with the same tasks, shots and shot seeds"
        )
    return rows


def differences(a: Result, b: Result) -> list[str]:
    """Say what differs between two results besides the model.

    These are tasks that only one has, the settings of the evaluation, and the configurations of the tasks.
    """
    lines = []
    for name, only in (("a", a.groups().keys() - b.groups().keys()), ("b", b.groups().keys() - a.groups().keys())):
        if only:
            listed = ", ".join(f"{task} at {shots} shots" for task, shots in sorted(only)[:_LISTED])
            lines.append(f"only {name} has {listed}{' ...' if len(only) > _LISTED else ''}; not compared")
    settings_a, settings_b = (dict(result.settings) | _first_token(result) for result in (a, b))
    names = [name for name in settings_a if name in settings_b and name != "shots"]
    lines += _unequal("", [(name, settings_a[name], settings_b[name]) for name in names])
    for task in [task for task in a.tasks if task in b.tasks]:
        configs = asdict(a.tasks[task]), asdict(b.tasks[task])
        lines += _unequal(f"{task}: ", [(name, configs[0][name], configs[1][name]) for name in configs[0]])
    return lines


def _first_token(result: Result) -> dict[str, Any]:
    """What precedes a text without context, if it was chosen and not left to the model."""
    chosen = result.settings.get("first_token", "model") != "model"
    return {"first token": result.facts["first_token"]} if chosen and "first_token" in result.facts else {}


def _unequal(where: str, values: Sequence[tuple[str, Any, Any]]) -> list[str]:
    listed = ", ".join(f"{name} is {a!r:.60} and {b!r:.60}" for name, a, b in values if a != b)
    return [f"{where}the settings of a and b differ: {listed}"] if listed else []


# ---- Pairs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """The samples of one task and number of shots that two results have in common."""

    #: The pairs; both samples of a pair have the same id, which identifies the document.
    pairs: tuple[tuple[Sample, Sample], ...]
    #: See `Row`.
    unmatched: int
    #: See `Row`.
    paired_by: Literal["id", "hash", "number"]
    #: See `Row`.
    duplicates: int
    #: See `Row`.
    changed: int


def pair(a: Sequence[Sample], b: Sequence[Sample], *, same_task: bool) -> Pairing:
    """Pair the samples of two results by the documents.

    Args:
        a: The samples of the first result.
        b: The samples of the second result.
        same_task: Both results render a row in the same way, so that the same document has the same hash: samples with
            the same id and another hash are different documents, and have no partner.
    """
    hashed = all(sample.digest for sample in (*a, *b))
    named = all(sample.named for sample in (*a, *b))
    paired_by: Literal["id", "hash", "number"] = "id" if named else "hash" if hashed else "number"
    by_hash = paired_by == "hash"
    of_a, of_b = (_by_key(samples, by_hash=by_hash) for samples in (a, b))
    common = [key for key in of_a if key in of_b]
    different = {key for key in common if hashed and of_a[key].digest != of_b[key].digest}
    common = [key for key in common if not (same_task and key in different)]
    return Pairing(
        pairs=tuple((_identified(of_a[key], key), _identified(of_b[key], key)) for key in common),
        unmatched=len(of_a.keys() | of_b.keys()) - len(common),
        paired_by=paired_by,
        duplicates=sum(number > 0 for _, _, number in common),
        changed=len(different & set(common)),
    )


def _by_key(samples: Sequence[Sample], *, by_hash: bool) -> dict[Key, Sample]:
    """The samples by what identifies them; those with the same hash are numbered."""
    counts: Counter[tuple[int, str]] = Counter()
    keyed: dict[Key, Sample] = {}
    for sample in samples:
        name = (sample.seed, sample.digest if by_hash else sample.id)
        keyed[(*name, counts[name])] = sample
        counts[name] += by_hash
    return keyed


def _identified(sample: Sample, key: Key) -> Sample:
    return replace(sample, id=f"{key[1]} {key[2]}")


def _rendering(config: TaskConfig) -> tuple[Any, ...]:
    """The settings that the question, the options and the answers of a row depend on."""
    return config.prompt, config.answer, config.choices


# ---- Table ------------------------------------------------------------------------------------------------------


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
            *(
                "" if math.isnan(row.p_value) else f"{row.p_value:.2g}",
                *(["" if row.mcnemar is None else f"{row.mcnemar:.2g}"] if exact else []),
            ),
            row.count,
        )
        for row in rows
    ]
    header = ("task", "shots", "metric", "a", "b", "b - a", "±", "p", *(["McNemar"] if exact else []), "n")
    console.table(f"a: {names[0]}, b: {names[1]}", cells, header=header)
    if any(row.unmatched for row in rows):
        most = max(row.unmatched for row in rows)
        console.event(f"up to {most} documents of a task are in only one result and are ignored")
    said = {(row.task, row.shots): row for row in rows}
    for (task, shots), row in said.items():
        where = f"{task} at {shots} shots"
        if row.paired_by == "number":
            console.event(f"{where}: a result has no hashes of the questions; documents are paired by id or row number")
        if row.duplicates:
            console.event(f"{where}: {row.duplicates} documents equal another one and are paired in their order")
        if row.changed:
            console.event(f"{where}: {row.changed} documents have the same id but another question or other answers")


def _error(row: Row) -> str:
    return "" if math.isnan(row.stderr) else f"{row.stderr:.3f}"


def _rows(a: Result, b: Result, pairing: Pairing) -> list[Row]:
    """Compare the metrics that the samples of both results have."""
    if not pairing.pairs:
        return []
    names_b = b.statistics([sample for _, sample in pairing.pairs])
    common = a.statistics([sample for sample, _ in pairing.pairs])
    rows = []
    for name, statistic in common.items():
        measured = [both for both in pairing.pairs if all(has_measures(sample, statistic) for sample in both)]
        if name in names_b and measured:
            rows.append(_row(name, statistic, measured, pairing))
    return rows


def _row(name: str, statistic: Statistic, pairs: Sequence[tuple[Sample, Sample]], pairing: Pairing) -> Row:
    a_KD, b_KD = (columns([both[side] for both in pairs], statistic) for side in (0, 1))
    with np.errstate(invalid="ignore", over="ignore"):  # NaN for infinite perplexities
        value_a, value_b = (float(statistic.of(*x_KD.sum(1))) for x_KD in (a_KD, b_KD))
        moved_D = statistic.influences(*b_KD) - statistic.influences(*a_KD)
    single, first = len({sample.seed for sample, _ in pairs}) == 1, pairs[0][0]
    return Row(
        task=first.task,
        shots=first.shots,
        metric=name,
        a=value_a,
        b=value_b,
        difference=value_b - value_a,
        stderr=standard_error(moved_D),
        p_value=permutation(statistic, a_KD, b_KD=b_KD),
        mcnemar=mcnemar(a_KD[0], b_KD[0]) if single and statistic == Statistic(name) else None,
        count=a_KD.shape[1],
        unmatched=pairing.unmatched,
        paired_by=pairing.paired_by,
        duplicates=pairing.duplicates,
        changed=pairing.changed,
    )


def permutation(statistic: Statistic, a_KD: np.ndarray, *, b_KD: np.ndarray) -> float:
    """Two-sided p-value of the paired permutation test (Fisher 1935, section 21).

    Under the null hypothesis the two outcomes of a document are exchangeable: p is the share of assignments whose
    difference is at least as large as the observed difference. For a mean this is the sign-flip test. With at most
    `EXACT` differing documents the test enumerates all assignments. Otherwise it draws `FLIPS` assignments with a
    fixed seed and counts the observed one too (Phipson and Smyth 2010), so that p is never 0.

    Args:
        statistic: The metric.
        a_KD: K measures of D documents of the first result.
        b_KD: The same for the second result.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite measures, and sums that become infinite
        sum_K, half_KD = (a_KD + b_KD).sum(1) / 2, (b_KD - a_KD) / 2
    half_KD = half_KD[:, np.any(half_KD != 0, axis=0)]
    count = half_KD.shape[1]

    def distances(signs_PD: np.ndarray) -> np.ndarray:
        moved_KP = half_KD @ signs_PD.T
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite perplexities
            return np.abs(statistic.of(*(sum_K[:, None] + moved_KP)) - statistic.of(*(sum_K[:, None] - moved_KP)))

    true = distances(np.ones((1, count)))[0]
    if not math.isfinite(true):
        return math.nan
    least = true - 1e-12 * max(np.abs(statistic.of(*x_KD.sum(1))) for x_KD in (a_KD, b_KD))  # tolerates rounded sums
    if count <= EXACT:
        bits_PD = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(~(distances(1.0 - 2 * bits_PD) < least)))  # an infinite distance counts
    generator = np.random.default_rng(0)
    size = max(1, BLOCK // count)
    counts = (min(size, FLIPS - start) for start in range(0, FLIPS, size))
    blocks = (2.0 * generator.integers(0, 2, (rows, count)) - 1 for rows in counts)
    return (1 + sum(int(np.sum(~(distances(block_PD) < least))) for block_PD in blocks)) / (1 + FLIPS)


def mcnemar(a_D: np.ndarray, b_D: np.ndarray) -> float | None:
    """Two-sided p-value of McNemar's exact test; None if a measure is neither 0 nor 1.

    Null hypothesis: of the documents that exactly one model answers correctly, each model answers half on average
    (McNemar 1947, in its binomial form).
    """
    if not np.isin([a_D, b_D], (0, 1)).all():
        return None
    only_a, only_b = int(np.sum(a_D > b_D)), int(np.sum(b_D > a_D))
    total = only_a + only_b
    if total > _LARGE:  # the integers would have thousands of digits
        return min(1.0, 2 * math.exp(_log_tail(total, min(only_a, only_b))))
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def _log_tail(total: int, last: int) -> float:
    """Logarithm of the probability of at most `last` heads in `total` tosses of a coin."""
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(last + 1)]
    return float(np.logaddexp.reduce(logs)) - total * math.log(2)


def _named(groups: dict[tuple[str, int], list[Sample]]) -> str:
    return ", ".join(f"{task}@{shots}" for task, shots in groups) or "none"
