"""Verifiable rewards: what they accept, and that no text makes them fail or wait."""

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError, extensions
from lmjax.config.extensions import register_reward
from lmjax.config.rewards import (
    ExactMatchConfig,
    FunctionConfig,
    JSONSchemaConfig,
    NumberConfig,
    RegexConfig,
)
from lmjax.rl import rewards

ROW = {"answer": "42"}


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with extensions.foreign():
        yield


def rewarded(config: Any, text: str, row: Mapping[str, Any] = ROW) -> float:
    return rewards.build(config)(text, row)


# ---- Exact match --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "text", "expected", "value"),
    [
        ({}, " 42\n", "42", 1),
        ({}, "42.", "42", 0),
        ({}, "the  red\nbarn", "the red barn", 1),
        ({"ignore_space": False}, "the  red barn", "the red barn", 0),
        ({}, "Red", "red", 0),
        ({"ignore_case": True}, "STRASSE", "straße", 1),
        ({"ignore_punctuation": True}, "(red), barn!", "red barn", 1),
        ({}, "b", ["a", "b"], 1),
        ({}, "c", ["a", "b"], 0),
        ({}, "7", 7, 1),
        ({"after": "####"}, "so 3 #### no #### 42", "42", 1),
        ({"after": "####"}, "42", "42", 0),
        ({"after": "####"}, "6 * 7 #### 42", "7 * 6 = 42 #### 42", 1),  # conversations with their reasoning
        ({"after": "####"}, "6 * 7 #### 41", "7 * 6 = 42 #### 42", 0),
        ({}, "", "", 0),
        ({"ignore_punctuation": True}, "", ["?", "x"], 0),
        ({}, "", "42", 0),
        ({"ignore_punctuation": True}, "...", "42", 0),
    ],
)
def test_exact_match(named: dict[str, Any], text: str, expected: Any, value: float) -> None:
    assert rewarded(ExactMatchConfig(**named), text, {"answer": expected}) == value


def test_a_row_without_the_column_is_an_error() -> None:
    with pytest.raises(UserError, match=r"needs the column 'answer', which the row lacks .* it has: text, label"):
        rewarded(ExactMatchConfig(), "x", {"text": "a", "label": "b"})
    with pytest.raises(UserError, match="column 'answer' must hold a text or a list of texts"):
        rewarded(ExactMatchConfig(), "x", {"answer": {"a": 1}})
    with pytest.raises(UserError, match="column 'answer' must hold a text or a list of texts"):
        rewarded(ExactMatchConfig(), "x", {"answer": []})
    with pytest.raises(UserError, match="column 'answer' must hold a number, not 'many'"):
        rewarded(NumberConfig(), "x", {"answer": "many"})


# ---- Numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 7, not 8.", "8"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("3-5", "5"),
        ("(3)-4", "4"),
        ("5 - 3", "3"),
        ("- 7", "7"),
        ("x = -3", "-3"),
        ("+2", "2"),
        ("1,234,567", "1234567"),
        ("1,234.5", "1234.5"),
        ("1,2345", "2345"),
        ("1, 2", "2"),
        ("-$5.50", "-5.5"),
        ("$-5.50", "-5.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("2.5e-3", "0.0025"),
        ("1e5", "100000"),
        ("1e9999", "9999"),
        ("2024-05-03", "3"),
        ("12.5.3", "3"),
        ("3/4", "3/4"),
        ("-3 / 4 of it", "-3/4"),
        ("1/3/4", "4"),
        ("1/2 or 3", "3"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("007", "7"),
    ],
)
def test_the_last_number_is_read_exactly(text: str, number: str) -> None:
    assert rewards.number_reader()(text) == Fraction(number)


@pytest.mark.parametrize("text", ["", "none", "1/0", "½", "\u0663", "9" * 2000, "-", "e", ".", r"\frac{1}{0}"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert rewards.number_reader()(text) is None
    assert rewarded(NumberConfig(), text) == 0


def test_settings_of_numbers() -> None:
    assert rewards.number_reader("'")("1'000'000") == 1_000_000
    assert rewards.number_reader("")("1,234") == 234
    assert rewards.number_reader(fractions=False)("3/4") == 4
    assert rewarded(NumberConfig(), "42.0") == 1
    assert rewarded(NumberConfig(), "42.0001") == 0
    assert rewarded(NumberConfig(tolerance=0.3), "0.6", {"answer": 0.3}) == 1  # exact at the bound, unlike floats
    assert rewarded(NumberConfig(tolerance=0.3), "0.61", {"answer": 0.3}) == 0
    assert rewarded(NumberConfig(relative_tolerance=0.01), "-101", {"answer": -100}) == 1
    assert rewarded(NumberConfig(relative_tolerance=0.01), "-102", {"answer": -100}) == 0
    assert rewarded(NumberConfig(), "9", {"answer": "first 4, then #### 9"}) == 1
    assert rewarded(NumberConfig(after="####"), "42") == 0
    with pytest.raises(UserError, match="has '\\.', which is a part of a number"):
        rewards.build(NumberConfig(separators=",."))
    with pytest.raises(UserError, match=r"reward.tolerance = -1"):
        rewards.build(NumberConfig(tolerance=-1.0))


@settings(max_examples=40)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["It is {}.", "{}", "a{}b", "1 2 3 {} apples", "({})"]))
def test_integers_are_read_back_with_and_without_separators(value: int, form: str) -> None:
    expected = abs(value) if form == "a{}b" else value  # behind a letter, a minus is no sign
    assert rewards.number_reader()(form.format(value)) == expected
    assert rewards.number_reader()(form.format(f"{value:,}")) == expected


