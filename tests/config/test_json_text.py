"""JSON with bounds: the values of `json`, and one line for everything else."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.json_text import DEEPEST, DIGITS, LongInteger, decode_utf8, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans(), st.booleans())
def test_a_value_is_that_of_json(value: Any, mark: bool, encoded: bool) -> None:
    text = "\ufeff" * mark + json.dumps(value, ensure_ascii=not encoded)
    if encoded and any(0xD800 <= ord(character) < 0xE000 for character in text):
        return  # half a character has no bytes
    given_text = text.encode() if encoded else text
    for options in ({}, {"allow_nan": False, "unique_keys": True, "long_integers": True}):
        assert parse_json(given_text, "x", **options) == value


REFUSED = {
    "cut": ('{"a": ', "it is not JSON: Expecting value"),
    "words": ("true false", "it is not JSON: Extra data"),
    "deep lists": ("[" * 101 + "]" * 101, "it has more than 100 levels of lists and objects inside each other"),
    "deep objects": ('{"a":' * 500 + "1" + "}" * 500, "it has more than 100 levels"),
    "a million brackets": ("[" * 10**6, "it has more than 100 levels"),
    "long integer": ("[1, -" + "9" * 4301 + "]", "it has an integer of 4301 digits, more than the limit of 4300"),
    "UTF-16": ("[1]".encode("utf-16"), "it is UTF-16 or UTF-32 text, not UTF-8: save it as UTF-8"),
    "big-endian": (b"\xfe\xff\0[\0]", "it is UTF-16 or UTF-32 text"),
    "latin-1": (b'["\xe9"]', "it is not UTF-8 text: byte 0xe9 at 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_text_is_refused_in_one_line(name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        parse_json(content, "it")
    assert len(str(error.value)) < 300


def test_bounds_accept_what_is_inside() -> None:
    deepest = json.dumps(json.loads("[" * DEEPEST + "]" * DEEPEST))
    assert parse_json(deepest, "x")
    assert parse_json("9" * DIGITS, "x") == 10**DIGITS - 1
    assert parse_json(json.dumps([[1]] * 1000), "x") == [[1]] * 1000  # wide is not deep
    with pytest.raises(UserError, match="x has 5 bytes, more than the limit of 4"):
        parse_json("[1,2]", "x", largest=4)
    assert parse_json("[1,2]", "x", largest=5) == [1, 2]


def test_settings_for_numbers_and_keys() -> None:
    long = parse_json('{"a": 1, "n": -' + "7" * 5000 + "}", "x", long_integers=True)
    assert long == {"a": 1, "n": LongInteger("-" + "7" * 5000)}
    assert repr(long["n"]) == "an integer of 5000 digits"
    assert parse_json('{"a": 1, "a": 2}', "x") == {"a": 2}
    with pytest.raises(UserError, match="x has an object with the key 'a' twice"):
        parse_json('[{"a": 1, "b": 0, "a": 2}]', "x", unique_keys=True)
    assert parse_json("[Infinity, 1e999]", "x") == [float("inf")] * 2
    for text in ("NaN", "-Infinity", "[1e999]"):
        with pytest.raises(UserError, match="which is not finite"):
            parse_json(text, "x", allow_nan=False)


def test_the_limit_of_digits_holds_without_the_limit_of_python() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(UserError, match="an integer of 100000 digits"):
            parse_json("1" * 100_000, "x")
        assert parse_json("[12]", "x") == [12]
    finally:
        sys.set_int_max_str_digits(limit)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_one_line(content: bytes) -> None:
    for options in ({}, {"allow_nan": False, "unique_keys": True}):
        message = "it is a value"
        try:
            parse_json(content, "it", **options)
        except UserError as error:
            message = str(error)
        assert message.startswith("it ")
        assert "\n" not in message


def test_undecodable_bytes_may_be_kept_as_surrogates() -> None:
    assert decode_utf8(b"a\xff", "x", errors="surrogateescape") == "a\udcff"
