"""Generated facts: against an independent reader of numbers and of dates."""

import datetime
import re

from lmjax.config import ChatConfig, DataConfig
from lmjax.data.sources import chat, facts, streams
from tests.data.sources.test_generated import value


def is_true(sentence: str) -> bool:
    """Whether a sentence, or a question with its answer, pairs a number or a date with itself."""
    iso = re.search(r"\d{4}-\d\d-\d\d", sentence)
    if iso:
        day = re.search(r"(\d{1,2}) ([A-Z][a-z]+) (\d{4})|([A-Z][a-z]+) (\d{1,2}), (\d{4})", sentence)
        assert day is not None
        d, month, y = (day[1], day[2], day[3]) if day[1] else (day[5], day[4], day[6])
        return datetime.datetime.strptime(f"{d} {month} {y}", "%d %B %Y").date().isoformat() == iso[0]
    digits = re.search(r"\d+", sentence)
    words = re.search(rf"\b(?:{NUMBER})(?:[ -](?:{NUMBER}|and))*\b", sentence.lower())
    assert digits, sentence
    assert words, sentence
    return value(words[0]) == int(digits[0])


NUMBER = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred"
)


def test_sentences_and_answers_are_true() -> None:
    for _, document in zip(range(300), facts.documents(), strict=False):
        sentences = re.findall(r"[^.]+\.", document)
        assert len(sentences) == facts.SENTENCES
        assert all(map(is_true, sentences))
    rows = list(facts.conversations())
    assert all(is_true(f"{row['prompt']} {row['completion']}") for row, _ in rows)
    assert len({row["prompt"].partition(" ")[0] for row, _ in rows}) >= 6  # wordings
    numbers = [key for row, key in rows if "-" not in key]
    assert sorted(map(int, numbers)) == sorted([*range(facts.NUMBERS)] * 2)


def test_a_fact_is_on_one_side_in_all_its_wordings() -> None:
    sides: dict[str, set[str]] = {"train": set(), "validation": set()}
    for side, conversation in chat.conversations(ChatConfig(validation_fraction=0.3)):
        sides[side].add(conversation.key)
    assert min(map(len, sides.values())) > 400
    assert not sides["train"] & sides["validation"]


def test_the_sentences_are_a_source_of_text() -> None:
    data = DataConfig(source="numbers_and_dates")
    [source] = streams.sources(data)
    first, begins = next(streams._source(source, data).pieces())
    assert (first, begins) == (next(facts.documents()), True)
    assert streams.fingerprint(source, data) == facts.fingerprint()