# ---- Expressions --------------------------------------------------------------------------------------------------


def test_expressions_match_a_part_or_all_of_an_answer() -> None:
    assert rewarded(RegexConfig(pattern=r"\d{4}-\d\d"), "in 2024-05.") == 1
    assert rewarded(RegexConfig(pattern=r"\d{4}-\d\d", complete=True), "in 2024-05") == 0
    assert rewarded(RegexConfig(pattern=r"\d{4}-\d\d", complete=True), " 2024-05\n") == 1
    assert rewarded(RegexConfig(pattern=r"^answer: {answer}$"), "answer: 42") == 1
    assert rewarded(RegexConfig(pattern=r"^answer: {answer}$"), "answer: 4+", {"answer": "4+"}) == 1
    assert rewarded(RegexConfig(pattern=r"^answer: {answer}$"), "answer: 444", {"answer": "4+"}) == 0
    with pytest.raises(UserError, match="needs the column 'other'"):
        rewarded(RegexConfig(pattern="{other}"), "x")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(a+)+b", "exponential"), (r"\w+\d+x", "cubic"), ("(", "not a regular expression"), ("", "is empty")],
)
def test_expressions_without_a_bound_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=f"reward.pattern.*{message}"):
        rewards.build(RegexConfig(pattern=pattern))


# ---- JSON ---------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$"},
        "age": {"type": "integer", "minimum": 0},
        "tree": {"$ref": "#/$defs/tree"},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "ann", "age": 3}', 1),
        (' {"name": "ann"}\n', 1),
        ('{"name": "Ann"}', 0),
        ('{"name": "ann", "age": -1}', 0),
        ('{"name": "ann", "age": true}', 0),
        ('{"age": 3}', 0),
        ('{"name": "ann", "other": 1}', 0),
        ('{"name": "ann", "name": "bob"}', 0),
        ('{"name": "ann", "age": NaN}', 0),
        ('{"name": "ann", "age": 1e999}', 0),
        ('{"name": "ann", "tree": [[], [[]]]}', 1),
        ('{"name": "ann", "tree": [[], [1]]}', 0),
        ('{"name": "ann"', 0),
        ('Here: {"name": "ann"}', 0),
        ('```json\n{"name": "ann"}\n```', 0),
        ("", 0),
    ],
)
def test_json_schema(text: str, value: float) -> None:
    assert rewarded(JSONSchemaConfig(schema=json.dumps(SCHEMA)), text) == value


def test_json_in_a_fence() -> None:
    config = JSONSchemaConfig(schema='{"type": "integer"}', fenced=True)
    assert [rewarded(config, text) for text in ("7", "So:\n```json\n7\n```", "```\n7\n```", "```7")] == [1, 1, 1, 0]


