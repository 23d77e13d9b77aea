"""The report on a tokenizer: its tokens join to the text, and its counts are those of the text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.cli import main
from lmjax.config import TokenizerConfig
from lmjax.data import tokenizer_report
from lmjax.data.tokenizer import Tokenizer, build_tokenizer
from lmjax.system import runtime

WORDS = "the cat sat on the mat and the dog ran to the red barn Straße 中文"
BYTES = build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))
PIECES = build_tokenizer(TokenizerConfig("wordpiece", vocab_size=60), lambda: iter([WORDS] * 20))
BPE = build_tokenizer(TokenizerConfig("bpe", vocab_size=300), lambda: iter([WORDS] * 20))


@given(st.text(max_size=30))
def test_the_texts_of_the_tokens_join_to_the_text(text: str) -> None:
    for known in (BYTES, BPE):
        rows = tokenizer_report.rows(known, text)
        assert [row.id for row in rows] == known.encode(text)
        assert "".join(row.text for row in rows) == known.decode(known.encode(text)) == text


def test_counts_are_those_of_the_text() -> None:
    text = "the cat é"
    found = dict(tokenizer_report.measures(BYTES, text))
    assert (found["bytes of text"], found["tokens"], found["bytes a token"]) == ("10", "10", "1.000")
    assert found["characters a token"] == "0.900"
    assert found["the text comes back"] == "yes"
    assert found["entries that occur"].startswith(f"{len({*text.encode()})} of 257")
    assert found["'2026'"] == "'2' '0' '2' '6'"
    lossy = dict(tokenizer_report.measures(PIECES, "the Zebra"))
    assert lossy["the text comes back"].startswith("NO")
    assert lossy["unknown tokens"] == "1 (50.00%)"
    assert dict(tokenizer_report.facts(PIECES))["roles"].startswith("unknown: [UNK] (")


def test_characters_that_a_vocabulary_refuses_are_counted_and_left_out() -> None:
    known = build_tokenizer(TokenizerConfig("characters"), lambda: iter(["abc de"]))
    found = dict(tokenizer_report.measures(known, "abc_de_Z"))
    assert found["characters it refuses"] == "3 (37.50%), left out: 'Z', '_'"
    assert (found["tokens"], found["the text comes back"]) == ("5", "yes")
    assert found["'2026'"] == ""
    assert dict(tokenizer_report.facts(known))["model"] == "BPE, of characters"
    assert "characters it refuses" not in dict(tokenizer_report.measures(BYTES, "abc_de_Z"))


def test_the_commands_print_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "prepare", lambda config=None: None)

    def call(*words: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as left:
            main.main(["tokenizer", *words])
        shown = capsys.readouterr()
        return left.value.code, " ".join((shown.out + shown.err).split())

    saved(BPE, tmp_path)
    (tmp_path / "a.txt").write_text(WORDS)
    status, text = call("report", str(tmp_path / "tokenizer.json"), "--text", str(tmp_path / "a.txt"))
    assert status == 0
    assert f"tokens {len(BPE.encode(WORDS)):,}" in text
    status, text = call("show", str(tmp_path), "the cat")
    assert status == 0
    assert all(f"{id} {BPE.token(id).strip()}" in text for id in BPE.encode("the cat"))
    assert call("report", str(tmp_path / "none.json"))[0] == 2
    status, text = call("report", str(tmp_path / "tokenizer.json"), "--text", str(tmp_path / "none.txt"))
    assert (status, "cannot be read as UTF-8 text" in text) == (2, True)
    assert call("show", str(tmp_path), "x" * 10_001)[0] == 2


def saved(known: Tokenizer, folder: Path) -> None:
    known.save(folder / "tokenizer.json")
