"""Comments, docstrings and messages use the words of the field."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests import ROOT

FILES = sorted((ROOT / "lmjax").rglob("*.py"))
AVOID = re.compile(
    r"\b(goes on|go on|gone on|so many|anew|of none|the one before|the doors|told|beside)\b", re.IGNORECASE
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_and_texts_avoid_private_words(path: Path) -> None:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            found = AVOID.search(token.string)
            assert not found, f"{path}:{token.start[0]}: rewrite '{found[0]}'"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_of_a_docstring_is_a_short_sentence(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or ".").splitlines()[0]
            where = f"{path}: {getattr(node, 'name', 'module')}: {first!r}"
            assert len(first) <= 88, f"{where} has {len(first)} characters, more than 88"
            assert first.endswith("."), f"{where} does not end with a period"
