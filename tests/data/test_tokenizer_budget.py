"""Expressions of tokenizers that may take quadratic time have a budget; ordinary text does not meet it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.config.expressions import repeated_characters
from lmjax.data import vocabularies
from lmjax.data.tokenizer_budget import SHORT, START, STEPS, Budget

QUADRATIC = (r"a+b", r"a*?b", r"(?=a+)", r"(?!a*b)a", r"a++b", r"(?>a+)b", r"(?i)A+b", r"a{1000}b", r"(?:a{9}){9}b",
             r"[a-c]+\d", r"\w+@", r".+;", r"\p{L}+\d", r"[\p{Ll}]+\d", r"[[:alpha:]]+1", r"[^b]+b",
             r"x|a+y")  # fmt: skip


@pytest.mark.parametrize("pattern", QUADRATIC)
def test_a_long_run_is_refused_before_it_is_searched(pattern: str) -> None:
    run = int((START + STEPS * 60_000) ** 0.5) + 1
    budget = Budget([pattern])
    budget.check(["a" * (run // 2)])
    with pytest.raises(UserError, match="may take a regular expression of the tokenizer too long"):
        budget.check(["a" * run])


@pytest.mark.parametrize("pattern", QUADRATIC)
def test_many_runs_are_refused_together(pattern: str) -> None:
    budget = Budget([pattern])
    with pytest.raises(UserError, match="too long"):
        budget.check(["a" * 20_000] * 500)


@pytest.mark.parametrize("pattern", ["a+", "x|a*", r"\d{1,3}", r" ?\w+", "abc", r"\p{N}{1,3}", ""])
def test_an_expression_that_never_reads_again_has_no_budget(pattern: str) -> None:
    assert repeated_characters(pattern) == ""
    Budget([pattern]).check(["a" * 10**6] * 3)


@pytest.mark.parametrize("pattern", sorted(vocabularies.EXPRESSIONS))
def test_ordinary_text_of_any_length_passes(pattern: str) -> None:
    budget = Budget([pattern])
    text = "The cat sat on the mat; it's 12 o'clock.\n\n    def f(x):\n" * 20_000
    budget.check([text, "short"] * 2)


def test_short_texts_do_not_count() -> None:
    Budget(["a+b"]).check(["a" * SHORT] * 10_000)


@given(st.text("ab1 ;@", min_size=1, max_size=30), st.sampled_from([*QUADRATIC[:2], r"[a-c]+\d", r"\w+@", r".+;"]))
def test_the_characters_contain_those_of_every_match(text: str, pattern: str) -> None:
    """What a repetition of the expression matched, found by Python, is in the runs that are counted."""
    runs = re.compile(f"(?:{repeated_characters(pattern)})+")
    for match in re.finditer(pattern, text):
        assert runs.fullmatch(match[0][:-1]) or len(match[0]) == 1
