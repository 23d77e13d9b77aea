"""Rows become documents as the configuration says, and what does not fit is named with where it stands."""

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.codec import from_json
from lmjax.tasks import draws, render, spec
from lmjax.tasks.spec import Document, ShotsConfig, Task, TaskConfig


def make(config: TaskConfig, *rows: Any, **options: Any) -> Task:
    return render.build_task(config, [(f"row {i}", row) for i, row in enumerate(rows)], **options)


def test_a_question_with_an_answer() -> None:
    config = TaskConfig(kind="generate", prompt="{q} ->", answer="<{a}>")
    made = make(config, {"q": "hot", "a": ["cold", "cool"]}, {"id": "second", "q": 2, "a": 4, "group": "n", "key": "k"})
    assert made.documents == (
        Document(id="0", prompt="hot ->", answers=("<cold>", "<cool>"), group="<cold>", key="hot ->"),
        Document(id="second", prompt="2 ->", answers=("<4>",), group="n", key="k", named=True),
    )
    assert made.pool == made.documents


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("7", 1), (2, 2), ("2", 2), (True, 1), ("9", 0)],
    ids=["text", "index", "digits", "true", "text before digits"],
)
def test_the_right_choice_is_a_text_or_an_index(answer: Any, gold: int) -> None:
    made = make(TaskConfig(), {"input": "?", "choices": [9, 7, 8], "answer": answer})
    (document,) = made.documents
    assert (document.gold, document.answers) == (gold, (("9", "7", "8")[gold],))
    assert made.config.chance == pytest.approx(1 / 3)


def test_choices_may_be_templates_and_pairs_are_two_texts() -> None:
    config = TaskConfig(choices=("not {word}", "{word}"), answer="{label}")
    assert make(config, {"input": "", "word": "so", "label": 1}).documents[0].choices == ("not so", "so")
    (pair,) = make(TaskConfig(kind="pairs"), {"good": "Cats sleep.", "bad": "Cats sleeps."}).documents
    assert pair == Document(
        "0", "", ("Cats sleep.",), ("Cats sleep.", "Cats sleeps."), 0, group="Cats sleep.", key="Cats sleep."
    )
    blimp = TaskConfig(kind="pairs", choices=("{sentence_good}", "{sentence_bad}"))
    assert make(blimp, {"sentence_good": "a", "sentence_bad": "b"}).documents[0].choices == ("a", "b")


def test_a_text_has_no_answer_and_an_empty_one_is_no_document() -> None:
    made = make(TaskConfig(kind="perplexity", prompt="{text}"), {"text": ""}, {"text": "Some text."})
    assert made.documents == (Document(id="1", prompt="Some text.", answers=(), key="Some text."),)


def test_a_row_may_bring_its_own_examples() -> None:
    row = {"id": "m", "input": "a", "answer": "x", "examples": [{"input": "b", "answer": "y"}]}
    (document,) = make(TaskConfig(kind="generate"), row).documents
    assert [(one.id, one.prompt, one.answers) for one in document.examples] == [("m/0", "b", ("y",))]


