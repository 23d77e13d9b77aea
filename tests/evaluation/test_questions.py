"""Questions: what is asked, what does not fit, what no text can answer; with a scorer that is a hash."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lmjax.config import EvaluateConfig, UserError
from lmjax.data.tokenizer import Tokenizer
from lmjax.evaluation import evaluator, in_training, questions, scoring
from lmjax.evaluation.cache import Cache
from lmjax.evaluation.evaluator import evaluate
from lmjax.evaluation.report import notes
from lmjax.evaluation.scoring import Found, NoScore, Request
from lmjax.evaluation.settings import Settings
from lmjax.inference.language_model import LanguageModel
from lmjax.tasks import render
from lmjax.tasks.spec import ShotsConfig, Task, TaskConfig
from tests.evaluation import plain

CONTEXT = plain.GPT.context


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(type("Model", (), {"config": plain.GPT})(), {}, plain.CHARACTERS, name="hash")


def built(kind: Any, rows: Sequence[dict[str, Any]], **settings: Any) -> Task:
    named = {"name": kind, "joint": "\n", "prompt": "{input}:", "max_tokens": 4} | settings
    return render.build_task(TaskConfig(kind=kind, **named), [(str(n), row) for n, row in enumerate(rows)])


def hashed(request: Request) -> Found:
    """A log-probability that is a function of the request."""
    digest = hashlib.sha256(json.dumps(request).encode()).digest()
    return Found(-int.from_bytes(digest[:4], "big") / 2**32, digest[4] < 128)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that are scored, by their hashes."""
    listed: list[Request] = []

    def score(lm: Any, requests: Sequence[Request], *, share: bool, take: Callable[[dict[int, Found]], None]) -> None:
        listed.extend(requests)
        take({i: hashed(request) for i, request in enumerate(requests)})

    monkeypatch.setattr(scoring, "score", score)
    return listed


ROWS = [{"input": f"{i} is", "choices": ["a", "bb"], "answer": i % 2} for i in range(40)]


# ---- Chunks ---------------------------------------------------------------------------------------------------------


def test_chunks_give_the_same_result_and_ask_nothing_twice(
    lm: LanguageModel, asked: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, *ROWS[:7]]  # the last ones are asked for in another chunk again
    settings = Settings(shots=(0, 1))
    whole = evaluate(lm, [built("choose", rows)], settings)
    requests, steps = [*asked], list[tuple[int, int]]()
    asked.clear()
    monkeypatch.setattr(evaluator, "CHUNK", 200)
    parts = evaluate(lm, [built("choose", rows)], settings, progress=lambda done, total: steps.append((done, total)))
    assert parts == whole
    assert sorted(asked) == sorted(requests)
    assert len(set(asked)) == len(asked)
    assert steps[-1][0] == steps[-1][1] == len(asked)


def test_memory_of_requests_is_bounded(
    lm: LanguageModel, asked: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "CHUNK", 2000)
    sizes = []
    original = evaluator.answer

    def answer(lm: Any, chunk: Any, **named: Any) -> Any:
        sizes.append(sum(question.size for question in chunk))
        return original(lm, chunk, **named)

    monkeypatch.setattr(evaluator, "answer", answer)
    evaluate(lm, [built("choose", ROWS)], Settings(shots=(0, 2, 4)))
    assert len(sizes) > 3
    assert max(sizes) < 2000 + 200


def test_a_limit_takes_linear_time() -> None:
    rows = [{"input": str(i), "answer": "x"} for i in range(1000)]
    task = built("match", rows)
    tracemalloc.start()
    chosen = questions.limited(task.documents, 500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chosen) == 500
    ids = {document.id for document in chosen}
    assert chosen == [document for document in task.documents if document.id in ids]
    assert peak < 1_000_000  # one set of ids, not one for each document


# ---- Space ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [CONTEXT, CONTEXT + 1, 10**6])
def test_generated_tokens_that_leave_no_space_are_refused_with_the_numbers(lm: LanguageModel, tokens: int) -> None:
    task = built("generate", [{"input": "a", "answer": "b"}], max_tokens=tokens)
    with pytest.raises(
        UserError, match=rf"task 'generate': max_tokens = {tokens} leaves no space .* has {CONTEXT} tokens"
    ):
        evaluate(lm, [task])
    with pytest.raises(UserError, match=f"max_tokens = {tokens} leaves no space"):
        evaluate(lm, [built("generate", [{"input": "a", "answer": "b"}])], Settings(max_tokens=tokens))
    assert questions.space(lm, CONTEXT - 1) == 1


