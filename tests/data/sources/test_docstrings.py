"""The embedded corpus: deterministic, without repetition, large enough, and made without importing anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.data.sources import docstrings


def test_modules_give_their_docstrings_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(
        '"""Bees."""\ndef hum(x):\n    """Hums\n\n    twice."""\n    def inner(): "Inner."\n'
        '    def other(): "Bees."\n    def last(): "Inner."\n'
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a/__init__.py").write_text('class C:\n    "A class."\n    async def m(self): "A method."\n')
    (tmp_path / "a/again.py").write_text('"""Bees."""\n"not a docstring"\n')
    (tmp_path / "a/silent.py").write_text("x = 1\nraise SystemExit  # never run\n")
    (tmp_path / "a/test").mkdir()
    (tmp_path / "a/test/t.py").write_text('"""A test."""\n')
    (tmp_path / "broken.py").write_text('"""Text."""\ndef (:\n')
    assert list(docstrings.modules(tmp_path)) == [
        "C\nA class.\n\nC.m\nA method.\n",
        "a.again\nBees.\n",
        "hum\nHums\n\ntwice.\n\nhum.inner\nInner.\n",
    ]


def test_a_long_text_is_cut_between_paragraphs() -> None:
    paragraphs = [f"{i} " + "word " * (docstrings.PART * i // 100) for i in range(1, 20)]
    text = "\n\n".join(paragraphs) + "\n"
    found = list(docstrings.parts(text))
    assert "\n\n".join(part.removesuffix("\n") for part in found) + "\n" == text
    assert len(found) > 3
    assert all(docstrings.PART <= len(part) < docstrings.PART + max(map(len, paragraphs)) + 100 for part in found[:-1])
    assert list(docstrings.parts("short\n")) == ["short\n"]


@pytest.mark.slow
def test_the_corpus_is_about_two_million_characters_without_repetition() -> None:
    texts = docstrings.docstrings()["text"]
    assert 1_500_000 < sum(map(len, texts)) < 4_000_000  # differs by Python version
    assert len(set(texts)) == len(texts) > 300
    assert all(text.strip() and text.endswith("\n") for text in texts)
    assert any("Text wrapping and filling." in text for text in texts)  # a module's docstring
    assert any("The standard type hierarchy" in text for text in texts)  # a topic of help()


@pytest.mark.slow
def test_two_processes_collect_the_same_text() -> None:
    code = "import hashlib; from lmjax.data.sources import docstrings; t = list(docstrings.docstrings()['text'])\n"
    code += "import json; print(hashlib.sha256(json.dumps(t).encode()).hexdigest())"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""


def test_the_fingerprint_names_this_python() -> None:
    assert docstrings.fingerprint()["python"] == sys.version
