"""Rows of the formats of other trainers as turns."""

from typing import Any

import pytest

from lmjax.config import UserError
from lmjax.data.sources import chat_rows
from lmjax.data.sources.chat_rows import Turn

ASKED = [Turn("system", "Be brief.", False), Turn("user", "Two?", False), Turn("assistant", "2", True)]
MESSAGES = [{"role": turn.role, "content": turn.text} for turn in ASKED]
SHAREGPT = [{"from": name, "value": turn.text} for name, turn in zip(("system", "human", "gpt"), ASKED, strict=True)]


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("messages", {"messages": MESSAGES}),
        ("messages", {"messages": SHAREGPT}),
        ("messages", {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]}),
        ("messages", {"messages": [{**m, "role": m["role"].upper()} for m in MESSAGES], "prompt": "ignored"}),
        ("prompt_completion", {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]}),
        ("prompt_completion", {"prompt": MESSAGES[:2], "completion": "2", "text": None}),
        ("sharegpt", {"conversations": SHAREGPT, "id": 3}),
        ("sharegpt", {"system": "Be brief.", "conversations": SHAREGPT[1:]}),
    ],
)
def test_every_format_gives_the_same_turns(format: str, row: dict[str, Any]) -> None:
    assert chat_rows.turns(row, format, "here") == chat_rows.turns(row, "auto", "here") == ASKED


def test_texts_of_two_columns_are_a_question_and_an_answer() -> None:
    expected = [Turn("user", "Two?", False), Turn("assistant", " 2 ", True)]
    assert chat_rows.turns({"prompt": "Two?", "completion": " 2 "}, "auto", "here") == expected
    alpaca = {"instruction": "Add.", "input": "1 1", "output": "2"}
    assert chat_rows.turns(alpaca, "auto", "here") == [Turn("user", "Add.\n\n1 1", False), Turn("assistant", "2", True)]
    for lacking in ("", None):
        [question, _] = chat_rows.turns(alpaca | {"input": lacking}, "alpaca", "here")
        assert question.text == "Add."
    assert chat_rows.turns({"text": "a"}, "auto", "here") == [Turn("text", "a", True)]


def test_answers_of_a_prompt_are_not_learned() -> None:
    row = {"prompt": [*MESSAGES, {"role": "user", "content": "Three?"}], "completion": "3"}
    assert [turn.learn for turn in chat_rows.turns(row, "auto", "here")] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"prompt": "a", "response": "b"}, "auto", "the nearest one, prompt_completion, has 'prompt', 'completion'"),
        ({"message": []}, "auto", r"it has 'message'; the nearest one, messages, has 'messages' \(or are these 'mes"),
        ({"Instruction": "a", "Output": "b"}, "auto", "alpaca, has 'instruction', 'output'"),
        ({"x": 1}, "auto", "prompt_completion"),
        ({}, "auto", "it has no column"),
        ({"text": "a"}, "messages", "not in data.format=messages: it has 'text'; this format has 'messages'"),
        ({"messages": None, "text": None}, "auto", "no value in the column 'messages', but null; leave the row out"),
        (
            {"messages": None, "prompt": "a"},
            "auto",
            r"it has 'prompt'; .*; add a completion \(PPO",
        ),
        ({"messages": "hello"}, "auto", "'messages' is not a list of messages but str"),
        ({"messages": ["hello"]}, "auto", "message 1 is not an object but str"),
        ({"messages": [{"content": "a"}]}, "auto", "message 1 has neither 'role' nor 'from', but 'content'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "auto", "the role 'tool'; known are system"),
        ({"messages": [{"role": 3, "content": "a"}]}, "auto", "the role '3'"),
        ({"messages": [{"role": "user", "content": 3}]}, "auto", "message 1 is not text but int"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "auto", "a part of type 'image'"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "auto", "calls a tool"),
        ({"prompt": "\ud800", "completion": "b"}, "auto", "half a character"),
        (["a"], "auto", "not an object with columns but list"),
    ],
)
def test_a_wrong_row_is_answered_with_what_it_has_and_what_it_needs(row: Any, format: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        chat_rows.turns(row, format, "'file', line 3")
    assert str(error.value).startswith("'file', line 3")
