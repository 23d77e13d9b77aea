"""Errors that the command line prints as one line, and suggestions for mistyped names."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user; the command line prints one line and exits with status 2."""


class RunError(RuntimeError):
    """A failure of a run that is no mistake of the user; one line and exit status 1."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the list of choices if no choice is similar."""
    choices = list(choices)
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
