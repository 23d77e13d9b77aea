"""Errors that the command line prints as one line, and suggestions for mistyped names."""

import difflib
from collections.abc import Iterable

#: Least similarity (`difflib`) of a name that is offered in place of a mistyped one.
CLOSE = 0.75
_MOST_LISTED = 24  # choices in a message


class UserError(ValueError):
    """A mistake of the user; the command line prints one line and exits with status 2."""

    def __str__(self) -> str:
        """Return the message as one line."""
        return printable(super().__str__())


class RunError(RuntimeError):
    """A failure of a run that is no mistake of the user; one line and exit status 1."""

    def __str__(self) -> str:
        """Return the message as one line."""
        return printable(super().__str__())


def printable(text: str, most: int = 4000) -> str:
    """Return text as one line: line breaks and characters that control a terminal are escaped.

    Of longer text than `most` characters, the middle is left out.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(word: str, choices: Iterable[str], otherwise: str = "") -> str:
    """Return `; did you mean 'x'?`, or the list of choices if no choice is similar.

    Args:
        word: The mistyped name.
        choices: The valid names.
        otherwise: Answer in place of a list that is too long for one line.
    """
    choices = list(choices)
    word = word[:100]  # the comparison takes quadratic time
    longer = [choice for choice in choices if len(word) > 1 and choice.startswith(word)]
    similar = longer[:_MOST_LISTED] or difflib.get_close_matches(word, choices, 1, CLOSE)
    if similar:
        return f"; did you mean {any_of(map(repr, similar))}?"
    if len(choices) > _MOST_LISTED:
        return otherwise
    return f"; choose from {', '.join(choices)}"


def any_of(names: Iterable[str]) -> str:
    """Return `a, b or c`; empty without names."""
    *first, last = list(names) or [""]
    return f"{', '.join(first)} or {last}" if first else last


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of printable characters."""
    text = " ".join(str(error).split())
    return "".join(character for character in text if character.isprintable())[:500]
