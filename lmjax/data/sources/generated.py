"""Generated records: numbers and dates in many forms, passages of Python's docstrings.

A record of `numbers` and `dates` is a pure function of its index: the hash of the index is a supply of digits in which
every choice takes its part, identical on every machine and in every version. `docstrings` depends on this Python.
"""

import ast
import datetime
import hashlib
import itertools
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lmjax.config import UserError
from lmjax.data.sources import docstrings
from lmjax.tasks.draws import Choices

FORMAT = 1  # part of the fingerprint: raise it when a record below changes
RECORDS = 40_000  # of numbers and of dates

Row = tuple[dict[str, str], str]  # the columns, and what decides the side of a split: equal keys, one side


def rows(source: str) -> Iterator[Row]:
    """Return the records of a generated source.

    The columns are "source" and "target" (`numbers`, `dates`), or "text" and "label" (`docstrings`).

    Raises:
        UserError: This Python has no library sources, and the source is `docstrings`.
    """
    if source == "docstrings":
        return passages()
    pair = {"numbers": number, "dates": date}[source]
    return (({"source": text, "target": target}, text) for text, target in map(pair, range(RECORDS)))


def fingerprint(source: str) -> dict[str, str | int]:
    """Identify the records without generating them."""
    if source == "docstrings":
        return docstrings.fingerprint() | {"records": FORMAT}
    return {"source": source, "records": FORMAT}


# ---- Numbers ----------------------------------------------------------------------------------------------------

_UNITS, _TENS = (
    words.split()
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "zero ten twenty thirty forty fifty sixty seventy eighty ninety",
    )
)


def number(index: int) -> tuple[str, str]:
    """Return a number below 10^9 in English words and its digits, as "two" and "2".

    Three to nine digits, rarely less; of the numbers above 10,000 one in three has three zeros in a row where a word
    is then missing. Forms: "and" or none, hyphens or blanks, "a hundred" or "one hundred", "twelve hundred" or "one
    thousand two hundred".
    """
    choices = Choices(f"numbers {index}")
    digits = 3 + choices.below(7) if choices.below(20) else 1 + choices.below(2)
    value = 10 ** (digits - 1) + choices.below(9 * 10 ** (digits - 1)) if digits > 1 else choices.below(10)
    if digits > 4 and choices.below(3) == 0:
        scale = choices.of((1, 1000)) if digits > 6 else 1
        value -= value // scale % 1000 * scale
    text = _spoken(value, choices)
    return (text.capitalize() if choices.below(8) == 0 else text), str(value)


