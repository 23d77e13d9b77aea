"""Two results side by side, against SciPy's tests and against all permutations, one by one."""

import io
import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmjax.config import UserError
from lmjax.display.console import Console
from lmjax.evaluation import compare
from lmjax.evaluation.compare import compare_results, mcnemar, pair, permutation, print_comparison
from lmjax.evaluation.report import read_json
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


def test_what_differs_between_two_results_besides_the_model_is_named() -> None:
    a = replace(made("a", [1.0]), settings={"seeds": 1, "described": True, "shots": [1]}, facts={"first_token": "x"})
    assert compare.differences(a, a) == []
    tasks = {"task": TaskConfig(kind="generate", ignore_case=False)}
    b = replace(made("b", [1.0]), settings={"seeds": 2, "described": True, "shots": [0]}, tasks=tasks)
    assert compare.differences(a, b) == [
        "the settings of a and b differ: seeds is 1 and 2",
        "task: the settings of a and b differ: ignore_case is True and False",
    ]
    more = made("b", [1.0], task="other", shots=3)
    other = replace(b, samples=b.samples + more.samples, tasks=b.tasks | {"other": TaskConfig()}, settings={})
    assert compare.differences(made("a", [1.0]), other)[0] == "only b has other at 3 shots; not compared"


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
    assert permutation(statistic, a_2D, b_KD=b_2D) == expected


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


# ---- Pairs of documents ---------------------------------------------------------------------------------------------

WORDS = [f"word {i}" for i in range(6)]


def measured(words: Sequence[str], *, named: bool = False, prompt: str = "{input}", hashed: bool = True) -> Result:
    """A result whose measure is a function of the document alone."""
    samples = tuple(
        Sample(
            *("task", word if named else str(i), 0, 0, "", "", (), {"acc": len(word) + int(word[-1]) / 7}),
            digest=f"{prompt} {word}" if hashed else "",
            named=named,
        )
        for i, word in enumerate(words)
    )
    return Result("model", samples, {"task": TaskConfig(kind="generate", prompt=prompt)})


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.randoms(use_true_random=False), st.booleans())
def test_documents_are_paired_with_themselves_in_every_order(
    words: list[str], order: random.Random, named: bool
) -> None:
    """The same rows in another order, some of them missing: no document differs, and those left over are counted."""
    words = [*dict.fromkeys(words)] if named else words  # ids are unique, rows need not be
    left = order.sample(words, order.randint(1, len(words)))
    (row,) = compare_results(measured(words, named=named), measured(left, named=named))
    assert (row.difference, row.count, row.unmatched) == (0, len(left), len(words) - len(left))
    assert row.stderr == 0 or (len(left) == 1 and math.isnan(row.stderr))
    assert row.paired_by == ("id" if named else "hash")
    assert row.duplicates == len(left) - len(set(left))


def test_ids_of_one_result_do_not_match_row_numbers_of_the_other() -> None:
    a = replace(measured(WORDS[:3]), samples=tuple(replace(s, named=True) for s in measured(WORDS[:3]).samples))
    (row,) = compare_results(a, measured(WORDS[2::-1]))
    assert (row.paired_by, row.difference, row.stderr) == ("hash", 0, 0)


def test_the_same_id_of_another_document_has_no_partner() -> None:
    a, b = measured(WORDS[:3], named=True), measured(WORDS[:3], named=True)
    b = replace(b, samples=(replace(b.samples[0], digest="another"), *b.samples[1:]))
    (row,) = compare_results(a, b)
    assert (row.count, row.unmatched, row.changed) == (2, 2 - 1, 0)
    other = measured(WORDS[:3], named=True, prompt="{input}?")  # the same rows, shown in another way
    (row,) = compare_results(a, other)
    assert (row.count, row.unmatched, row.changed) == (3, 0, 3)


