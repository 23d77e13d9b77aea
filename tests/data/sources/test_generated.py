"""Generated records against independent readers of numbers and dates, and the balance of the passages."""

import calendar
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from datetime import datetime

import pytest

from lmjax.data.sources import generated

# ---- Numbers ----------------------------------------------------------------------------------------------------

SMALL = {
    "a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90, "zero": 0, "and": 0,
}  # fmt: skip


def value(text: str) -> int:
    total = current = 0
    for word in text.lower().replace("-", " ").split():
        if word == "hundred":
            current *= 100
        elif word in ("thousand", "million"):
            total, current = total + current * {"thousand": 1000, "million": 1_000_000}[word], 0
        else:
            current += SMALL[word]
    return total + current


def test_numbers_read_back() -> None:
    pairs = [generated.number(i) for i in range(8000)]
    assert [str(value(text)) for text, _ in pairs] == [digits for _, digits in pairs]
    assert value("three hundred and seven thousand twenty one") == 307021
    found = " | ".join(text for text, _ in pairs)
    for form in ("hundred and ", "twenty-one", "twenty one", "a hundred", "one hundred", "twelve hundred", "| Nine"):
        assert form in found
    lengths = Counter(len(digits) for _, digits in pairs)
    assert set(lengths) == set(range(1, 10))
    assert min(lengths[n] for n in range(3, 10)) > 900  # a seventh of 95 % of 8000 each: 1086, less five deviations
    assert sum("000" in digits for _, digits in pairs) > 1000


# ---- Dates ------------------------------------------------------------------------------------------------------

ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third twenty-fourth
twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"""
ROMAN = ["", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"]
FORMATS = (
    "%d %B %Y",
    "%B %d %Y",
    "%Y %B %d",
    "%d %b %Y",
    "%b %d %Y",
    "%Y %b %d",
    "%Y %d %B",
    "%d %m %Y",
    "%Y/%m/%d",
    "%Y%m%d",
)


def day(text: str) -> set[str]:
    """Every reading of a written date."""
    ordinals = ORDINALS.replace("-", "_").split()
    text = re.sub(r"\b(the|of|in|on|[a-z]+day|mon|tue|wed|thu|fri|sat|sun)\b", " ", text.lower())
    words = re.sub(r"[-.,]", " ", re.sub(r"([a-z])-(?=[a-z])", r"\1_", text)).split()
    words = [str(ordinals.index(w) + 1) if w in ordinals else w for w in words]
    words = [str(ROMAN.index(w)) if w in ROMAN else re.sub(r"(\d)(st|nd|rd|th)$", r"\1", w) for w in words]
    found = set()
    for form in FORMATS:
        with suppress(ValueError):
            found.add(datetime.strptime(" ".join(words), form).date().isoformat())
    return found


def test_dates_read_back_in_one_way_only() -> None:
    forms = defaultdict(int)
    for i in range(3000):
        text, iso = generated.date(i)
        assert day(text) == {iso}, text
        weekday = calendar.day_name[datetime.fromisoformat(iso).weekday()].lower()
        named = re.search(r"\b(mon|tues|wednes|thurs|fri|satur|sun)day\b", text.lower())
        assert named is None or named[0] == weekday
        forms[re.sub(r"[a-z]+", "a", re.sub(r"\d+", "0", text.lower()))] += 1
    assert day("the 3rd of March, 1987") == {"1987-03-03"}
    assert len(forms) > 20
    years = [int(generated.date(i)[1][:4]) for i in range(3000)]
    assert (min(years), max(years)) == (1900, 2049)


def test_no_date_is_in_figures_that_read_in_two_ways() -> None:
    for i in range(3000):
        text, _ = generated.date(i)
        assert re.search("[a-zA-Z]", text) or re.fullmatch(r"\d{8}|\d{4}/\d+/\d+|\d+\. ?\d+\. ?\d{4}", text)


# ---- Passages ---------------------------------------------------------------------------------------------------


def test_passages_are_balanced_and_do_not_tell_their_label() -> None:
    rows = list(generated.rows("docstrings"))
    counts = Counter(row["label"] for row, _ in rows)
    assert set(counts) == set(generated.PARTS)
    assert len(set(counts.values())) == 1
    assert min(counts.values()) >= 100
    sizes = [len(row["text"].split()) for row, _ in rows]
    assert min(sizes) >= generated.SHORTEST
    assert max(sizes) <= generated.LONGEST
    names = {*generated.PARTS, *(name for modules in generated.PARTS.values() for name in modules)}
    assert not any(name in row["text"].lower() for row, _ in rows for name in names)
    assert len({row["text"] for row, _ in rows}) == len(rows)
    assert {row["label"] for row, _ in rows[:8]} == set(generated.PARTS)  # any beginning is balanced
    labels = defaultdict(set)
    for row, key in rows:
        labels[key].add(row["label"])
    assert len(labels) < len(rows)  # a long docstring gives several passages, which share its key
    assert all(len(found) == 1 for found in labels.values())


# ---- The same everywhere ----------------------------------------------------------------------------------------


def digest(source: str) -> str:
    content = repr(list(generated.rows(source)))
    return hashlib.sha256(content.encode()).hexdigest()


def test_known_answer() -> None:
    """Pinned, with the format number in the store's identity: raise that with any change here."""
    assert (generated.FORMAT, digest("numbers")[:16], digest("dates")[:16]) == KNOWN


KNOWN = (1, "3c746ea77ce47d66", "5888fe3c1cb372a8")


@pytest.mark.slow
def test_another_process_makes_the_same_passages() -> None:
    code = (
        "import hashlib; from lmjax.data.sources import generated\n"
        "print(hashlib.sha256(repr(list(generated.rows('docstrings'))).encode()).hexdigest())"
    )
    command, other = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=other)
    assert run.stdout.strip() == digest("docstrings")
