"""Every kind of task against plain sums of forward passes, models whose answers are known, evaluations cut short."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.evaluation import evaluator, scoring, task_metrics
from lmjax.evaluation.cache import Cache
from lmjax.evaluation.evaluator import evaluate
from lmjax.evaluation.questions import CONTENT_FREE
from lmjax.evaluation.results import Result, Sample
from lmjax.evaluation.settings import Settings
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.tasks import render, shots
from lmjax.tasks.spec import Task, TaskConfig
from tests.evaluation import plain

KINDS = ("choose", "match", "generate", "pairs", "perplexity")
LOWER, UPPER = "abcdefghijklmnopqrstuvwx", "ABCDEFGHIJKLMNOPQRSTUVWX"


def built(kind: Any, rows: Iterable[dict[str, Any]], **settings: Any) -> Task:
    given = {"name": kind, "joint": "\n", "prompt": "{input}:", "max_tokens": 4} | settings
    return render.build_task(TaskConfig(kind=kind, **given), [(str(n), row) for n, row in enumerate(rows)])


def capitals(kind: Any) -> Task:
    """The capital of each letter."""
    if kind == "pairs":
        return built(
            kind,
            [{"good": a + ": " + b, "bad": a + ": " + b.lower()} for a, b in zip(LOWER, UPPER, strict=True)],
            prompt="",
        )
    rows = []
    for i, (a, b) in enumerate(zip(LOWER, UPPER, strict=True)):
        others = [UPPER[(i + 5 * n) % 24] for n in range(1, 4)]
        rows.append({"input": a, "answer": b, "choices": [*others[: i % 4], b, *others[i % 4 :]]})
    if kind == "perplexity":
        return built(kind, rows, prompt="{input}: {answer}\n{input}: {answer}")
    return built(kind, rows)


@pytest.fixture(scope="module")
def rough() -> LanguageModel:
    return plain.language_model(plain.GPT)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SHORTEST", 64)


def outcomes(result: Result) -> dict[tuple[str, str, int, int], Sample]:
    return {(s.task, s.id, s.shots, s.seed): s for s in result.samples}


def numbers(sample: Sample) -> list[float]:
    return [float(r[0]) for r in sample.responses]


# ---- Models whose answers are known ---------------------------------------------------------------------------------


def oracle() -> LanguageModel:
    """Behind a letter and a colon it says its capital, and behind that a new line."""
    id_of = {character: plain.CHARACTERS.encode(character)[0] for character in plain.LETTERS}
    one, two = np.zeros((plain.V, plain.V)), np.zeros((plain.V, plain.V))
    for a, b in zip(LOWER, UPPER, strict=True):
        one[id_of[a], id_of[":"]] = one[id_of[b], id_of["\n"]] = 90
        two[id_of[a], id_of[b]] = 30  # while the last one is the colon
    return plain.trigrams(one, two)


def test_an_oracle_is_always_right() -> None:
    tasks = [dataclasses.replace(capitals(kind)) for kind in ("choose", "match", "generate")]
    tasks = [Task(dataclasses.replace(t.config, separator=""), t.documents, t.pool) for t in tasks]
    scores = evaluate(oracle(), tasks, Settings(shots=(0, 2), seeds=2)).scores()
    for kind, metric in (("choose", "acc"), ("choose", "acc_norm"), ("match", "exact_match"), ("generate", "f1")):
        for count in (0, 2):
            assert scores[kind, count][metric].value == 1
    assert scores["choose", 0]["brier"].value == pytest.approx(0, abs=1e-6)


def test_a_model_that_knows_nothing_is_at_chance() -> None:
    nothing = plain.trigrams(np.zeros((plain.V, plain.V)), np.zeros((plain.V, plain.V)))
    tasks = [capitals("choose"), capitals("match"), capitals("perplexity")]
    result = evaluate(nothing, tasks, Settings(mutual_info=True, calibrated=True))
    scores = result.scores()
    found = scores["choose", 0]
    assert tasks[0].config.chance == 0.25
    # Every choice is as likely as the others: the first is taken, which is right a quarter of the time.
    for name in ("acc", "acc_norm", "acc_mutual_info", "acc_calibrated"):
        assert found[name].value == 0.25
    assert found["brier"].value == pytest.approx(0.75)
    assert scores["match", 0]["logprob"].value == pytest.approx(-2 * np.log(plain.V), rel=1e-6)
    assert scores["perplexity", 0]["token_perplexity"].value == pytest.approx(plain.V, rel=1e-6)
    assert scores["perplexity", 0]["bits_per_byte"].value == pytest.approx(np.log2(plain.V), rel=1e-6)


# ---- Every kind, against plain sums ---------------------------------------------------------------------------------


def test_choices_are_scored_as_one_would_by_hand(rough: LanguageModel) -> None:
    chosen = capitals("choose")
    settings = Settings(shots=(0, 3), seeds=2, mutual_info=True)
    found = outcomes(evaluate(rough, [chosen], settings))
    assert len(found) == 24 * 3
    encode = rough.tokenizer.encode
    for (_, id, count, seed), sample in list(found.items())[::5]:
        document = next(d for d in chosen.documents if d.id == id)
        prompt = shots.render_prompt(chosen, document, count, seed=seed, described=False)
        assert sample.prompt == prompt
        assert sample.target == document.answers[0]
        expected = [plain.say(rough, encode(prompt), encode(" " + choice)) for choice in document.choices]
        # sums of two float32 log-probabilities, of arrays of other shapes
        np.testing.assert_allclose(numbers(sample), [one.logprob for one in expected], rtol=1e-5, atol=1e-5)
        assert [r[1] for r in sample.responses] == [one.greedy for one in expected]
        alone = [plain.say(rough, rough.ids(""), encode(" " + choice)).logprob for choice in document.choices]
        named = {"gold": document.gold, "unconditional": alone}
        measured = task_metrics.choose([one.logprob for one in expected], document.choices, **named)
        assert sample.metrics == pytest.approx(measured, abs=1e-5)


def test_calibration_puts_nothing_in_the_place_of_the_question(rough: LanguageModel) -> None:
    chosen = capitals("choose")
    encode = rough.tokenizer.encode
    for sample in evaluate(rough, [chosen], Settings(limit=6, calibrated=True)).samples:
        document = next(d for d in chosen.documents if d.id == sample.id)
        free = [
            [plain.say(rough, encode(text + ":"), encode(" " + choice)).logprob for choice in document.choices]
            for text in CONTENT_FREE
        ]
        named = {"gold": document.gold, "content_free": free}
        measured = task_metrics.choose(numbers(sample), document.choices, **named)
        assert sample.metrics == pytest.approx(measured, abs=1e-5)


def test_texts_and_accepted_answers_are_scored_as_one_would_by_hand(rough: LanguageModel) -> None:
    rows = [{"input": a, "answer": [b, b + "1"]} for a, b in zip(LOWER, UPPER, strict=True)]
    texts = [{"input": (a + ": " + b + "\n") * n} for n, (a, b) in enumerate(zip(LOWER, UPPER, strict=True), 1)]
    match, text, pairs = built("match", rows), built("perplexity", texts, prompt="{input}"), capitals("pairs")
    found = outcomes(evaluate(rough, [match, text, pairs]))
    encode, start = rough.tokenizer.encode, rough.ids("")
    for n in (0, 7, 23):
        sample, row = found["match", str(n), 0, 0], rows[n]
        expected = [plain.say(rough, encode(row["input"] + ":"), encode(" " + one)) for one in row["answer"]]
        assert numbers(sample) == pytest.approx([one.logprob for one in expected], rel=1e-5)
        sizes = [(1 + len(one), 1) for one in row["answer"]]  # tokens, with the blank in front, and words
        assert sample.metrics == pytest.approx(task_metrics.match([tuple(one) for one in expected], sizes), rel=1e-5)

        sample, document = found["pairs", str(n), 0, 0], pairs.documents[n]
        logprobs = [plain.say(rough, start, encode(one)).logprob for one in document.choices]
        assert numbers(sample) == pytest.approx(logprobs, rel=1e-5)
        assert sample.metrics == {"acc": float(logprobs[0] > logprobs[1])}

        sample, written = found["perplexity", str(n), 0, 0], texts[n]["input"]
        whole, total = [*start, *encode(written)], 0.0
        for begin in range(0, len(whole) - 1, 48):  # windows as long as the context, each filled up on its left
            end = min(begin + 48, len(whole) - 1)
            total += plain.say(rough, whole[max(0, end - 48) : begin + 1], whole[begin + 1 : end + 1]).logprob
        measured = {"logprob": total, "tokens": len(written), "bytes": len(written), "words": len(written.split()) + 1}
        assert sample.metrics == pytest.approx(measured, rel=1e-5)


def test_generated_texts_are_those_of_generate() -> None:
    """A prompt too long for the context and the answer loses its beginning."""
    lm = plain.language_model(plain.FAMILIES["gpt2"])
    made = built("generate", [{"input": a, "answer": b} for a, b in zip(LOWER, UPPER, strict=True)], stop=("x", "?"))
    samples = evaluate(lm, [made], Settings(shots=(9,), limit=8)).samples
    prompts = [lm.tokenizer.encode(sample.prompt) for sample in samples]
    assert {len(ids) for ids in prompts} == {9 * 5 + 2}
    sampling = Sampling(max_tokens=4, temperature=0, stop=("x", "?"))
    texts = generate(lm, [ids[-44:] for ids in prompts], sampling=sampling)
    for sample, text in zip(samples, texts, strict=True):
        assert sample.responses == (text,)
        assert sample.metrics == task_metrics.generate(text, [sample.target])


# ---- What must not matter -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_outcome_is_its_own_whatever_else_is_asked(rough: LanguageModel) -> None:
    chosen, matched = capitals("choose"), capitals("match")
    whole = outcomes(evaluate(rough, [chosen, matched], Settings(shots=(0, 1, 4), seeds=3)))
    assert sum(count == 0 for _, _, count, _ in whole) == 2 * 24  # once, whatever the seeds
    assert len(whole) == 2 * 24 * (1 + 3 + 3)
    few = outcomes(evaluate(rough, [matched, chosen], Settings(shots=(4, 0), seeds=2, limit=7), share=False))
    assert len(few) == 2 * 7 * (1 + 2)
    assert few.keys() < whole.keys()
    fewer = {key[:2] for key in outcomes(evaluate(oracle(), [chosen], Settings(limit=5)))}
    assert fewer < {key[:2] for key in few}
    turned = Task(chosen.config, chosen.documents[::-1], chosen.pool)
    other = outcomes(evaluate(rough, [turned], Settings(shots=(4,))))
    for part in (few, other):
        for key, sample in part.items():
            assert sample.prompt == whole[key].prompt
            assert sample.metrics == pytest.approx(whole[key].metrics, abs=1e-5)
            np.testing.assert_allclose(numbers(sample), numbers(whole[key]), rtol=1e-5, atol=1e-5)
    prompts = {whole["choose", "3", 4, seed].prompt for seed in range(3)}
    assert len(prompts) == 3


# ---- An evaluation that is stopped ----------------------------------------------------------------------------------


def counted(lm: LanguageModel, tasks: list[Task], path: Path | None, *, stop: float = 1.0) -> tuple[Result | None, int]:
    """The result, or None if it was killed once that share was answered; and how many answers were computed."""
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        if total and stop < 1 and done / total > stop:
            raise KeyboardInterrupt

    try:
        result = evaluate(lm, tasks, Settings(shots=(0, 2)), cache=Cache(path), progress=progress)
    except KeyboardInterrupt:
        return None, steps[-1][0]
    assert steps[-1][0] == steps[-1][1] == steps[0][1]
    return result, steps[-1][0]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PLACES", 1024)
    monkeypatch.setattr(evaluator, "ROWS", 4)
    rough = plain.language_model(plain.FAMILIES["nnlm"])
    tasks, path = [capitals("choose"), capitals("generate")], tmp_path / "answers.jsonl"
    whole, wanted = counted(rough, tasks, None)
    assert wanted == 2 * 24 * 4 + 2 * 24
    answered = 0
    for share in (0.1, 0.9):  # among log-probabilities, and among texts
        stopped, more = counted(rough, tasks, path, stop=share)
        assert stopped is None
        answered += more
    assert 0 < answered < wanted
    written = path.read_bytes()
    path.write_bytes(written[:-9])  # torn: at most one answer is asked for again
    result, rest = counted(rough, tasks, path)
    assert 0 <= answered + rest - wanted <= 1
    assert whole is not None
    assert result is not None
    for sample, expected in zip(result.samples, whole.samples, strict=True):
        assert sample.metrics == pytest.approx(expected.metrics, abs=1e-5)
    again, none = counted(rough, tasks, path)
    assert none == 0
    assert again == result


@pytest.mark.slow
def test_what_is_asked_twice_is_computed_once(rough: LanguageModel) -> None:
    rows = [{"input": "a", "answer": "B"}] * 5
    for kind in ("match", "generate"):
        same = built(kind, rows)
        totals: list[int] = []
        evaluate(rough, [same], cache=Cache(None), progress=lambda done, total, totals=totals: totals.append(total))
        assert totals == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": ()}, "numbers of examples must be distinct"),
        ({"shots": (1, 1)}, "numbers of examples must be distinct"),
        ({"shots": (-1,)}, "and at least 0"),
        ({"seeds": 0}, "at least 1"),
        ({"limit": -1}, "at least 1"),
        ({"limit": 2.5}, r"limit=2\.5 must be at least 1 \(or 0: not set\), and an integer"),
        ({"seeds": float("nan")}, "seeds=nan must be at least 1, and an integer"),
        ({"max_tokens": 2.0}, "and an integer"),
        ({"window": "3"}, "and an integer"),
        ({"shots": 3}, "distinct integers"),
        ({"shots": (0.5,)}, "distinct integers"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_what_cannot_be_asked_is_refused_before_anything_is_computed(rough: LanguageModel) -> None:
    with pytest.raises(UserError, match="fewer than the 24 asked for"):
        evaluate(rough, [capitals("choose")], Settings(shots=(24,)))
    with pytest.raises(UserError, match="takes no examples"):
        evaluate(rough, [capitals("perplexity")], Settings(shots=(1,)))
    with pytest.raises(UserError, match="a task is named twice"):
        evaluate(rough, [capitals("choose"), capitals("choose")])
    with pytest.raises(UserError, match="antonyms"):
        evaluate(rough, ["antonym"])