def test_results_of_older_versions_are_paired_by_number_which_is_said() -> None:
    old = measured(WORDS[:3], hashed=False)
    (row,) = compare_results(old, measured(WORDS[:3]))
    assert (row.paired_by, row.count) == ("number", 3)
    file = io.StringIO()
    print_comparison([row], Console(file, width=120))
    assert "documents are paired by id or row number" in file.getvalue()


def test_measures_that_one_sample_lacks_are_compared_on_the_others() -> None:
    a = measured(WORDS[:3])
    b = replace(a, samples=(replace(a.samples[0], metrics={}), *a.samples[1:]))
    assert [row.count for row in compare_results(a, b)] == [2]
    assert pair(a.samples, b.samples, same_task=True).unmatched == 0


def test_numbers_that_are_not_finite_have_no_p_value() -> None:
    (row,) = compare_results(made("a", [1.0, 0.0]), made("b", [float("nan"), 0.0]))
    assert math.isnan(row.p_value)
    infinite = np.array([[-1e6, -1e6], [1.0, 1.0]])
    assert math.isnan(permutation(Statistic("logprob", "tokens", "perplexity"), infinite, b_KD=infinite / 2))
    huge = np.array([[1e308, 1e308], [1.0, 1.0]])  # the sum is infinite
    assert math.isnan(permutation(Statistic("acc"), huge, b_KD=huge / 2))
    opposite = np.array([[math.inf, 0.0], [1.0, 1.0]])
    assert math.isnan(permutation(Statistic("logprob", "tokens", "perplexity"), opposite, b_KD=opposite))


def test_mcnemar_of_many_documents_takes_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.repeat([1, 0, 1], [400, 900, 50]), np.repeat([0, 1, 1], [400, 900, 50])
    exact = mcnemar(a, b)
    monkeypatch.setattr(compare, "_LARGE", 100)
    assert mcnemar(a, b) == pytest.approx(exact, rel=1e-9)


def test_blocks_of_signs_do_not_change_the_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    a_KD, b_KD = (np.stack([generator.random(40), np.ones(40)]) for _ in range(2))
    expected = permutation(Statistic("f1"), a_KD, b_KD=b_KD)
    monkeypatch.setattr(compare, "BLOCK", 40 * 333)
    assert permutation(Statistic("f1"), a_KD, b_KD=b_KD) == expected


HEAD = {"model": "m", "settings": {}, "sizes": {}, "samples": "", "tasks": {"t": {"kind": "match"}}}


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'{"lmjax": ' * 100_000,
        b"\xff\xfe{}",
        b"",
        b"null",
        json.dumps({"lmjax": HEAD}).encode(),
        json.dumps({"lmjax": HEAD, "documents": 3}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", 0]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["u", "0", 0, 0, {}]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", 0, 0, {"logprob": [1]}]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", 0, 0, {"logprob": 10**400}]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", float("inf"), 0, {}]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", 0, 0, {}, {"truncated": "x"}]]}).encode(),
        json.dumps({"lmjax": HEAD, "documents": [["t", "0", 0, 0, {f"m{i}": 1}] for i in range(200)]}).encode(),
        json.dumps({"lmjax": HEAD | {"tasks": {"t": {"kind": "x"}}}, "documents": []}).encode(),
        json.dumps({"lmjax": HEAD | {"unreachable": {"t": 3}}, "documents": []}).encode(),
    ],
    ids=range(16),
)
def test_a_hostile_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json'") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_a_file_of_an_older_version_and_missing_measures_are_read(tmp_path: Path) -> None:
    rows = [["t", "0", 0, 0, {"exact_match": 1.0, "logprob": -2}], ["t", "1", 0, 0, {"exact_match": None}]]
    (tmp_path / "a.json").write_text(json.dumps({"lmjax": HEAD, "documents": rows}))
    result = read_json(tmp_path / "a.json")
    assert math.isnan(result.samples[1].metrics["exact_match"])
    assert result.scores()["t", 0]["perplexity"].value == pytest.approx(np.exp(2))
    assert [row.metric for row in compare_results(result, result)] == ["exact_match", "logprob", "perplexity"]