def test_the_draft_of_the_schema_counts() -> None:
    """Items as a list is a keyword of draft 7; draft 2020-12 has prefixItems for it."""
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    assert rewarded(JSONSchemaConfig(schema=json.dumps(old)), "[1]") == 0
    assert rewarded(JSONSchemaConfig(schema='{"prefixItems": [{"type": "string"}]}'), "[1]") == 0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "reward.schema is not JSON"),
        ('{"type": "text"}', "not a JSON schema: 'text' is not valid"),
        ('{"$ref": "https://example.org/x"}', r"'https://example.org/x' names another document"),
        ('{"$schema": 5}', r"reward.schema: \$schema = '5' is no draft"),
        ('{"$schema": "draft-07"}', r"\$schema = 'draft-07' is no draft"),
        ("5", "not a JSON schema"),
        ('{"$ref": "#/$defs/x"}', "has no part '#/\\$defs/x'"),
        ('{"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}', "begins another document"),
        ('{"pattern": "(a+)+b"}', "exponential"),
        ('{"patternProperties": {"(a+)+b": {}}}', "exponential"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.build(JSONSchemaConfig(schema=schema))


# ---- Functions ----------------------------------------------------------------------------------------------------


def test_a_registered_function_is_a_reward() -> None:
    register_reward("of_a_test", lambda text, row: len(text) / int(row["answer"]))
    assert rewarded(FunctionConfig(name="of_a_test"), "x" * 21) == 0.5
    with pytest.raises(UserError, match="'of_a_tes' is not registered; did you mean 'of_a_test'"):
        rewards.build(FunctionConfig(name="of_a_tes"))
    with pytest.raises(UserError, match="give a function"):
        register_reward("other", "len")  # type: ignore[arg-type]


def test_answers_for_which_a_function_fails_are_counted() -> None:
    def strict(text: str, row: Mapping[str, Any]) -> Any:
        if text == "exit":
            raise SystemExit(0)
        return {"nan": math.nan, "none": None, "large": 1e39}.get(text, int(text) if text.isdigit() else 1 / 0)

    register_reward("strict", strict)
    reward = rewards.build(FunctionConfig(name="strict"))
    scores = rewards.score(reward, ["3", "x", "nan", "none", "7", "exit", "large"], [ROW] * 7)
    assert scores.values_B.tolist() == [3, 0, 0, 0, 7, 0, 0]
    assert scores.failed == 5
    assert scores.failure == "the reward 'strict' raised ZeroDivisionError: division by zero"
    assert rewards.score(reward, ["1"], [ROW]).failed == 0


def test_a_function_gets_a_copy_of_the_row() -> None:
    register_reward("changes", lambda text, row: float(row.pop("answer")))  # type: ignore[attr-defined]
    row = dict(ROW)
    assert rewards.score(rewards.build(FunctionConfig(name="changes")), ["a", "b"], [row, row]).values_B.tolist() == [
        42,
        42,
    ]
    assert row == ROW


def test_a_function_that_depends_on_more_than_the_answer_is_refused() -> None:
    calls = itertools.count()
    register_reward("counts", lambda text, row: next(calls) % 5)
    with pytest.raises(
        UserError, match=r"'counts' gave 0.0, then 1.0 for the same answer; it must depend on the text and"
    ):
        rewards.score(rewards.build(FunctionConfig(name="counts")), ["a"], [ROW])
    register_reward("clock", lambda text, row: time.perf_counter())
    with pytest.raises(UserError, match=r"'clock' gave .* for the same answer"):
        rewards.score(rewards.build(FunctionConfig(name="clock")), ["a"], [ROW])


def test_a_text_is_no_reward() -> None:
    register_reward("texts", lambda text, row: "1.0")  # type: ignore[arg-type, return-value]
    scores = rewards.score(rewards.build(FunctionConfig(name="texts")), ["a"], [ROW])
    assert (scores.failed, scores.failure) == (
        1,
        "the reward 'texts' raised TypeError: '1.0' is a text; return a number",
    )


def test_a_function_that_never_returns_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "SECONDS", 0.05)

    def waits(text: str, row: Mapping[str, Any]) -> float:
        while True:
            time.sleep(0.01)

    register_reward("waits", waits)
    with pytest.raises(UserError, match=r"'waits' took more than 0.05 s for an answer of 1 characters"):
        rewards.score(rewards.build(FunctionConfig(name="waits")), ["x"], [ROW])


# ---- Hostile texts ------------------------------------------------------------------------------------------------

OWN = {
    "exact": ExactMatchConfig(ignore_case=True, ignore_punctuation=True, after="#"),
    "number": NumberConfig(tolerance=1.0),
    "regex": RegexConfig(pattern=r"\d+-\d+|a+b {answer}"),
    "schema": JSONSchemaConfig(
        schema='{"anyOf": [{"items": {"$ref": "#"}, "minItems": 1}, {"items": {"$ref": "#"}, "minItems": 1}], '
        '"multipleOf": 0.01, "uniqueItems": true}',
        fenced=True,
    ),
}
HOSTILE = (
    *("9" * 5000, "1e999999999", "-" * 5000, "1," * 3000, "1/" * 3000, "1e" * 3000, "a" * 5000, r"\frac{" * 900),
    *("[" * 5000, "[" * 30 + "]" * 30, "[" * 32 + "1" + "]" * 32, '{"a":' * 2000, "\ud800", "\0", "#" * 5000),
    *("[" + ",".join(f"[{i}]" if i % 2 else str(i) for i in range(300)) + "]", "0.1e308", "```json\n" * 500),
)


@pytest.mark.parametrize("name", OWN)
def test_hostile_texts_get_a_number_in_bounded_time(name: str) -> None:
    reward, start = rewards.build(OWN[name]), time.process_time()
    assert {reward(text, ROW) for text in HOSTILE} <= {0.0, 1.0}
    assert time.process_time() - start < 20  # about 1 s on a free machine; without the bounds, hours


BUILT = [rewards.build(config) for config in OWN.values()]
CHARACTERS = st.characters(exclude_categories=()) | st.sampled_from('0123456789.,-+eE/$ {}[]\\frac":')


@settings(max_examples=40)
@given(st.text(CHARACTERS, max_size=60))
def test_any_text_gets_the_same_number_twice(text: str) -> None:
    for reward in BUILT:
        assert reward(text, ROW) in (0.0, 1.0)
        assert reward(text, ROW) == reward(text, ROW)


def test_a_number_at_the_end_of_a_long_answer_counts() -> None:
    assert rewarded(NumberConfig(), "1 " * 10_000 + "42") == 1
    assert rewarded(RegexConfig(pattern="42"), "1 " * 10_000 + "42") == 1
