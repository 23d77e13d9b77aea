"""Regular expressions from files: those of public tokenizers and tasks pass, those of exponential time do not."""

import contextlib
import re
import signal
import time
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.expressions import check_expression

ACCEPTED = (
    # tokenizers: GPT-2, cl100k, o200k, BLOOM, groups of three digits, Han characters, DeepSeek
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s*[\r\n]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    r"[\p{Han}]+|[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    # filters of tasks
    r"#### (\-?[0-9\.\,]+)",
    r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
    r"[^.?!;\n]+",
    r"\d+(?:,\d+)*(?:\.\d+)?",
    r"answer: ((?:\w+ )*\w+)",
    r"(?s)(.*)\n",
    r"(?:\r?\n)+",
    r"(?:,a+|;a+)*",
)
REFUSED = (
    r"(a+)+$",
    r"(a*)*",
    r"(a|a)*b",
    r"(a|ab)*c",
    r"(?:a{1,3})+",
    r"(\w|\d)+$",
    r"(.*a){20}",
    r"(a?)+",
    r"(a|)*",
    r"(x+x+)+y",
    r"(?:(?:a|a)b)*",
    r"(?:अ|[ऄ-आ])+",  # overlapping characters that are in no other range
    r"(?:\B\w+)+",  # a place without width separates nothing
    r"([[a]+)+]",  # a set in a set for one engine, a repetition in a repetition for the other
    r"(?x)(a+ )+",  # blanks that are ignored
    r"x)(a+)+",  # behind a parenthesis too many
    "a?" * 30 + "a" * 30,
    r"(a)\1",
    r"(?P<x>a)(?P=x)",
    r"(?(1)a|b)",
    r"a{2000}",
    "a" * 20_000,
    "(" * 100 + ")" * 100,
)


@pytest.mark.parametrize("pattern", ACCEPTED)
def test_expressions_in_use_are_accepted(pattern: str) -> None:
    check_expression(pattern, "filters")


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:20].encode("unicode_escape").decode())
def test_expressions_without_a_bound_are_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(UserError, match=r"^task\.json: filters: the regular expression ") as error:
        check_expression(pattern, "task.json: filters")
    assert len(str(error.value)) < 500


def test_the_check_itself_is_fast() -> None:
    started = time.monotonic()
    for pattern in ("[" * 9999, "a|" * 4990, "(a)+" * 2500, "\\x{" * 3000, "(?:" * 49 + "a*" + ")*" * 49):
        with contextlib.suppress(UserError):
            check_expression(pattern, "here")
    assert time.monotonic() - started < 5  # 0.1 s on one core


@given(st.text(alphabet="ab(|)*+?", min_size=3, max_size=14))
@settings(max_examples=150, deadline=None)
def test_what_is_accepted_takes_no_exponential_time(pattern: str) -> None:
    """Of small expressions: 28 letters and one that does not fit take 2^28 steps if rounds can be divided freely."""
    try:
        check_expression(pattern, "here")
        compiled = re.compile(pattern)
    except (UserError, re.error):
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{pattern} takes too long")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for text in ("a" * 28 + "c", "ab" * 14 + "c", "b" * 28 + "c"):
            signal.setitimer(signal.ITIMER_REAL, 3)
            compiled.fullmatch(text)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("pattern", ["[ab]*[de]*[fg]*c", "(?:a*|b+)(?:a|d+c+)", "(?:xa*){3}b*", "(?:a*b*)(?:c*)"])
def test_unbounded_repetitions_in_an_alternative_are_counted(pattern: str) -> None:
    """Each adds one to the degree of the time that a search takes."""
    check_expression(pattern, "a.json")
    with pytest.raises(UserError, match="more than 2 unbounded repetitions in one alternative"):
        check_expression(pattern, "a.json", unbounded=2)
    check_expression("a*b+|c*d+|e{2,}", "a.json", unbounded=2)


@pytest.mark.parametrize(
    "pattern", [r"a*a*b", r"\s+\s*(?!\S)", r"(?:a+|c)[ab]+d", r"(?:a+b){2}", r"a+(?:b|[ab]*c)", r"\p{L}+x\p{L}+!"]
)
def test_two_repetitions_of_the_same_characters_do_not_precede_a_part_that_can_fail(pattern: str) -> None:
    """Every start of such a search takes quadratic time, and the search cubic time."""
    check_expression(pattern, "a.json")
    with pytest.raises(UserError, match="repeats the same characters twice"):
        check_expression(pattern, "a.json", unbounded=2)


@pytest.mark.parametrize("pattern", ["a{0,100}b", "a?" * 6 + "c", "(?:a?b){6}c"])
def test_bounded_repetitions_before_a_part_that_can_fail_have_few_lengths(pattern: str) -> None:
    check_expression(pattern, "a.json")
    with pytest.raises(UserError, match="more than 32 combinations of lengths"):
        check_expression(pattern, "a.json", unbounded=2)


@pytest.mark.parametrize("pattern", ACCEPTED[:7])
def test_the_expressions_of_public_tokenizers_repeat_no_characters_twice(pattern: str) -> None:
    check_expression(pattern, "a.json", unbounded=2)
    check_expression(r"a+b+c|a*b?[ab]*|(?:a+|a*)c", "a.json", unbounded=2)
