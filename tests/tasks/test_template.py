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


# ---- Items, entries and functions -----------------------------------------------------------------------------------

NESTED = {
    "a": " X y ",
    "list": ["p", " Q "],
    "deep": {"text": ["one", "two"], "n": 3},
    "list[0]": "own",
    "b|upper": "b",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{list[1]}|", " Q |"),
        ("{list[-1]|strip}", "Q"),
        ("{deep[text][1]}", "two"),
        ("{deep[n]}", "3"),
        ("{a|strip|lower}-{a|upper}", "x y- X Y "),
        ("{list|strip}", "p, Q"),
        ("{list[0]}", "own"),  # the row has a field of this name
        ("{b|upper}", "b"),
    ],
)
def test_items_entries_and_functions(text: str, expected: str) -> None:
    assert template.render(text, NESTED) == expected


def test_functions_apply_to_each_variant() -> None:
    assert template.variants("<{list|strip|lower}>", NESTED) == ("<p>", "<q>")
    assert template.variants("<{deep[text]}>", NESTED) == ("<one>", "<two>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{list[2]}",
            "there is no field 'list[2]', only 'a', 'list', 'deep', 'list[0]', 'b|upper': its list has 2 items",
        ),
        ("{list[-3]}", "its list has 2 items, and no item '-3'"),
        ("{list[x]}", "its list has 2 items, and no item 'x'"),
        ("{list[0x1]}", "and no item '0x1'"),
        ("{deep[none]}", "its object has no 'none', only 'text', 'n'"),
        ("{a[0]}", "[0] needs a list or an object"),
        ("{a|eval}", "there is no function 'eval', only strip, lstrip"),
        ("{deep|strip}", "is no text, number or list of these but dict"),
        ("{deep.n}", "there is no field 'deep.n'"),
        ("{a.__class__[__mro__]}", "there is no field"),
        ("{deep[__class__]}", "its object has no '__class__'"),
        ("{list[1][0]}", "[0] needs a list or an object"),
    ],
)
def test_what_is_not_there_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        template.render(text, NESTED)
    assert message in str(error.value)


@given(
    st.dictionaries(st.text("ab[]|0", min_size=1, max_size=4), st.text(max_size=3) | st.lists(st.text(max_size=2))),
    st.text("ab[]|01strip", min_size=1, max_size=8),
)
def test_a_template_gives_a_value_of_its_row_or_an_error(row: dict[str, object], name: str) -> None:
    """It reaches nothing else: what is inserted is a value of the row, an item of it, or a function of these."""
    try:
        found = template.render(f"{{{name}}}", row)
    except UserError:
        return
    items = [text for value in row.values() for text in (value if isinstance(value, list) else [value])]
    lists = [", ".join(value) for value in row.values() if isinstance(value, list)]
    stripped = [", ".join(text.strip() for text in value) for value in row.values() if isinstance(value, list)]
    assert found in {*map(str, items), *(str(text).strip() for text in items), *lists, *stripped}


def test_a_text_is_not_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "LARGEST", 100)
    with pytest.raises(UserError, match="the text of a row has 126 characters; at most 100 are allowed"):
        template.render("{a}{a}", {"a": "x" * 60})


def test_variants_are_not_longer_than_the_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "LARGEST", 100)
    row = {"items": ["1", "2", "3"], "text": "x" * 49}
    assert template.variants("{items}{text}", row | {"items": ["1", "2"]}) == ("1" + "x" * 49, "2" + "x" * 49)
    with pytest.raises(UserError, match="the texts of the items of 'items' have more than 100 characters together"):
        template.variants("{items}{text}", row)
    with pytest.raises(UserError, match="there is no field 'other'"):
        template.variants("{items}{other}", row)