def test_a_recurrent_model_has_space_for_everything() -> None:
    lm = LanguageModel(type("Model", (), {"config": plain.FAMILIES["lstm"]})(), {}, plain.CHARACTERS)
    assert questions.space(lm, 10**6) == 0


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_prompt_is_cut_by_what_does_not_fit(prompt: int, max_tokens: int) -> None:
    lm = LanguageModel(type("Model", (), {"config": plain.GPT})(), {}, plain.CHARACTERS)
    task = built("generate", [{"input": "a" * prompt, "answer": "b"}], prompt="{input}", max_tokens=max_tokens)
    if max_tokens >= CONTEXT:
        with pytest.raises(UserError):
            [*questions.ask(lm, task, Settings())]
        return
    (question,) = questions.ask(lm, task, Settings())
    assert question.cut == (max(0, prompt + max_tokens - CONTEXT), 0)
    assert len(question.ids) == prompt - question.cut[0]


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_request_is_cut_by_what_does_not_fit(context: int, continuation: int) -> None:
    request = Request((1,) * context, (2,) * continuation)
    cut_context, cut_continuation = scoring.cut(request, CONTEXT)
    read, predicted = scoring._sequence(request, CONTEXT)
    assert cut_continuation == continuation - len(predicted)
    if not cut_continuation:
        assert cut_context == context + continuation - 1 - len(read)


def test_what_was_cut_is_in_the_sample_and_windows_are_no_cuts(lm: LanguageModel, asked: list[Request]) -> None:
    rows = [{"input": "a" * n, "choices": ["x", "y" * 60], "answer": 0} for n in (3, 60)]
    samples = evaluate(lm, [built("choose", rows)]).samples
    assert [(sample.truncated, sample.answer_truncated) for sample in samples] == [(3, 13), (60, 13)]
    texts = [{"text": "b" * 200}]
    (sample,) = evaluate(lm, [built("perplexity", texts, prompt="{text}")]).samples
    assert (sample.truncated, sample.answer_truncated) == (0, 0)


def test_documents_with_unknown_tokens_are_counted(lm: LanguageModel, asked: list[Request]) -> None:
    """Of the question, an example or an answer; a tokenizer without such a token has none."""
    backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, ":": 3, "<eos>": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    rows = [{"input": text, "answer": answer} for text, answer in (("a", "b"), ("z", "b"), ("b", "z"), ("b a", "a"))]
    result = evaluate(replace(lm, tokenizer=Tokenizer(backend)), [built("match", rows)])
    assert result.facts["unknown_tokens"] == {"match": 2}
    assert any("2 documents have text that the tokenizer cannot represent" in line for line in notes(result))
    assert evaluate(lm, [built("match", [{"input": "a", "answer": "b"}])]).facts["unknown_tokens"] == {}


def test_a_window_is_as_long_as_asked(lm: LanguageModel, asked: list[Request]) -> None:
    task = built("perplexity", [{"text": "abcdefghijklmnopqrstuvwxyzABCD"}], prompt="{text}")
    evaluate(lm, [task], Settings(window=7))
    assert [len(request.continuation) for request in asked] == [7, 7, 7, 7, 2]
    assert [len(request.context) for request in asked] == [1, 1, 1, 1, 6]
    with pytest.raises(UserError, match=f"window={CONTEXT + 1} is longer than the context of the model, {CONTEXT}"):
        evaluate(lm, [task], Settings(window=CONTEXT + 1))


# ---- The first token ------------------------------------------------------------------------------------------------


def test_what_precedes_a_text_is_chosen_and_in_the_result(lm: LanguageModel, asked: list[Request]) -> None:
    bos, end = 5, plain.CHARACTERS.end_of_text
    with_bos = replace(lm, bos=bos)
    task = built("perplexity", [{"text": "abcd"}], prompt="{text}")
    for first, context in (
        ("model", (bos,)),
        ("bos", (bos,)),
        ("end", (end,)),
        ("none", (plain.CHARACTERS.encode("a")[0],)),
    ):
        asked.clear()
        result = evaluate(with_bos, [task], Settings(first_token=first))
        assert asked[0].context == context
        assert len(asked[0].continuation) == 4 - (first == "none")
        assert result.samples[0].metrics["bytes"] == 4 - (first == "none")  # of what is predicted
        expected = None if first == "none" else plain.CHARACTERS.token_text(context[0])
        assert result.facts["first_token"] == expected
        assert result.settings["first_token"] == first
    with pytest.raises(UserError, match="nothing precedes the only token of 'a'"):
        evaluate(lm, [built("pairs", [{"good": "a", "bad": "b"}], prompt="")], Settings(first_token="none"))


