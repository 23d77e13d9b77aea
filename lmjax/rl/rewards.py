"""Verifiable rewards: pure functions of the text of an answer and the columns of its row.

Each is total: a text that a model writes, whatever it is, gets a number in bounded time. Only mistakes in the settings
or in the rows raise an error. Bounds are counts of characters and steps, not seconds, so that the reward of a text is
the same on every machine.
"""

import itertools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from lmjax.config import UserError, extensions
from lmjax.config.errors import nearest, printable
from lmjax.config.expressions import check_expression
from lmjax.config.ranges import check_ranges, shown
from lmjax.config.rewards import (
    ExactMatchConfig,
    FunctionConfig,
    JSONSchemaConfig,
    NumberConfig,
    RegexConfig,
    RewardFunction,
    VerifiableConfig,
)
from lmjax.rl import json_schema
from lmjax.system.time_limit import limited

LONGEST = 4_000  # characters at the end of an answer that are searched for a number or an expression
SECONDS = 10.0  # of one call of a user's function
_REPEATED = 16  # first calls of a user's function, which are made twice: another result is refused
_UNBOUNDED = 4  # unbounded repetitions of an expression
_DIGITS = 1000  # of a number in an answer
_LARGEST = 1e15  # of the reward of a user's function; squares of sums stay finite in float32

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """Rewards of several answers."""

    #: The rewards.
    values_B: np.ndarray
    #: Number of answers for which a user's function failed.
    failed: int = 0
    #: What was wrong with the first of them.
    failure: str = ""


class Failed(Exception):
    """A user's function has no reward for an answer."""


def score(reward: RewardFunction, texts: Sequence[str], rows: Sequence[Row]) -> Scores:
    """Return the rewards of answers; an answer for which a user's function fails gets 0.

    Args:
        reward: A function of `build`.
        texts: The answers.
        rows: The columns of their rows.

    Raises:
        UserError: A row lacks the column, or a user's function takes too long.
    """
    values_B, failures = np.zeros(len(texts)), list[str]()
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        try:
            values_B[i] = reward(text, row)
        except Failed as error:
            failures.append(str(error))
    return Scores(values_B, len(failures), failures[0] if failures else "")


def build(config: VerifiableConfig) -> RewardFunction:
    """Return the function of a reward; those of lmjax return 0.0 or 1.0.

    Raises:
        UserError: A setting is invalid. The returned function raises it for a row without what the reward needs.
    """
    check_ranges(config, "reward")
    if isinstance(config, ExactMatchConfig):
        return _exact_match(config)
    if isinstance(config, NumberConfig):
        return _number(config)
    if isinstance(config, RegexConfig):
        return _regex(config)
    if isinstance(config, JSONSchemaConfig):
        return _json_schema(config)
    return _function(config)


def _column(row: Row, name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise UserError(
            f"the reward needs the column '{name}', which the row lacks or leaves empty; it has: {', '.join(row)}"
        )
    return value


def _after(text: str, marker: str) -> str | None:
    """The text after the last marker; None if there is no marker."""
    start = text.rfind(marker)
    return None if start < 0 else text[start + len(marker) :]


# ---- Texts --------------------------------------------------------------------------------------------------------


def _exact_match(config: ExactMatchConfig) -> RewardFunction:
    punctuation = str.maketrans("", "", string.punctuation if config.ignore_punctuation else "")

    def normal(text: str) -> str:
        text = text.translate(punctuation).strip()
        text = text.casefold() if config.ignore_case else text
        return " ".join(text.split()) if config.ignore_space else text

    def part(text: str) -> str | None:
        return _after(text, config.after) if config.after else text

    def reward(text: str, row: Row) -> float:
        expected = _column(row, config.column)
        accepted = [expected] if isinstance(expected, str | int | float) else expected
        if (
            not isinstance(accepted, Sequence)
            or not accepted
            or not all(isinstance(item, str | int | float) for item in accepted)
        ):
            raise UserError(f"the column '{config.column}' must hold a text or a list of texts, not {shown(expected)}")
        texts = [(part(item), item) for item in map(str, accepted)]
        wanted = {normal(item if after is None else after) for after, item in texts} - {""}
        answer = part(text)
        return float(answer is not None and normal(answer) in wanted)

    return reward


def _regex(config: RegexConfig) -> RewardFunction:
    if not config.pattern:
        raise UserError("reward.pattern is empty; give a regular expression")
    columns = re.findall(r"\{([A-Za-z_]\w*)\}", config.pattern)

    def compiled(row: Row) -> "re.Pattern[str]":
        pattern = config.pattern
        for name in columns:
            pattern = pattern.replace(f"{{{name}}}", re.escape(str(_column(row, name))))
        return _compiled(pattern)

    fixed = _compiled(re.sub(r"\{[A-Za-z_]\w*\}", "x", config.pattern))  # also checks a pattern with columns

    def reward(text: str, row: Row) -> float:
        expression = compiled(row) if columns else fixed
        if config.complete:
            text = text.strip()
            return float(len(text) <= LONGEST and expression.fullmatch(text) is not None)
        return float(expression.search(text[-LONGEST:]) is not None)

    return reward


@lru_cache(4096)  # the answers to one prompt have the same expression
def _compiled(pattern: str) -> "re.Pattern[str]":
    check_expression(pattern, "reward.pattern", unbounded=_UNBOUNDED)
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"reward.pattern: {pattern[:200]!r} is not a regular expression: {error}") from None


