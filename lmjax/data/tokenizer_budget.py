"""A budget for the time that the regular expressions of a tokenizer take.

An expression such as `a+b` takes time in proportion to n² on n letters a. `expressions.check_expression` refuses a
larger degree; this module bounds the square.
"""

import re
from collections.abc import Iterable

from lmjax.config import UserError
from lmjax.config.expressions import repeated_characters

SHORT = 1000  # characters of a text whose time does not count
START = 2_000_000_000  # steps that any text may take; some seconds
STEPS = 500  # further steps a character


class Budget:
    """The most steps that the expressions of a tokenizer can have taken.

    Args:
        patterns: The expressions.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = sorted(patterns)
        characters = "|".join(filter(None, map(repeated_characters, self.patterns)))
        self._runs = re.compile(f"(?:{characters})+") if characters else None
        self._steps = 0
        self._characters = 0

    def check(self, texts: Iterable[str]) -> None:
        """Count texts before they are encoded.

        Raises:
            UserError: They may take too long.
        """
        if self._runs is None:
            return
        for text in texts:
            self._characters += len(text)
            if len(text) > SHORT:
                self._steps += sum((match.end() - match.start()) ** 2 for match in self._runs.finditer(text))
            if self._steps > START + STEPS * self._characters:
                raise UserError(
                    f"a text of {len(text):,} characters may take a regular expression of the tokenizer too long: it "
                    "has long runs of characters that the expression reads again and again; divide the text"
                )