def spelled(value: int, *, link: str, join: str) -> str:
    """Return a number below 10,000 in hundreds, as "nine hundred and sixty-seven".

    Args:
        value: The number.
        link: Text between hundreds and tens.
        join: Text between tens and ones.
    """

    def tens(n: int) -> str:
        return _UNITS[n] if n < 20 else _TENS[n // 10] + (join + _UNITS[n % 10] if n % 10 else "")

    head, rest = divmod(value, 100)
    return link.join([tens(head) + " hundred"] * (head > 0) + [tens(rest)] * (rest > 0 or value == 0))


def _spoken(value: int, choices: Choices) -> str:
    link, join = choices.of((" ", " and ")), choices.of((" ", "-"))
    hundreds = partial(spelled, link=link, join=join)
    if 1100 <= value < 10_000 and value // 100 % 10 and choices.below(3) == 0:
        return hundreds(value)  # thirty-five hundred
    millions, rest = divmod(value, 1_000_000)
    thousands, ones = divmod(rest, 1000)
    parts = [hundreds(millions) + " million"] * (millions > 0) + [hundreds(thousands) + " thousand"] * (thousands > 0)
    text = " ".join(parts)
    if ones or not parts:
        between = link if parts and ones < 100 else " "
        text = text + between + hundreds(ones) if parts else hundreds(ones)
    if text.startswith(("one hundred", "one thousand", "one million")) and choices.below(2):
        text = "a" + text.removeprefix("one")
    return text


# ---- Dates ------------------------------------------------------------------------------------------------------

MONTHS, _DAYS, _ROMAN, _ORDINALS = (
    words.split()
    for words in (
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "I II III IV V VI VII VIII IX X XI XII",
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth",
    )
)
_ORDINALS += [f"twenty-{word}" for word in _ORDINALS[:9]] + ["thirtieth", "thirty-first"]
_FIRST, _LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()


# Month before day is written with the month's name only and day before month in figures with points only, as in most
# of Europe: so every form has one meaning. M, b: the month in full and in three letters; nth: the day as "3rd".
_FORMS = """{d} {M} {y}|{d} {M}, {y}|{nth} {M} {y}|{nth} of {M} {y}|the {nth} of {M}, {y}|the {nth} of {M} {y}
{M} {d}, {y}|{M} {d} {y}|{M} {nth}, {y}|{M} the {nth}, {y}|{d} {b} {y}|{b} {d} {y}|{b} {d}, {y}|{b}. {d}, {y}
{d}-{b}-{y}|{d:02}-{b}-{y}|{d}.{m}.{y}|{d:02}.{m:02}.{y}|{d}. {m}. {y}|{d}. {roman}. {y}|{y}/{m}/{d}|{y}/{m:02}/{d:02}
{y}{m:02}{d:02}|{y} {M} {d}|{y} {b} {d}|{day}, {M} {d}, {y}|{day}, {d} {M} {y}|{day} the {nth} of {M} {y}
{ddd}, {d} {b} {y}|{ddd} {b} {d} {y}|the {ordinal} of {M}, {y}|{M} the {ordinal}, {y}|{ordinal} {M} {y}
{d} in {M} of {y}|in {y}, on {M} {d}|in {y}, on the {nth} of {M}""".replace("\n", "|").split("|")


def date(index: int) -> tuple[str, str]:
    """Return a day of 1900 to 2049 in one of three dozen written forms, and as YYYY-MM-DD."""
    choices = Choices(f"dates {index}")
    when = datetime.date.fromordinal(_FIRST + choices.below(_LAST - _FIRST + 1))
    month, day = MONTHS[when.month - 1], _DAYS[when.weekday()]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(when.day % 10, "th") if when.day not in (11, 12, 13) else "th"
    text = choices.of(_FORMS).format(
        y=when.year,
        m=when.month,
        d=when.day,
        M=month,
        b=month[:3],
        day=day,
        ddd=day[:3],
        nth=f"{when.day}{ending}",
        ordinal=_ORDINALS[when.day - 1],
        roman=_ROMAN[when.month - 1],
    )
    case: Callable[[str], str] = choices.of((str, str, str, str.lower, str.upper))
    return case(text), when.isoformat()


# ---- Passages ---------------------------------------------------------------------------------------------------

SHORTEST, LONGEST = 30, 60  # words of a passage

# Parts of the library that hold about as many words each; their modules are named so in each version of Python.
PARTS = {
    "concurrency": ("asyncio", "concurrent", "threading", "multiprocessing"),
    "graphics": ("tkinter", "turtle"),
    "imports": ("importlib", "pkgutil", "zipimport", "runpy"),
    "logging": ("logging",),
    "mail": ("email", "smtplib", "imaplib", "poplib", "mailbox"),
    "testing": ("unittest", "doctest"),
    "web": ("http", "urllib", "wsgiref", "socketserver"),
    "xml": ("xml", "xmlrpc"),
}


def passages() -> Iterator[Row]:
    """Yield passages of 30 to 60 words of docstrings, as many of each part of the library.

    Words that contain the name of a part or of its modules are removed. Short neighbours form one passage; a long
    docstring is cut into several. The key is the docstring, so a split separates docstrings.

    Raises:
        UserError: This Python has no library sources.
    """
    seen: set[str] = set()
    found = {label: _by_hash(_passages(modules, seen)) for label, modules in PARTS.items()}
    count = min(map(len, found.values()))
    if not count:
        raise UserError("this Python comes without its library's source files: give records with data.files=[PATH]")
    for row in zip(*(found[label][:count] for label in PARTS), strict=True):
        for label, (text, key) in zip(PARTS, row, strict=True):
            yield {"text": text, "label": label}, key


def _by_hash(found: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort by a hash, so that any beginning is a fair sample."""
    return sorted(found, key=lambda item: hashlib.sha256(item[0].encode()).digest())


_NAMES = re.compile("|".join(sorted({*PARTS, *(name for modules in PARTS.values() for name in modules)})), re.I)


def _passages(modules: Sequence[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (passage, its key) from docstrings that are not in `seen`, which grows."""
    waiting: list[str] = []
    for docstring in _docstrings(modules):
        words = [word for word in docstring.split() if not _NAMES.search(word)]
        text = " ".join(words)
        if text in seen:
            continue
        seen.add(text)
        if len(waiting) + len(words) > LONGEST:
            if len(waiting) >= SHORTEST:
                yield " ".join(waiting), " ".join(waiting)
            waiting = []
        if len(words) > LONGEST:
            pieces = -(-len(words) // LONGEST)
            cuts = [i * len(words) // pieces for i in range(pieces + 1)]
            yield from ((" ".join(words[a:b]), text) for a, b in itertools.pairwise(cuts))
        else:
            waiting += words
    if len(waiting) >= SHORTEST:
        yield " ".join(waiting), " ".join(waiting)


def _docstrings(modules: Sequence[str]) -> Iterator[str]:
    for path in _source_files(modules):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def _source_files(modules: Sequence[str]) -> Iterator[Path]:
    """Yield the source files of the standard library, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in modules:
        for path in sorted([root / f"{name}.py", *(root / name).rglob("*.py")]):
            if path.is_file() and not {"test", "tests"} & set(path.relative_to(root).parts):
                yield path
