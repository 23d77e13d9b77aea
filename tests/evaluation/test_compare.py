"""Two results side by side, against SciPy's tests and against all permutations, one by one."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lmjax.config import UserError
from lmjax.display.console import Console
from lmjax.evaluation.compare import compare_results, mcnemar, permutation, print_comparison
from lmjax.evaluation.results import Result, Sample
from lmjax.evaluation.task_metrics import Statistic
from lmjax.tasks.spec import TaskConfig


def made(model: str, values: Sequence[float], *, metric: str = "f1", seed: int = 0, **changes: object) -> Result:
    samples = (Sample("task", str(i), 1, seed, "", "", (), {metric: float(value)}) for i, value in enumerate(values))
    return Result(model, tuple(replace(sample, **changes) for sample in samples), {"task": TaskConfig(kind="generate")})


@pytest.mark.parametrize("count", [8, 40])
def test_the_paired_test_is_that_of_scipy(count: int) -> None:
    random = np.random.default_rng(count)
    a = random.random(count)
    b = a + random.normal(0.1, 0.3, count)
    (row,) = compare_results(made("a", a), made("b", b))
    expected = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis), permutation_type="samples", vectorized=True, rng=1
    )
    assert row.difference == pytest.approx(expected.statistic)
    assert row.p_value == pytest.approx(
        expected.pvalue, abs=1e-12 if count == 8 else 0.02
    )  # 40: both draw 9999 and more
    paired = stats.ttest_rel(b, a)
    assert row.stderr == pytest.approx(row.difference / paired.statistic)
    assert row.mcnemar is None


@pytest.mark.parametrize(("only_a", "only_b"), [(2, 7), (5, 5), (0, 3), (0, 0), (400, 900)])
def test_right_or_wrong_is_tested_by_mcnemar(only_a: int, only_b: int) -> None:
    a = np.array([1] * only_a + [0] * only_b + [1, 0, 1])
    b = np.array([0] * only_a + [1] * only_b + [1, 0, 1])
    total = only_a + only_b
    expected = stats.binomtest(only_a, total).pvalue if total else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    if total <= 16:  # all sign flips of +-1 are the same binomial
        (row,) = compare_results(made("a", a, metric="acc"), made("b", b, metric="acc"))
        assert row.p_value == row.mcnemar == pytest.approx(expected)


def test_perplexities_are_swapped_document_by_document() -> None:
    random = np.random.default_rng(3)
    a_2D, b_2D = (np.stack([-random.gamma(5, 10, 7), random.integers(5, 40, 7).astype(float)]) for _ in range(2))
    statistic = Statistic("logprob", "tokens", "perplexity")
    distances = []
    for swaps in itertools.product([False, True], repeat=7):
        first, second = np.where(swaps, b_2D, a_2D), np.where(swaps, a_2D, b_2D)
        distances.append(abs(np.exp(-first[0].sum() / first[1].sum()) - np.exp(-second[0].sum() / second[1].sum())))
    expected = np.mean(np.array(distances) >= distances[0] * (1 - 1e-9))
    assert permutation(statistic, a_2D, b_2D=b_2D) == expected


def test_seeds_of_a_document_count_as_one() -> None:
    a = [made("a", [0.0, 1.0, 1.0, 0.0], seed=seed) for seed in (0, 1)]
    b = [made("b", values, seed=seed) for seed, values in ((0, [1.0, 1.0, 1.0, 0.0]), (1, [0.0, 1.0, 1.0, 1.0]))]
    (row,) = compare_results(*(replace(one, samples=one.samples + two.samples) for one, two in (a, b)))
    moved = np.array([0.5, 0, 0, 0.5])  # the mean over both seeds
    assert (row.count, row.unmatched, row.mcnemar) == (4, 0, None)
    assert row.difference == moved.mean()
    assert row.stderr == pytest.approx(moved.std(ddof=1) / 2)
    assert row.p_value == 0.5  # of four sign flips two are as far apart


def test_only_what_both_have_is_compared() -> None:
    a, b = made("model a", [1.0, 0.5, 0.0, 1.0]), made("model b", [0.5, 0.25, 1.0])
    b = replace(b, samples=(*b.samples[::-1], replace(b.samples[0], id="new")))
    (row,) = compare_results(a, b)
    assert (row.a, row.count, row.unmatched) == (0.5, 3, 2)
    assert row.b == pytest.approx(1.75 / 3)
    file = io.StringIO()
    print_comparison([row], Console(file, width=120), names=("model a", "model b"))
    assert file.getvalue().split("\n")[1].strip() == "a: model a, b: model b"
    cells = ["task", "1", "f1", "0.500", "0.583", "+0.083", f"{row.stderr:.3f}", f"{row.p_value:.2g}", "3"]
    assert cells in [line.split() for line in file.getvalue().splitlines()]
    assert "up to 2 documents" in file.getvalue()


def test_results_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(UserError, match=r"one has task@1, the other task@5; evaluate both with the same tasks"):
        compare_results(made("a", [1.0]), made("b", [1.0], shots=5))
