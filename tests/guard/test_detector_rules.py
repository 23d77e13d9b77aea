"""The guard outside the update: which suspects make a spike, where it began, which checkpoint is healthy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.guard.detector import DIVERGENCE, PARAMETERS
from lmjax.journal.history import Tried

GUARD = GuardConfig()
fast = settings(deadline=None, max_examples=100)


def batches(marks: str) -> list[Tried]:
    """One batch a letter: `.` accepted, `s` suspect, `h` hard."""
    updates = np.cumsum([0, *(mark == "." for mark in marks)]).tolist()
    return [Tried(updates[n], 8 * n, 8 * n + 8, mark != ".", mark == "h") for n, mark in enumerate(marks)]


@pytest.mark.parametrize(
    ("marks", "fired"),
    [
        ("", ""),
        ("........", ""),
        (".......s", ""),
        ("......ss", ""),
        (".....sss", "3 suspects in a row"),
        ("....sss.", ""),
        (".....h.h", ""),
        ("......hs", ""),
        ("......sh", ""),
        ("......hh", "2 hard suspects in a row"),
        ("hh", "2 hard suspects in a row"),
        (".....shs", "3 suspects in a row"),
        ("s.s..s.s", "4 suspects among the last 8 batches"),
        ("ss.s...s", "4 suspects among the last 8 batches"),
        ("s.s.s...s", ""),
        ("ss.ss.", ""),
        ("ss.ss", "4 suspects among the last 8 batches"),
        ("hh......", ""),
    ],
)
def test_the_rules_of_a_trigger(marks: str, fired: str) -> None:
    assert detector.rule(batches(marks), config=GUARD) == fired
    assert detector.rule(batches(marks), config=GUARD, diverged=True) == DIVERGENCE
    assert detector.rule(batches(marks), config=GUARD, diverged=True, broken=True) == PARAMETERS


@fast
@given(st.text("..sh", max_size=40))
def test_the_rules_against_string_matching(marks: str) -> None:
    fired = detector.rule(batches(marks), config=GUARD)
    last = marks[-8:].replace("h", "s")
    expected = marks.endswith("hh") or last.endswith("sss") or (last.endswith("s") and last.count("s") >= 4)
    assert bool(fired) == expected
    assert fired == detector.rule(batches(marks)[-detector.remembered(GUARD) :], config=GUARD)


@fast
@given(st.text("..sssh", max_size=90), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_no_rule_needs_more_batches_than_are_remembered(
    marks: str, in_a_row: int, hard_in_a_row: int, several: int, among: int
) -> None:
    guard = replace(GUARD, in_a_row=in_a_row, hard_in_a_row=hard_in_a_row, several=several, among=among)
    tried = batches(marks)
    assert detector.rule(tried[-detector.remembered(guard) :], config=guard) == detector.rule(tried, config=guard)


@pytest.mark.parametrize(
    ("marks", "fired", "index"),
    [
        (".....sss", "3 suspects in a row", 5),
        ("ss.ss", "4 suspects among the last 8 batches", 0),
        ("s........hh", "2 hard suspects in a row", 9),
        ("s..s...hh", "2 hard suspects in a row", 3),
        ("........", PARAMETERS, 7),
        ("." * 60, DIVERGENCE, 28),
        ("." * 10, DIVERGENCE, 0),
    ],
)
def test_the_onset_is_the_first_suspect_of_the_last_eight(marks: str, fired: str, index: int) -> None:
    tried = batches(marks)
    assert detector.onset(tried, fired=fired, config=GUARD) == tried[index]


@fast
@given(st.lists(st.integers(0, 400), max_size=6), st.integers(0, 400), st.integers(0, 500), st.integers(0, 300))
def test_a_checkpoint_is_healthy_with_no_suspect_around_it(
    suspects: list[int], update: int, now: int, every: int
) -> None:
    """From 16 before to min(100, save interval) after, as soon as that is over."""
    after = min(100, every) if every else 100
    near = set(suspects) & set(range(update - 16, update + after + 1))
    expected = update == 0 or (not near and now > update + after)
    assert detector.healthy(update, suspects=suspects, now=now, every=every, config=GUARD) == expected


@pytest.mark.parametrize(
    ("loss", "norm", "z", "why"),
    [
        (np.nan, 1.0, 0.0, detector.NOT_FINITE),
        (2.0, np.inf, 9.0, detector.NOT_FINITE),
        (3.0, 1.0, 7.0, detector.LOSS),
        (3.0, 1.0, 3.0, detector.GRADIENT),
    ],
)
def test_the_reason_is_in_words(loss: float, norm: float, z: float, why: str) -> None:
    assert detector.reason({"loss": loss, "grad_norm": norm, "param_norm": 1.0, "z_loss": z}, GUARD) == why
