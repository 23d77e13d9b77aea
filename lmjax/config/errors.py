"""Errors that the command line prints as one line, and suggestions for mistyped names."""

import difflib
from collections.abc import Iterable


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


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the list of choices if no choice is similar."""
    choices = list(choices)
    word = word[:100]  # the comparison takes quadratic time
    tail = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    matches = difflib.get_close_matches(word, choices, 1) or [
        tail[name] for name in difflib.get_close_matches(word.rsplit(".", 1)[-1], tail, 1)
    ]
    if matches:
        return f"; did you mean '{matches[0]}'?"
    return f"; choose from {', '.join(choices)}" if len(choices) <= 24 else "; --print-config shows every key"


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of printable characters."""
    text = " ".join(str(error).split())
    return "".join(character for character in text if character.isprintable())[:500]
