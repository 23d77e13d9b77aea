"""BLEU and ROUGE against sacrebleu and rouge-score."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.evaluation import text_metrics
from lmjax.evaluation.task_metrics import generate, statistics

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=9).map(" ".join)
DOCUMENTS = st.lists(st.tuples(WORDS, WORDS.filter(bool), WORDS.filter(bool)), min_size=1, max_size=5)


def columns(documents: list[tuple[str, str, str]]) -> np.ndarray:
    rows = [text_metrics.measures(text, answers, ["bleu"]) for text, *answers in documents]
    return np.array([[row[name] for row in rows] for name in text_metrics.BLEU])


@given(DOCUMENTS)
@settings(max_examples=50, deadline=None)
def test_bleu_is_that_of_sacrebleu(documents: list[tuple[str, str, str]]) -> None:
    texts, *references = (list(column) for column in zip(*documents, strict=True))
    expected = sacrebleu.corpus_bleu(texts, references, smooth_method="exp", tokenize="intl").score
    assert text_metrics.bleu(columns(documents).sum(1)) == pytest.approx(expected, abs=1e-9)


def test_the_influence_of_a_document_is_the_derivative_of_its_weight() -> None:
    columns_KD = columns([("a b c d a b", "a b c d b a", "c"), ("c d a b a", "c d a b c a d", "b"), ("b b", "b", "d")])
    step = 1e-6
    for weight, found in zip(np.eye(3), text_metrics.bleu_influences(columns_KD), strict=True):
        moved, still = (text_metrics.bleu((columns_KD * (1 + sign * step * weight)).sum(1)) for sign in (1, -1))
        assert found == pytest.approx(3 * (moved - still) / (2 * step), abs=1e-3)
    assert not text_metrics.bleu_influences(columns([("d", "a", "b")])).any()  # no match: BLEU is 0


@pytest.mark.slow
def test_rouge_is_that_of_its_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    text, answers = "the cat sat . on a mat", ("the cat was on the mat", "a cat sat . on it")
    found = generate(text, answers, metrics=["rouge", "rougeL", "exact_str_match"])
    assert "exact_match" in found
    for name in text_metrics.ROUGE:
        plain = scorer.RougeScorer([name])
        lines = [answer.replace(" . ", " .\n ") for answer in answers]
        scores = [plain.score(answer, text.replace(" . ", " .\n "))[name].fmeasure for answer in lines]
        assert found[name] == pytest.approx(100 * max(scores))


def test_the_terms_of_bleu_are_no_metrics_of_their_own() -> None:
    measures = generate("a b c d e", ["a b c d e"], metrics=["bleu"])
    assert list(statistics("generate", list(measures))) == ["exact_match", "f1", "bleu"]


@pytest.mark.parametrize(
    ("kind", "asked", "missing"),
    [
        ("generate", ["bleu", "exact_str_match", "bleurt"], ["bleurt"]),
        ("generate", ["multiple_choice_grade"], ["multiple_choice_grade"]),
        ("choose", ["multiple_choice_grade", "exact_str_match"], ["exact_str_match"]),
        ("choose", [], []),
    ],
)
def test_metrics_that_are_not_computed_are_known(kind: str, asked: list[str], missing: list[str]) -> None:
    assert text_metrics.not_computed(kind, asked) == missing


def test_rouge_is_not_computed_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_metrics, "_has_rouge", lambda: False)
    assert text_metrics.not_computed("generate", ["rouge", "bleu"]) == ["rouge"]
    assert generate("a", ["a"], metrics=["rougeLsum"]) == {"exact_match": 1.0, "f1": 1.0}
