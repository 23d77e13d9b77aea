r"""Regular expressions from files: a check that bounds the time of a search.

A search with backtracking may take exponential time if one text can be divided in several ways: a repetition inside a
repetition, as in `(a+)+`, or a repetition of alternatives that match the same text, as in `(a|a)*`. The check accepts
a repetition in a repetition only if a character separates its rounds, as in `(,\d+)*`.

The syntax is the common part of Python's `re` and of Oniguruma, which tokenizers use. Imports no JAX.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from lmjax.config.errors import UserError

LONGEST = 10_000  # characters of an expression
DEEPEST = 50  # groups inside each other
REPEATS = 1000  # largest finite number of repetitions
RETRIES = 32  # combinations of lengths of bounded repetitions that a search tries, where `unbounded` is finite
OPTIONAL = 20  # parts of varying length in an alternative

_PROBES = "".join(map(chr, range(0x250))) + "αβΑяЯאع५一あ\u2003\u200b"
_ROUNDS = 50  # repetitions that count as many
_ANY = r"[\s\S]"
_WORD = r"[^\s!-/:-@\[-`{-~\u2018-\u201d\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20]"  # no punctuation
_LETTERS = re.compile(r"\\p\{(?:[LMN][a-z]?|Han|Hiragana|Katakana|Hangul|Latin|Cyrillic|Greek|Arabic|Hebrew|Thai)\}")
_COUNT = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")
_GROUP = re.compile(r"\?(?::|=|!|<=|<!|>|P?<\w+>|'\w+'|[a-wyzA-Z]*(?:-[a-zA-Z]+)?(?P<ends>[:)])|>)")
_REFERENCE = re.compile(r"[1-9]|k[<'{]|g[<'{]")
_ESCAPE = re.compile(r"[pP]\{[^{}]*\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.", re.DOTALL)


@dataclass
class _Item:
    """An atom or a group, with its quantifier."""

    #: Text of an atom; empty for a group.
    atom: str = ""
    #: Alternatives of a group.
    branches: "list[list[_Item]]" = field(default_factory=list)
    #: Minimum and maximum number of repetitions.
    least: float = 1
    most: float = 1
    #: Whether it is a group that consumes no text: it looks ahead or behind.
    looks: bool = False


def check_expression(pattern: str, where: str, *, unbounded: float = inf) -> None:
    """Check that a search for a regular expression takes bounded time.

    Args:
        pattern: The expression.
        where: The file and key that it comes from, for the message.
        unbounded: Maximum number of unbounded repetitions in one alternative; it bounds the degree of the time. If it
            is finite, two of them that can match the same characters must not precede a part that can fail.

    Raises:
        UserError: The expression is too long or too deep, refers to a group, or repeats something that can match one
            text in several ways.
    """
    shown = repr(pattern if len(pattern) <= 200 else pattern[:200] + "...")

    def refuse(reason: str) -> UserError:
        return UserError(f"{where}: the regular expression {shown} {reason}")

    if len(pattern) > LONGEST:
        raise refuse(f"has {len(pattern)} characters; at most {LONGEST} are allowed")
    probes = _probes(pattern)
    for nested_sets in (False, True):  # what [[a] means depends on the engine
        try:
            branches = _Reader(pattern, nested_sets).branches(0)
        except ValueError as error:
            raise refuse(str(error)) from None
        if any(not _is_bounded(item, probes) for branch in branches for item in branch):
            raise refuse(
                "repeats a part that can match the same text in several ways, such as (a+)+ or (a|a)*, which may take "
                "exponential time; write it without the inner repetition"
            )
        if any(_unbounded(branch) > unbounded for branch in branches):
            raise refuse(f"has more than {unbounded} unbounded repetitions in one alternative; write it shorter")
        if unbounded < inf:
            _check_retries(branches, probes, refuse)
        if any(sum(part.least != part.most for part in _all(branch)) > OPTIONAL for branch in branches):
            raise refuse(f"has more than {OPTIONAL} parts of varying length in one alternative; write it shorter")


def _check_retries(branches: "list[list[_Item]]", probes: str, refuse: Callable[[str], UserError]) -> None:
    """Raise UserError if the search of a part that fails retries repetitions in too many ways."""
    if any(_retried(branch, probes, can_fail=False) is None for branch in branches):
        raise refuse(
            "repeats the same characters twice before a part that can fail, such as a*a*b, which takes cubic time; "
            "write it with one repetition"
        )
    if any(_ways(branch, can_fail=False) > RETRIES for branch in branches):
        raise refuse(
            f"has parts of varying length before a part that can fail, with more than {RETRIES} combinations of "
            "lengths; write it shorter"
        )


def repeated_characters(pattern: str) -> str:
    """Return an expression for the characters that a search may read again and again.

    They are those of the repetitions before a part that can fail, of repetitions that look ahead or behind, and of
    large numbers of repetitions. A run of n such characters may take time in proportion to n². The expression is for
    Python's `re`; it matches one character, also others where Python does not know the syntax. Empty: the time of a
    search is in proportion to the text.

    Args:
        pattern: An expression that `check_expression` accepts.
    """
    atoms = set[str]()
    for nested_sets in (False, True):
        atoms.update(*(_reread(branch, can_fail=False) for branch in _Reader(pattern, nested_sets).branches(0)))
    return "|".join(sorted(set(map(_superset, atoms))))


# ---- Syntax -----------------------------------------------------------------------------------------------------


class _Reader:
    """Reads an expression into items; it does not find every mistake of syntax."""

    def __init__(self, text: str, nested_sets: bool) -> None:
        self.text, self.nested_sets, self.at = text, nested_sets, 0

    def branches(self, depth: int) -> list[list[_Item]]:
        """Read alternatives up to the end of the group."""
        if depth > DEEPEST:
            raise ValueError(f"has more than {DEEPEST} groups inside each other")
        branches: list[list[_Item]] = [[]]
        while self.at < len(self.text) and not (depth and self.text[self.at] == ")"):
            if self.text[self.at] == "|":
                self.at += 1
                branches.append([])
            else:
                branches[-1].append(self._quantified(self._item(depth)))
        return branches

    def _item(self, depth: int) -> _Item:
        start, character = self.at, self.text[self.at]
        self.at += 1
        if character == "(":
            return self._group(depth)
        if character == "[":
            self._set()
        elif character == "\\":
            if _REFERENCE.match(self.text, self.at):
                raise ValueError("refers to a group, which may take exponential time; write it without the reference")
            self._escape()
        return _Item(self.text[start : self.at])

    def _escape(self) -> None:
        if match := _ESCAPE.match(self.text, self.at):
            self.at = match.end()

    def _group(self, depth: int) -> _Item:
        item = _Item(branches=[[]])
        if self.text.startswith("?#", self.at):
            end = self.text.find(")", self.at)
            self.at = len(self.text) if end < 0 else end + 1
            return item
        if self.text.startswith("?", self.at):
            match = _GROUP.match(self.text, self.at)
            if match is None:
                raise ValueError("has a group of a kind that lmjax does not accept, such as a reference or a condition")
            self.at = match.end()
            item.looks = match[0] in ("?=", "?!", "?<=", "?<!")
            if match["ends"] == ")":  # flags, as in (?i)
                return item
        item.branches = self.branches(depth + 1)
        self.at += 1  # its parenthesis
        return item

    def _set(self) -> None:
        """Skip a set of characters, with sets inside it; a ] at its start is a character."""
        depth = 1
        if self.text.startswith("^", self.at):
            self.at += 1
        if self.text.startswith("]", self.at):
            self.at += 1
        while self.at < len(self.text) and depth:
            character = self.text[self.at]
            self.at += 1
            if character == "\\":
                self._escape()
            elif character == "[" and self.nested_sets:
                depth += 1
            elif character == "]":
                depth -= 1

    def _quantified(self, item: _Item) -> _Item:
        """Read the quantifiers after an item; a second one repeats the first."""
        while (bounds := self._bounds()) is not None:
            if (item.least, item.most) != (1, 1):
                item = _Item(branches=[[item]])
            item.least, item.most = bounds
            if self.text.startswith(("?", "+"), self.at):
                self.at += 1
        return item

    def _bounds(self) -> tuple[float, float] | None:
        simple = {"*": (0, inf), "+": (1, inf), "?": (0, 1)}
        if self.at < len(self.text) and (character := self.text[self.at]) in simple:
            self.at += 1
            return simple[character]
        match = _COUNT.match(self.text, self.at)
        if match is None or not (match[1] or match[3]):
            return None
        self.at = match.end()
        least = int(match[1] or 0)
        most = (int(match[3]) if match[3] else inf) if match[2] else least
        if max(least, 0 if most == inf else most) > REPEATS:
            raise ValueError(f"repeats a part more than {REPEATS} times; use + or a smaller number")
        return least, most


# ---- Ambiguity --------------------------------------------------------------------------------------------------


def _is_bounded(item: _Item, probes: str) -> bool:
    """Whether no part of the item repeats something that can match one text in several ways."""
    inner = all(_is_bounded(part, probes) for branch in item.branches for part in branch)
    return inner and (item.most <= 1 or not item.branches or _is_unambiguous(item, probes))


def _is_unambiguous(group: _Item, probes: str) -> bool:
    """Whether rounds of a group divide a text in only one way, as far as simple rules tell.

    The first characters of alternatives differ. If the length of a round varies, each of its alternatives has a
    character that nothing else in the group matches.
    """
    parts = [*_all([group])]
    if not all(_distinct(part.branches, probes) for part in parts if len(part.branches) > 1):
        return False
    if all(part.least == part.most for part in parts[1:]) and [] not in group.branches:
        return True
    return all(any(_separates(item, parts, probes) for item in branch) for branch in group.branches)


def _distinct(branches: Sequence[Sequence[_Item]], probes: str) -> bool:
    """Whether all alternatives begin with atoms that match different characters."""
    first: set[str] = set()
    for branch in branches:
        if not branch or not branch[0].atom or branch[0].least < 1:
            return False
        matches = _matches(branch[0].atom, probes)
        if first & matches:
            return False
        first |= matches
    return True


def _separates(item: _Item, parts: Sequence[_Item], probes: str) -> bool:
    """Whether the item is one character that no other part matches."""
    if not item.atom or item.least != 1 or item.most != 1:
        return False
    own = _matches(item.atom, probes)
    return all(not own & _matches(part.atom, probes) for part in parts if part.atom and part is not item)


def _unbounded(branch: Sequence[_Item]) -> float:
    """Count the unbounded repetitions of an alternative; a group counts as its worst one."""
    count = 0.0
    for item in branch:
        inside = max(map(_unbounded, item.branches), default=0)
        count += (inside if item.most == inf else inside * max(item.most, 1)) + (item.most == inf)
    return count


def _retried(branch: Sequence[_Item], probes: str, *, can_fail: bool) -> set[str] | None:
    """Return the characters that unbounded repetitions match before a part that can fail.

    A search tries such a repetition again with every smaller length. None: two of them match the same characters, so
    that the time of one start is quadratic.
    """
    retried: set[str] = set()
    for item in reversed(branch):
        repeated = item.most == inf
        alternatives = [_retried(part, probes, can_fail=can_fail or repeated) for part in item.branches]
        if any(characters is None for characters in alternatives):
            return None
        characters = set[str]().union(*(part for part in alternatives if part))
        if repeated and can_fail:
            characters |= set[str]().union(*(_matches(part.atom, probes) for part in _all([item]) if part.atom))
        if characters & retried or (characters and 1 < item.most < inf and item.branches):
            return None
        retried |= characters
        can_fail = can_fail or item.least > 0
    return retried


def _ways(branch: Sequence[_Item], *, can_fail: bool) -> float:
    """Count the lengths that bounded repetitions before a part that can fail have together."""
    ways = 1.0
    for item in reversed(branch):
        inside = max((_ways(part, can_fail=can_fail) for part in item.branches), default=1.0)
        ways *= min(inside, 1e6) ** min(max(item.most, 1), 100 if item.most < inf else 1)
        ways *= item.most - item.least + 1 if can_fail and item.most < inf else 1
        ways, can_fail = min(ways, 1e6), can_fail or item.least > 0
    return ways


def _reread(branch: Sequence[_Item], *, can_fail: bool, rounds: float = 1) -> Iterator[str]:
    """Yield the atoms that a search may read again from each place; see `repeated_characters`."""
    for item in reversed(branch):
        together = rounds * max(item.most, 1)
        many = together > _ROUNDS
        for part in item.branches:
            yield from _reread(part, can_fail=can_fail or many or item.looks, rounds=together)
        if item.atom and many and (can_fail or together < inf):
            yield item.atom
        can_fail = can_fail or item.least > 0


def _superset(atom: str) -> str:
    """An expression of Python for the characters of an atom, and possibly more."""
    if atom[0] == "[" and re.search(r"\[|&&|--|\|\||~~", atom[1:]):
        return _ANY
    if not re.search(r"\[\^|\\P", atom):
        atom, letters = _LETTERS.subn("", atom)
        if letters:
            return f"{_WORD}|{_superset(atom)}" if atom not in ("", "[]") else _WORD
    try:
        re.compile(atom)
    except (re.error, OverflowError, RecursionError):
        return _ANY
    return f"{atom}|(?i:{atom})"


def _all(items: Sequence[_Item]) -> Iterator[_Item]:
    for item in items:
        yield item
        for branch in item.branches:
            yield from _all(branch)


def _matches(atom: str, probes: str) -> set[str]:
    """The probed characters that an atom matches; all of them where Python cannot tell."""
    if atom[0] == "[" and re.search(r"\[|&&|--|\|\||~~", atom[1:]):  # a set in a set, which `re` does not have
        return set(probes)
    try:
        matches = set(re.findall(atom, probes, re.DOTALL | re.IGNORECASE))
    except (re.error, OverflowError, RecursionError):
        return set(probes)
    return matches if all(len(match) == 1 for match in matches) else set(probes)  # of a place, such as \b: no width


def _probes(pattern: str) -> str:
    """Characters to compare atoms by, with the ends of every range of the expression."""
    escapes = re.findall(r"\\(?:x\{?|u|U)([0-9a-fA-F]{2,8})", pattern)
    named = {chr(int(digits, 16)) for digits in escapes if int(digits, 16) < 0x110000}
    return "".join(sorted(set(_PROBES) | set(pattern) | named))
