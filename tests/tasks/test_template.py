"""Templates put the values of fields into text, and can do nothing else."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.tasks import template

ROW = {"a": "x", "b c": 3, "a.b": "dot", "list": ["p", 2], "flag": True, "half": 0.5, "gone": None, "deep": {"a": 1}}


def test_fields_are_replaced_and_nothing_is_evaluated() -> None:
    assert template.render("{a}-{b c}-{half}-{flag}-{list}-{{a}}-{{{a}}}", ROW) == "x-3-0.5-True-p, 2-{a}-{x}"
    assert template.render("{a.b}", ROW) == "dot"
    for attack in ("{a.__class__}", "{a[0]}", "{a!r}", "{b c:>9}", "{}", "{0}"):
        with pytest.raises(UserError, match=r"there is no field .*, only 'a', 'b c'"):
            template.render(attack, ROW)
    assert template.render("{a}", {"a": "{b c} %s ${a}"}) == "{b c} %s ${a}"  # a value is no template


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a", "'{' on its own; write '{{'"),
        ("a}", "'}' on its own; write '}}'"),
        ("{a}}", "'}' on its own"),
        ("{gone}", "the field 'gone' is no text, number or list of these but null"),
        ("{deep}", "the field 'deep' is no text, number or list of these but dict"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        template.render(text, ROW)
    assert message in str(error.value)


def test_a_value_must_be_text_that_can_be_written() -> None:
    for value in ("\ud800", 10**5000, [["x"]], [None]):
        with pytest.raises(UserError, match="the field 'a'"):
            template.render("{a}", {"a": value})


def test_each_item_of_the_one_list_is_a_variant() -> None:
    assert template.variants("It is {list}{a}.", ROW) == ("It is px.", "It is 2x.")
    assert template.variants("It is {a}.", ROW) == ("It is x.",)


@given(st.text(alphabet="ab{}. ", max_size=12), st.text(max_size=5))
def test_braces_are_read_as_python_reads_them(text: str, value: str) -> None:
    """Where every field is a plain name, `string.Formatter` says the same, or that the template is malformed."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        names = None
    if names is not None and set(names) <= {"a", "b", "ab"}:
        assert template.fields(text) == tuple(names)
        if value.isprintable():
            assert template.render(text, dict.fromkeys(names, value)) == text.format(**dict.fromkeys(names, value))