# ---- Numbers ------------------------------------------------------------------------------------------------------

_MARKS = {"\u2212": "-", "\ufe63": "-", "\uff0d": "-"}  # other characters for minus


def _number(config: NumberConfig) -> RewardFunction:
    wrong = set(config.separators) & set("0123456789.+-/eE\\{}")
    if wrong:
        raise UserError(f"reward.separators={config.separators!r} has {min(wrong)!r}, which is a part of a number")
    read = number_reader(config.separators, fractions=config.fractions)
    tolerance, share = Fraction(repr(config.tolerance)), Fraction(repr(config.relative_tolerance))

    def reward(text: str, row: Row) -> float:
        value = _column(row, config.column)
        expected = read(str(value))
        if expected is None:
            raise UserError(f"the column '{config.column}' must hold a number, not {shown(value)}")
        answer = _after(text, config.after) if config.after else text
        number = None if answer is None else read(answer)
        if number is None:
            return 0.0
        return float(abs(number - expected) <= max(tolerance, share * abs(expected)))

    return reward


def number_reader(separators: str = ",", *, fractions: bool = True) -> Callable[[str], Fraction | None]:
    """Return a function that reads the last number of a text, exactly; None if there is none.

    A number has digits, perhaps in groups of three (1,234), a decimal point (1.5, .5), an exponent (1e-3) and a sign. A
    minus after a letter, a digit or a closing bracket is no sign: the last number of `3-5` is 5. A currency sign may be
    between sign and digits. `3/4` is a fraction unless it is part of `1/3/4`.

    Args:
        separators: Characters that may separate groups of three digits.
        fractions: Read fractions as one number.
    """
    group = f"[0-9]{{1,3}}(?:[{re.escape(separators)}][0-9]{{3}})+(?![0-9])|" if separators else ""
    digits = rf"(?:(?:{group}[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?"
    sign = r"(?:(?<![\w)\]}])[-+])?[$€£¥]?"
    number = re.compile(f"({sign}{digits})")
    pair = re.compile(
        rf"(?<![0-9/])({sign}{digits}) ?/ ?({digits})(?! ?/ ?[0-9])|([-+]?)\\[dt]?frac{{({digits})}}{{({digits})}}"
    )

    def value(text: str) -> Fraction | None:
        plain = re.sub(f"[ $€£¥{re.escape(separators)}]", "", text)
        return Fraction(plain) if len(plain) <= _DIGITS else None

    def quotient(match: "re.Match[str]") -> Fraction | None:
        above, below, sign, frac_above, frac_below = match.groups()
        numerator, denominator = value(above or sign + frac_above), value(below or frac_below)
        return numerator / denominator if numerator is not None and denominator else None

    def read(text: str) -> Fraction | None:
        text = "".join(_MARKS.get(character, character) for character in text[-LONGEST:])
        last = next(reversed([*number.finditer(text)]), None)
        if last is None:
            return None
        if fractions:
            whole = next(reversed([*pair.finditer(text)]), None)
            if whole is not None and whole.end() >= last.end():
                return quotient(whole)
        return value(last[1])

    return read


# ---- JSON and functions -------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)


def _json_schema(config: JSONSchemaConfig) -> RewardFunction:
    accepts = json_schema.validator(config.schema, "reward.schema")

    def reward(text: str, row: Row) -> float:
        fence = _FENCE.search(text) if config.fenced else None
        return float(accepts(text if fence is None else fence[1]))

    return reward


def _function(config: FunctionConfig) -> RewardFunction:
    function, names = extensions.get("reward", config.name), extensions.names("reward")
    if function is None:
        hint = nearest(config.name, names) if names else ""
        raise UserError(
            f"reward.name: '{config.name}' is not registered{hint}; call "
            "lmjax.register_reward in a file, and name the file in extensions=[FILE.py]"
        )

    calls = itertools.count()

    def reward(text: str, row: Row) -> float:
        number = once(text, row)
        if next(calls) < _REPEATED and (again := once(text, row)) != number:
            raise UserError(
                f"the reward '{config.name}' gave {number}, then {again} for the same answer; it must depend on the "
                "text and the row only, because the run could not be repeated otherwise"
            )
        return number

    def once(text: str, row: Row) -> float:
        message = f"the reward '{config.name}' took more than {SECONDS:g} s for an answer of {len(text)} characters"
        with limited(SECONDS, message):
            try:
                value = function(text, dict(row))
                if isinstance(value, str | bytes):
                    raise TypeError(f"{value!r} is a text; return a number")
                number = float(value)
            except (Exception, SystemExit) as error:  # of the user's code
                if isinstance(error, UserError) and error.args == (message,):
                    raise
                reason = printable(f"{type(error).__name__}: {error}", 300)
                raise Failed(f"the reward '{config.name}' raised {reason}") from error
        if not abs(number) <= _LARGEST:
            raise Failed(f"the reward '{config.name}' returned {number}, which is not a finite number, or is too large")
        return number

    return reward