# ---- Numbers of tokens, answers out of reach ------------------------------------------------------------------------


def test_the_number_of_tokens_is_derived_from_the_longest_answer(lm: LanguageModel) -> None:
    for length, tokens in ((3, 32), (30, 39)):  # the blank in front, and 8 more
        task = built("generate", [{"input": "a", "answer": ["b", "c" * length]}], max_tokens=0)
        assert questions.prepared(lm, task, Settings()).config.max_tokens == tokens
    assert questions.prepared(lm, task, Settings(max_tokens=9)).config.max_tokens == 9


def test_answers_that_no_text_can_equal_are_counted(lm: LanguageModel) -> None:
    answers: list[Any] = ["ok", "two\nlines", ["two\nlines", "ok"], "much too long", "ok\n"]
    task = built("generate", [{"input": str(i), "answer": answer} for i, answer in enumerate(answers)])
    assert questions.unreachable(lm, task, Settings()) == {"stop": 1, "max_tokens": 1}
    assert questions.unreachable(lm, built("match", [{"input": "a", "answer": "a\n"}]), Settings()) == {}


# ---- Examples in a fixed order --------------------------------------------------------------------------------------


def test_seeds_do_not_repeat_what_is_fixed(lm: LanguageModel, asked: list[Request]) -> None:
    drawn = evaluate(lm, [built("choose", ROWS)], Settings(shots=(2,), seeds=3, limit=5))
    first = evaluate(lm, [built("choose", ROWS, shots=ShotsConfig(first=True))], Settings(shots=(2,), seeds=3, limit=5))
    assert (len(drawn.samples), len(first.samples)) == (15, 5)
    assert all(sample.prompt.startswith("0 is: a\n1 is: bb\n") for sample in first.samples if int(sample.id) > 1)


# ---- Scores that are not numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["choose", "match", "pairs", "perplexity"])
def test_a_score_that_is_not_a_number_names_the_document_and_is_not_kept(
    kind: str, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(lm: Any, requests: Sequence[Request], **named: Any) -> None:
        raise NoScore(next(i for i, request in enumerate(requests) if len(request.continuation) > 3))

    monkeypatch.setattr(scoring, "score", score)
    rows = [{"input": "a", "choices": ["b", "c" * n], "answer": "c" * n, "good": "b", "bad": "c" * n} for n in (1, 5)]
    rows = [row | {"answer": row["choices"][1]} for row in rows]
    task = built(kind, rows, **({"prompt": "{bad}"} if kind == "perplexity" else {}))
    with pytest.raises(UserError, match=f"the task '{kind}', document '1': .* not a number, which has no rank"):
        evaluate(lm, [task])
    task = built("choose", ROWS[:1])
    cache = Cache(None)
    question = next(questions.ask(lm, task, Settings()))
    cache.add({evaluator._key(request): (float("nan"), False) for r in question.asked.values() for request in r})
    with pytest.raises(UserError, match="the task 'choose', document '0': the score of option 0 is nan"):
        evaluate(lm, [task], cache=cache)


def test_a_run_that_diverged_has_no_accuracy(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(lm: Any, requests: Sequence[Request], **named: Any) -> None:
        raise NoScore(0)

    monkeypatch.setattr(scoring, "score", score)
    found = in_training.measure(lm, [built("choose", ROWS)], EvaluateConfig(shots=(0, 1)))
    assert list(found) == ["val_choose_0_shot", "val_choose_1_shot"]
    assert np.isnan([*found.values()]).all()


def test_settings_without_an_effect_are_refused(lm: LanguageModel) -> None:
    task = built("match", [{"input": "a", "answer": "b"}])
    for name in ("mutual_info", "calibrated"):
        with pytest.raises(UserError, match="no task is of kind 'choose'"):
            evaluate(lm, [task], Settings(**{name: True}))
    for name, kind in (("window", "perplexity"), ("max_tokens", "generate")):
        with pytest.raises(UserError, match=f"{name}=3 is for tasks of kind '{kind}', and there is none"):
            evaluate(lm, [task], Settings(**{name: 3}))
        with pytest.raises(UserError, match=f"{name}=-1 must be at least 1"):
            Settings(**{name: -1})
