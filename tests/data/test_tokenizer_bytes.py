"""The bytes of parts of a text: together they are the bytes of the text, wherever it is cut."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmjax.data import tokenizer_bytes
from lmjax.data.tokenizer import Tokenizer

WORDS = ["a", "bb", "ccc", "é"]


def sentence_pieces() -> Tokenizer:
    """LLaMA's kind: a blank is prepended to a text, and removed where it is decoded."""
    pieces = ["<unk>", "</s>", "\u2581", *WORDS, *("\u2581" + word for word in WORDS), "b", "c"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", word) for word in WORDS]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend)


def word_pieces() -> Tokenizer:
    pieces = ["[UNK]", "[SEP]", *WORDS, *("##" + word for word in WORDS), *"bc", "##b", "##c"]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["[SEP]"])
    return Tokenizer(backend)


TOKENIZERS = {"sentence pieces": sentence_pieces(), "word pieces": word_pieces()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(documents=st.lists(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=6), max_size=4), data=st.data())
def test_parts_have_the_bytes_of_the_documents(kind: str, documents: list[list[int]], data: st.DataObject) -> None:
    known = TOKENIZERS[kind]
    joint = ["", " "]
    texts = ["".join(WORDS[i] + joint[i % 2] for i in document).rstrip() for document in documents]
    assert known.end_of_text is not None
    ids = np.array([id for text in texts for id in [*known.encode(text), known.end_of_text]], np.int64)
    total = sum(len(text.encode()) for text in texts)
    assert known.nbytes(ids) == total
    cut = data.draw(st.integers(0, len(ids)))
    assert known.nbytes(ids[:cut]) + known.nbytes(ids[cut:], before=ids[:cut]) == total


def test_a_long_document_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_bytes, "_DECODED", 2)
    for known in TOKENIZERS.values():
        assert known.nbytes(np.array(known.encode("a bb ccc a bb"), np.int64)) == len("a bb ccc a bb")
