"""Cutting text into documents and pieces: nothing is lost, and a cut changes no token."""

import itertools
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lmjax.data import vocabularies
from lmjax.data.sources import text

# What matters at a cut: every kind of blank and line break, letters, digits, marks, contractions.
tricky = st.lists(
    st.sampled_from(
        ["ab", " It's", "'ll", "½1", " ", "\n", "\n", "\n\n", "\r\n", "\t", *"\x0b\x85\xa0\u2028é中🙂/.,_\x1c"]
    )
).map("".join)


def splitters() -> dict[str, pre_tokenizers.PreTokenizer]:
    """How GPT-2's, GPT-4's (and Llama 3's) and GPT-4o's tokenizers split text into words: BPE works inside words."""
    named = {name: pre_tokenizers.Split(Regex(words), "isolated") for name, words in vocabularies._WORDS.items()}
    return named | {"gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)}


@pytest.mark.parametrize("name", splitters())
@settings(max_examples=150, deadline=None)
@given(value=tricky, size=st.integers(1, 20))
def test_cutting_changes_no_word(name: str, value: str, size: int) -> None:
    splitter = splitters()[name]
    pieces = [piece for piece, _ in text.pieces([value], size)]
    good = text._CUTS[:2]  # where there is no such place, a cut may cost a token
    starts = list(itertools.accumulate(map(len, pieces[:-1]), initial=0))
    assume(all(any(place.search(value, at + size, at + 2 * size) for place in good) for at in starts[:-1]))
    words = [word for piece in pieces for word, _ in splitter.pre_tokenize_str(piece)]
    assert words == [word for word, _ in splitter.pre_tokenize_str(value)]


@settings(max_examples=200, deadline=None)
@given(value=tricky, sizes=st.lists(st.integers(1, 50), min_size=1), piece=st.integers(1, 30))
def test_pieces_are_the_text_however_it_comes_in_blocks(value: str, sizes: list[int], piece: int) -> None:
    found = list(text.pieces(in_blocks(value, sizes), piece))
    assert "".join(part for part, _ in found) == value
    assert [begins for _, begins in found] == [i == 0 for i in range(len(found))]
    assert found == list(text.pieces([value], piece))


def in_blocks(value: str, sizes: list[int]) -> list[str]:
    blocks, at, i = [], 0, 0
    while at < len(value):
        blocks.append(value[at : at + sizes[i % len(sizes)]])
        at += sizes[i % len(sizes)]
        i += 1
    return blocks


@settings(max_examples=200, deadline=None)
@given(value=st.text(st.sampled_from("a b\n\r\t"), max_size=60), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_lines_and_paragraphs_however_they_come_in_blocks(value: str, sizes: list[int]) -> None:
    plain = value.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [line.rstrip() for line in plain if line.strip()]
    paragraphs, current = [], []
    for line in [*plain, ""]:
        if line.strip():
            current.append(line)
        elif current:
            paragraphs.append("\n".join(current).rstrip())
            current = []
    blocks = in_blocks(value, sizes)
    assert list(text.documents(blocks, "line")) == [(line, True) for line in lines]
    assert list(text.documents(blocks, "paragraph")) == [(paragraph, True) for paragraph in paragraphs]
    assert "".join(piece for piece, _ in text.documents(blocks, "file")) == value


def test_a_document_longer_than_a_piece_stays_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 100)
    long = " ".join(f"word{i}\nnext" for i in range(200))
    found = list(text.documents(in_blocks(f"\n\nfirst\n\n{long}\n\n\nlast", [37]), "paragraph"))
    assert next(piece for piece, begins in found if begins) == "first"
    assert sum(begins for _, begins in found) == 3
    assert "".join(piece for piece, _ in found) == "first" + long + "last"
    assert max(len(piece) for piece, _ in found) < 200


def test_byte_level_bpe_of_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim itself, with merges: a text of words, paragraphs and CRLF, pieces of 100 to 200 characters."""
    rng = random.Random(0)
    words = ["the", "tokens,", "it's", "1234", "end.", "\n", "\n\n", "\r\n", "é", "中文"]
    value = " ".join(rng.choice(words) for _ in range(3000)).replace("\n ", "\n")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ċ", "Ċ"), ("n", "d"), ("Ġ", "e"), ("Ġe", "nd")]
    entries = alphabet + ["".join(pair) for pair in merges]
    backend = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    parts = [piece for piece, _ in text.pieces([value], 100)]
    assert len(parts) > 50
    assert [i for part in parts for i in backend.encode(part).ids] == backend.encode(value).ids
