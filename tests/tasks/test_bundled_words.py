"""The written rows are right: by a rule of their own where there is one, and as clean data everywhere."""

import collections
import operator
from collections.abc import Callable

import pytest

from lmjax.tasks import catalog
from lmjax.tasks.catalog import load
from lmjax.tasks.spec import Document

NAMES = [
    "addition",
    "antonyms",
    "capitals",
    "category",
    "first_letter",
    "past_tense",
    "plural",
    "reverse_word",
    "subtraction",
]


def rows(name: str) -> tuple[Document, ...]:
    return load(name).documents


def item(document: Document) -> str:
    """What is asked about: of these tasks' prompts all but a mark or one small word at the end."""
    return document.prompt.removesuffix(" vs").removesuffix(" is").rstrip(" ,/=->")


def regular_past(verb: str) -> set[str]:
    """What the spelling rules allow for a regular verb."""
    if verb.endswith("e"):
        return {verb + "d"}
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return {verb[:-1] + "ied"}
    return {verb + "ked"} if verb.endswith("c") else {verb + "ed", verb + verb[-1] + "ed"}


def regular_plural(noun: str) -> set[str]:
    """What the spelling rules allow for a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return {noun[:-1] + "ies"}
    if noun.endswith(("s", "x", "ch", "sh")):
        return {noun + "es"}
    return {noun + "s", noun + "es"} if noun.endswith("o") else {noun + "s"}


def test_the_folders_are_those_tested_here() -> None:
    assert sorted(path.name for path in catalog.BUNDLED.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_clean(name: str) -> None:
    made = load(name)
    asked = [item(document) for document in made.documents]
    assert len({word.lower() for word in asked}) == len(asked) >= 200
    assert made.config.description.endswith(".")
    for document, word in zip(made.documents, asked, strict=True):
        for text in (word, *document.answers, *document.choices):
            assert text.isascii()
            assert text.isprintable()
            assert text == " ".join(text.split()) != ""
        assert len(set(document.answers)) == len(document.answers)
        assert word not in document.answers  # to copy is never right


def test_an_opposite_is_never_asked_for_backwards() -> None:
    """Otherwise an example could hold the answer to the question."""
    pairs = {(item(document), document.answers[0]) for document in rows("antonyms")}
    assert not pairs & {(answer, word) for word, answer in pairs}


def test_past_tenses_are_mostly_irregular_and_the_others_follow_the_rules() -> None:
    forms = {item(document): document.answers for document in rows("past_tense")}
    regular = {verb for verb, past in forms.items() if past[0] in regular_past(verb)}
    assert len(regular) < 0.3 * len(forms)
    assert all(past[0][-2:] != "ed" or len(past[0]) <= len(verb) for verb, past in forms.items() if verb not in regular)
    assert (forms["go"], forms["bring"], forms["stop"]) == (("went",), ("brought",), ("stopped",))


def test_more_than_a_third_of_the_plurals_is_irregular() -> None:
    forms = {item(document): document.answers for document in rows("plural")}
    irregular = {noun for noun, many in forms.items() if many[0] not in regular_plural(noun)}
    assert len(irregular) > len(forms) / 3
    assert {"child", "foot", "wolf", "crisis"} <= irregular
    assert not {"city", "box", "hero", "photo", "monkey", "cat"} & irregular


def test_words_are_reversed_and_first_letters_taken() -> None:
    reverse, first = rows("reverse_word"), rows("first_letter")
    assert all(list(item(document)) == list(document.answers[0])[::-1] for document in reverse)
    assert [len(item(document)) for document in reverse] == [3, 4, 5, 6] * (len(reverse) // 4)
    assert [item(document)[0] for document in first] == [document.answers[0] for document in first]


@pytest.mark.parametrize(("name", "result"), [("addition", operator.add), ("subtraction", operator.sub)])
def test_sums_and_differences_are_right_and_of_every_length(name: str, result: Callable[[int, int], int]) -> None:
    documents, lengths = rows(name), []
    for document in documents:
        a, sign, b = item(document).split()
        assert document.answers == (str(result(int(a), int(b))),)
        assert sign == "+" or (sign == "-" and int(a) >= int(b))
        assert len(a) == len(b)
        lengths.append(len(a))
    assert lengths == [1, 2, 3, 4, 5] * (len(documents) // 5)  # equal shares of every prefix, so of every limit


def test_categories_are_several_words_each_and_their_place_tells_nothing() -> None:
    documents = rows("category")
    assert len(documents) >= 500
    counts = collections.Counter(document.answers[0] for document in documents)
    assert len(set(counts.values())) == 1
    assert all(len(category.split()) >= 3 for category in counts)
    assert all(len(set(document.choices)) == 4 and set(document.choices) <= set(counts) for document in documents)
    places = collections.Counter(document.gold for document in documents)
    assert set(places.values()) == {len(documents) // 4}
