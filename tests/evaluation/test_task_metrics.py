"""The measures of one document, against lm-evaluation-harness where it is installed, and against their formulas."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.evaluation import task_metrics

CHOICES = ("ja", "naïve", "a long answer", "日本")


def test_a_choice_is_taken_as_the_harness_takes_it() -> None:
    task = pytest.importorskip("lm_eval.api.task")
    aggregate = pytest.importorskip("lm_eval.api.metrics")
    names = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score")
    random = np.random.default_rng(0)
    for _ in range(200):
        logprobs, prior = (np.round(-8 * random.random(4), 0) for _ in range(2))  # round: so that there are ties
        gold = int(random.integers(4))
        theirs = SimpleNamespace(
            config=SimpleNamespace(process_results=None),
            OUTPUT_TYPE="multiple_choice",
            _metric_fn_list=dict.fromkeys(names),
            doc_to_choice=lambda _: CHOICES,
            doc_to_target=lambda _, gold=gold: gold,
            multiple_input=0,
            multiple_target=0,
        )
        responses = [(value, False) for value in (*logprobs, *prior)]
        expected = task.ConfigurableTask.process_results(theirs, None, responses)
        expected["brier"] = aggregate.brier_score([expected.pop("brier_score")])
        found = task_metrics.choose(logprobs.tolist(), CHOICES, gold=gold, unconditional=prior.tolist())
        assert found == pytest.approx(expected, rel=1e-12)  # float64 throughout


def test_each_way_of_choosing_can_take_another_one() -> None:
    logprobs = [-3.0, -3.9, -8.2, -3.6]  # a character: -1.5, -0.78, -0.63, -1.8; a byte: -1.5, -0.65, -0.63, -0.6
    prior, content_free = [-3.0, -8.0, -8.2, -3.6], [[-5.0, -1.0, -3.0, -1.0]]
    taken: dict[str, int] = {}
    for gold in range(4):
        found = task_metrics.choose(logprobs, CHOICES, gold=gold, unconditional=prior, content_free=content_free)
        taken |= {name: gold for name, hit in found.items() if hit == 1}
    assert taken == {"acc": 0, "acc_norm": 2, "acc_bytes": 3, "acc_mutual_info": 1, "acc_calibrated": 0}


def test_calibration_divides_by_the_mean_probability_after_inputs_that_say_nothing() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        probabilities, first, second = (random.dirichlet(np.ones(4)) for _ in range(3))
        scale = random.uniform(0.1, 1, 3)  # unnormalised: the choices are not all that the model could say
        prior = np.diag(1 / ((first + second) / 2))
        gold = int(np.argmax(prior @ probabilities))
        rows = [np.log(scale[1] * first).tolist(), np.log(scale[2] * second).tolist()]
        logprobs = np.log(scale[0] * probabilities).tolist()
        assert task_metrics.choose(logprobs, CHOICES, gold=gold, content_free=rows)["acc_calibrated"] == 1


@pytest.mark.parametrize(
    ("text", "answers", "options", "exact", "f1"),
    [
        (" Paris ", ["Paris"], {}, 1, 1),
        ("paris", ["Lyon", "Paris"], {}, 1, 1),
        ("paris", ["Paris"], {"ignore_case": False}, 0, 1),
        ("Paris.", ["Paris"], {}, 0, 1),
        ("Paris.", ["Paris"], {"ignore_punctuation": True}, 1, 1),
        ("the big city", ["a city of light"], {}, 0, 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("to be or not to be", ["to be", "be"], {}, 0, 2 * (2 / 6) * 1 / (2 / 6 + 1)),
        ("so 7 + 5 = 12, yes", ["12"], {"filters": [r"= (\d+)"]}, 1, 1),
        ("A: 3\nA: 42 kg", ["42"], {"filters": [r"A: \d\d.*", r"\d+"]}, 1, 1),
        ("(b)", ["b"], {"filters": [r"\((?:(a)|(b))\)"]}, 1, 1),
        ("no number", ["", "number"], {"filters": [r"\d+"]}, 0, 0),
        ("the", ["a"], {}, 0, 1),  # nothing is left of either
    ],
)
def test_generated_text(text: str, answers: list[str], options: dict, exact: float, f1: float) -> None:
    assert task_metrics.generate(text, answers, **options) == pytest.approx({"exact_match": exact, "f1": f1})


def test_f1_is_that_of_squad() -> None:
    squad = pytest.importorskip("lm_eval.tasks.qasper.metrics")
    words = np.array(["a", "The", "cat", "cat,", "dog!", "sat", "it's"])
    random = np.random.default_rng(2)
    for _ in range(100):
        text, answer = (" ".join(words[random.integers(0, 7, size)]) + " x" for size in random.integers(1, 6, 2))
        assert task_metrics.generate(text, [answer])["f1"] == pytest.approx(squad.f1_abstractive([text], [answer]))


def test_a_filter_that_is_no_regular_expression_is_named() -> None:
    with pytest.raises(UserError, match=r"the filter '\(' is not a regular expression"):
        task_metrics.generate("text", ["text"], filters=["("])


def test_matches_and_pairs() -> None:
    assert task_metrics.match([(-2.0, False), (-3.0, True)]) == {"exact_match": 1, "logprob": -2}
    assert task_metrics.match([(-2.0, False)]) == {"exact_match": 0, "logprob": -2}
    assert [task_metrics.pairs(pair, gold=0)["acc"] for pair in ((-1, -2), (-2, -1), (-1, -1))] == [1, 0, 1]


def test_perplexities_are_added_up_as_the_harness_adds_them() -> None:
    harness = pytest.importorskip("lm_eval.api.metrics")
    task = pytest.importorskip("lm_eval.api.task")
    texts = (" Two words", "één\n\nwoord ", "x")
    measured = [task_metrics.perplexity(-3.5 * n, text, tokens=n) for n, text in enumerate(texts, start=2)]
    pairs = {unit: [(found["logprob"], found[unit]) for found in measured] for unit in ("tokens", "words", "bytes")}
    assert pairs["words"] == [
        (found["logprob"], task.Task.count_words(t)) for found, t in zip(measured, texts, strict=True)
    ]
    expected = {f"{unit[:-1]}_perplexity": harness.weighted_perplexity(pairs[unit]) for unit in pairs}
    expected["bits_per_byte"] = harness.bits_per_byte(pairs["bytes"])
    found = {
        name: statistic.of(*(sum(m[key] for m in measured) for key in (statistic.value, statistic.weight)))
        for name, statistic in task_metrics.statistics("perplexity", list(measured[0])).items()
    }
    assert found == pytest.approx(expected, rel=1e-12)


# ---- Scores without a rank ------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("scores", [[NAN, -1.0], [-1.0, NAN], [NAN, NAN], [INF, -1.0], [-INF, -INF]])
def test_scores_without_a_rank_are_refused(scores: list[float]) -> None:
    named: dict[str, Any] = {"gold": 0}
    for call in (
        lambda: task_metrics.choose(scores, ["a", "b"], **named),
        lambda: task_metrics.choose([-1.0, -2.0], ["a", "b"], unconditional=scores, **named),
        lambda: task_metrics.choose([-1.0, -2.0], ["a", "b"], content_free=[[-1.0, -1.0], scores], **named),
        lambda: task_metrics.pairs(scores, gold=0),
    ):
        with pytest.raises(UserError, match=r"which has no rank|every option has probability 0"):
            call()


def test_probability_0_has_a_rank() -> None:
    found = task_metrics.choose([-INF, -1.0], ["a", "b"], gold=1)
    assert (found["acc"], found["brier"]) == (1.0, 0.0)
    assert task_metrics.match([(-INF, False)]) == {"exact_match": 0.0, "logprob": -INF}
    with pytest.raises(UserError, match="no rank"):
        task_metrics.match([(NAN, True), (-1.0, False)])


def test_the_perplexity_of_answers_is_that_of_lambada() -> None:
    measures = [task_metrics.match([(logprob, False)], [(tokens, 1)]) for logprob, tokens in ((-2.0, 1), (-7.0, 3))]
    statistics = task_metrics.statistics("match", list(measures[0]))
    assert list(statistics) == ["exact_match", "logprob", "perplexity", "token_perplexity", "word_perplexity"]
    sums = {name: np.array(sum(m[name] for m in measures)) for name in ("logprob", "tokens", "words")}
    assert statistics["perplexity"].of(sums["logprob"], np.array(2)) == pytest.approx(np.exp(4.5))  # exp(-mean)
    assert statistics["token_perplexity"].of(sums["logprob"], sums["tokens"]) == pytest.approx(np.exp(9 / 4))
    assert task_metrics.lower_is_better("perplexity")
