"""Comments, docstrings and messages use the words of the field."""

import io
import re
import tokenize
from pathlib import Path

import pytest

from tests import ROOT

FILES = sorted((ROOT / "lmjax").rglob("*.py"))
AVOID = re.compile(r"\b(goes on|go on|gone on|so many|anew|of none|the one before|the doors)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_and_texts_avoid_private_words(path: Path) -> None:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            found = AVOID.search(token.string)
            assert not found, f"{path}:{token.start[0]}: rewrite '{found[0]}'"