def test_a_share_is_held_out_by_keys_and_never_shown() -> None:
    rows = [{"input": f"q{i}", "answer": i, "examples": [{"input": f"q{i + 1}", "answer": 0}]} for i in range(400)]
    config = TaskConfig(kind="generate")
    tested, trained = (make(config, *rows, held_out_share=0.25, held_out=held_out) for held_out in (True, False))
    keys = [{one.key for one in half.documents} for half in (tested, trained)]
    assert keys[0] | keys[1] == {f"q{i}" for i in range(400)}
    assert not keys[0] & keys[1]
    assert len(keys[0]) == pytest.approx(100, abs=35)  # four standard deviations
    assert tested.pool == trained.pool
    assert {one.key for one in trained.pool} == keys[1]
    assert not any(draws.held_out(one.key, 0.25) for document in trained.documents for one in document.examples)
    for half in (tested, trained):  # ids stay those of the rows
        assert all(f"q{document.id}" == document.prompt for document in half.documents)
    with pytest.raises(UserError, match="of 400 rows none is left where the share held out is 1"):
        make(config, *rows, held_out_share=1.0, held_out=False)


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        (TaskConfig(name="t"), [], "the task 't' has no rows"),
        (TaskConfig(), [["input"]], "row 0: expected an object with fields, got list"),
        (TaskConfig(), [{"input": "a"}], "row 0: there is no field 'choices', only 'input'"),
        (TaskConfig(), [{"input": "a", "choices": "abc", "answer": 0}], "row 0: the field 'choices' is not a list"),
        (TaskConfig(), [{"input": "a", "choices": ["x"], "answer": 0}], "row 0: expected at least two choices"),
        (TaskConfig(choices=("x", "y")), [{"input": "a", "answer": 2}], "row 0: the answer '2' is neither one of"),
        (TaskConfig(choices=("x", "y")), [{"input": "a", "answer": -1}], "row 0: the answer '-1' is neither one of"),
        (TaskConfig(choices=("x", "y")), [{"input": "a", "answer": 0.0}], "row 0: the answer '0.0' is neither one of"),
        (TaskConfig(kind="match"), [{"input": "a", "answer": []}], "row 0: the answer is empty"),
        (
            TaskConfig(kind="match", answer="a"),
            [{"input": "a", "id": 7}, {"input": "b", "id": "7"}],
            "row 1: the id '7'",
        ),
        (TaskConfig(kind="pairs"), [{"good": "a"}], "row 0: there is no field 'bad'"),
        (TaskConfig(kind="pairs"), [{"good": "a", "bad": "a"}], "row 0: the good and the bad text are equal, 'a'"),
        (TaskConfig(kind="choose", answer="0"), [{"input": "a", "choices": ["x"] * 10_001}], "has 10,001 texts"),
        (TaskConfig(group="mmlu//stem"), [], "group = 'mmlu//stem' has an empty part"),
        (TaskConfig(kind="match", answer="a"), [{"input": "a", "examples": 3}], "'examples' is not a list of rows"),
        (TaskConfig(prompt="{"), [], "has a '{' on its own"),
        (TaskConfig(filters=("(",)), [], "filters: '(' is no regular expression"),
        (TaskConfig(stop=("",)), [], "stop: an empty text"),
        (TaskConfig(max_tokens=-1), [], "max_tokens = -1 must be at least 1"),
        (TaskConfig(chance=2.0), [], "chance = 2.0 must be from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(config: TaskConfig, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(config, *rows)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- Settings that exclude each other -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TaskConfig(kind="generate", separator="\n"), "separator = '\\n' contains the stop '\\n'"),
        (TaskConfig(kind="generate", separator="A:\nB", stop=("x", "\n")), "contains the stop '\\n'"),
        (TaskConfig(kind="generate", choices=("a", "b")), "choices is set, but a task of kind 'generate'"),
        (TaskConfig(kind="match", filters=("a",)), "filters is set, but a task of kind 'match'"),
        (TaskConfig(kind="match", metrics=("bleu",)), "metrics is set"),
        (TaskConfig(kind="pairs", grades="scores"), "grades is set"),
        (TaskConfig(kind="perplexity", chance=0.5), "chance is set"),
        (TaskConfig(kind="perplexity", shots=ShotsConfig(first=True)), "shots is set"),
        (TaskConfig(shots=ShotsConfig(fixed=("0",), first=True)), "'fixed' and 'first' exclude each other"),
        (TaskConfig(shots=ShotsConfig(fixed=("{}",)), examples="pool.jsonl"), "'examples' has no use"),
        (TaskConfig(choices=("a", "b"), answer=""), "answer is empty"),
        (TaskConfig(kind="generate", filters=("(a+)+",)), "filters: the regular expression '(a+)+' repeats"),
        (TaskConfig(stop=("x",) * 101), "stop has a length of 101; at most 100 is allowed"),
        (TaskConfig(prefix="x" * (1 << 19)), "prefix has a length of"),
        (TaskConfig(prompt="x" * (1 << 19)), "prompt has a length of"),
        (TaskConfig(prompt="{input}" * 300, answer="{input}" * 201), "501 fields together; at most 500"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_settings_that_exclude_each_other_are_refused(config: TaskConfig, message: str) -> None:
    with pytest.raises(UserError) as error:
        spec.check(config)
    assert message in str(error.value)


@given(st.sampled_from(["choose", "match", "generate", "pairs", "perplexity"]), st.text(" \n#A", max_size=3))
def test_a_separator_is_refused_exactly_if_it_ends_a_generated_text(kind: Any, separator: str) -> None:
    config = TaskConfig(kind=kind, separator=separator, stop=("\n", "##"))
    contradicts = kind == "generate" and ("\n" in separator or "##" in separator)
    with pytest.raises(UserError) if contradicts else nullcontext():
        spec.check(config)


# ---- Identities -----------------------------------------------------------------------------------------------------


def test_new_fields_do_not_change_the_content_of_a_task() -> None:
    config = TaskConfig(name="t", choices=("a",))
    old = asdict(config)
    for name in ("shots", "group", "grades", "metrics"):
        del old[name]
    assert json.dumps(spec.content(config)) == json.dumps(old)
    document = Document("0", "p", ("a",), examples=(Document("1", "q", ("b",), named=True),), named=True)
    assert spec.content(document)["examples"] == [
        {
            "id": "1",
            "prompt": "q",
            "answers": ["b"],
            "choices": [],
            "gold": None,
            "examples": [],
            "group": "",
            "key": "",
        }
    ]
    assert "grades" in spec.content(replace(document, grades=(1.0,)))
    assert spec.content(TaskConfig(group="g"))["group"] == "g"


def test_a_digest_depends_on_the_question_and_its_answers_alone() -> None:
    document = Document("0", "p", ("a",))
    same = replace(document, id="7", named=True, key="k", group="g")
    assert spec.digest(document) == spec.digest(same)
    for other in (replace(document, prompt="q"), replace(document, answers=("b",)), replace(document, choices=("a",))):
        assert spec.digest(other) != spec.digest(document)


# ---- Grades and fixed examples --------------------------------------------------------------------------------------


def test_grades_are_those_of_the_field() -> None:
    config = TaskConfig(grades="scores[own]")
    row = {"input": "?", "choices": ["x", "y"], "answer": 0, "scores": {"own": [1, 0.5]}}
    assert make(config, row).documents[0].grades == (1.0, 0.5)
    for scores, message in (
        ([1], "not a list of 2 numbers"),
        ("xy", "not a list of 2 numbers"),
        ([1, float("nan")], "not finite"),
        ([1, 10**400], "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            make(config, row | {"scores": {"own": scores}})


def test_fixed_examples_are_rows_or_ids_in_their_order() -> None:
    rows = [{"id": i, "input": f"q{i}", "answer": f"a{i}"} for i in "abc"]
    shots = from_json(json.dumps({"fixed": ["c", {"input": "new", "answer": "n"}, "a"]}), ShotsConfig)
    made = make(TaskConfig(kind="generate", shots=shots), *rows)
    assert [one.prompt for one in made.fixed] == ["qc", "new", "qa"]
    numbered = TaskConfig(kind="generate", shots=from_json('{"fixed": [2, 0]}', ShotsConfig))
    made = make(numbered, *({"input": row["input"], "answer": "x"} for row in rows))
    assert [one.prompt for one in made.fixed] == ["qc", "qa"]
    for item, message in (("d", "has the id 'd'"), ({"input": "x"}, "item 1: there is no field 'answer'")):
        config = TaskConfig(kind="generate", shots=from_json(json.dumps({"fixed": [item]}), ShotsConfig))
        with pytest.raises(UserError, match=message):
            make(config, *rows)
