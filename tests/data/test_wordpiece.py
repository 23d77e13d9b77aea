"""BERT's tokenizer: its vocabulary files, one trained anew, and the same one in every process."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer, tokenizer_training, vocabularies

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "my",
    "dog",
    "is",
    "cute",
    "he",
    "likes",
    "play",
    "##ing",
    "##s",
    ".",
    "cafe",
    "中",
    "文",
    "un",
    "##play",
    "##",
]
TEXT = "The bees hum; the trees hum, the bees' knees don't.\n\n  Summer 1999: Zwölf Bienen summen, 中文! " * 20
TRAINED = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 80), lambda: iter([TEXT]))


def load(folder: Path, entries: list[str]) -> tokenizer.Tokenizer:
    (folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry in entries), "utf-8")
    return tokenizer.build_tokenizer(TokenizerConfig("file", path=str(folder)), lambda: iter([]))


def pieces(made: tokenizer.Tokenizer, value: str) -> list[str]:
    return [made.token(i) for i in made.encode(value)]


# ---- vocab.txt --------------------------------------------------------------------------------------------------


def test_the_example_of_the_paper(tmp_path: Path) -> None:
    """Figure 2 splits "playing", which a vocabulary does that has no such entry."""
    made = load(tmp_path, SPECIALS + WORDS)
    assert pieces(made, "my dog is cute") == ["my", "dog", "is", "cute"]
    assert pieces(made, "he likes playing") == ["he", "likes", "play", "##ing"]
    assert pieces(load(tmp_path, [*SPECIALS, *WORDS, "playing"]), "he likes playing") == ["he", "likes", "playing"]


def test_text_is_normalized_and_split_as_berts(tmp_path: Path) -> None:
    made = load(tmp_path, SPECIALS + WORDS)
    assert pieces(made, "Café PLAYS.\x00 中文dog") == ["cafe", "play", "##s", ".", "中", "文", "dog"]
    assert pieces(made, "unplaying unplayed") == ["un", "##play", "##ing", "[UNK]"]
    assert made.decode(made.encode("My DOG is playing.")) == "my dog is playing."


def test_special_tokens_keep_their_places_and_are_none_in_text(tmp_path: Path) -> None:
    entries = ["[PAD]", "[unused0]", *WORDS, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = load(tmp_path, entries)
    assert (made.pad, made.unknown, made.cls, made.sep, made.mask) == (0, 18, 19, 20, 21)
    assert made.end_of_text == 20
    assert made.special_ids == {0, 18, 19, 20, 21}
    assert not {0, 19, 20, 21} & set(made.encode("[PAD] my [CLS] dog [SEP] [MASK]"))
    np.testing.assert_array_equal(
        np.flatnonzero(made.continues), [entries.index(p) for p in ("##ing", "##s", "##play")]
    )


def test_a_vocabulary_with_capitals_keeps_them(tmp_path: Path) -> None:
    made = load(tmp_path, [*SPECIALS, "My", "dog", "Café"])
    assert pieces(made, "My dog Café my Cafe") == ["My", "dog", "Café", "[UNK]", "[UNK]"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [(WORDS, r"BERT's vocabulary has \[PAD\], \[UNK\]"), ([*SPECIALS, "a", "a"], "has 7 lines, 6 of them distinct")],
)
def test_a_bad_vocabulary_is_one_clear_line(tmp_path: Path, entries: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, entries)


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_pieces_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = load(tmp_path, SPECIALS + WORDS)
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    for value in (TEXT, "My Café's dog—is playing!\t中文 unplayed 'un'", "\u00a0\uff2d\uff39 dog\u200bis ﬁne İ"):
        assert made.encode(value) == theirs.encode(value, add_special_tokens=False)


# ---- A vocabulary of our own ------------------------------------------------------------------------------------


def test_a_trained_vocabulary() -> None:
    assert TRAINED.vocab_size == 80
    assert [TRAINED.token(i) for i in range(5)] == SPECIALS
    assert TRAINED.special_ids == set(range(5))
    assert pieces(TRAINED, "The bees HUM") == ["the", "bees", "hum"]
    assert pieces(TRAINED, "beest") == ["bees", "##t"]
    assert "##文" not in TRAINED._vocabulary  # a word by itself
    assert TRAINED.decode(TRAINED.encode(TEXT)).startswith("the bees hum ; the trees hum, the bees ' knees don ' t.")


@settings(max_examples=100, deadline=None)
@given(value=st.text(st.sampled_from(sorted(set(TEXT.lower()) - set("ö!;,.:'"))), max_size=60))
def test_words_come_back_and_are_counted(value: str) -> None:
    """Words of the text's own characters: blanks become one, and stand around what is Chinese."""
    spaced = "".join(f" {char} " if char in "中文" else char for char in value)
    ids = TRAINED.encode(value)
    assert TRAINED.decode(ids) == " ".join(spaced.split())
    assert TRAINED.nbytes(np.asarray([*ids, TRAINED.sep])) == len(" ".join(spaced.split()).encode())


def test_rare_characters_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_training, "SMALL_ALPHABET", 3)
    monkeypatch.setattr(tokenizer_training, "COVERAGE", 0.8)
    made = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 20), lambda: iter(["aaa bbb cc d", "ab e"]))
    assert {entry for entry in made._vocabulary if len(entry) == 1} == {"a", "b", "c"}
    assert pieces(made, "ab d") == ["ab", "[UNK]"]


def test_more_than_1000_characters_are_covered() -> None:
    """A vocabulary takes the characters that cover 99.99 % of the text, as far as it has room."""
    characters = [chr(0x4E00 + i) for i in range(1500)]
    text = "".join(char * (3 if i < 1400 else 1) for i, char in enumerate(characters))
    full = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 2000), lambda: iter([text]))
    assert full.unknown not in full.encode(text)
    small = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 1205), lambda: iter([text]))
    assert small.vocab_size == 1205
    assert all(char in small._vocabulary for char in characters[:1200])


MARKS = {
    "Hindi": "किताब पढ़ना अच्छा है ",
    "Thai": "น้ำ ที่ นี่ เป็น ",
    "Arabic": "كِتَابٌ ",
    "Japanese": "がんばって ください ",
    "Vietnamese": "Tiếng Việt được viết ",
}


@pytest.mark.parametrize("language", MARKS)
def test_vowel_signs_and_tones_survive_unless_they_are_stripped(language: str) -> None:
    text = unicodedata.normalize("NFC", MARKS[language]) * 30
    made = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 200), lambda: iter([text]))
    assert unicodedata.normalize("NFC", made.decode(made.encode(text))) == text.lower().strip()
    stripped = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 200, strip_accents=True), lambda: iter([text]))
    assert not any(map(unicodedata.combining, unicodedata.normalize("NFD", stripped.decode(stripped.encode(text)))))


def test_lower_case_and_accents_can_be_kept_or_removed() -> None:
    for lowercase, strip, expected in (
        (True, None, "zwolf cafe"),
        (True, False, "zwölf café"),
        (False, None, "Zwölf Café"),
        (False, True, "Zwolf Cafe"),
    ):
        config = TokenizerConfig("wordpiece", 60, lowercase=lowercase, strip_accents=strip)
        made = tokenizer.build_tokenizer(config, lambda: iter(["Zwölf Café " * 9]))
        assert made.decode(made.encode("Zwölf Café")) == expected
    with pytest.raises(UserError, match=r"data.tokenizer.lowercase is for kind=wordpiece; remove it for kind=bpe"):
        tokenizer.build_tokenizer(TokenizerConfig("bpe", lowercase=False), lambda: iter([TEXT]))


@pytest.mark.filterwarnings("ignore")  # of transformers
@settings(max_examples=30, deadline=None)
@given(
    text=st.text(st.sampled_from("Café KIND ñ\u0301 किताब がน้ำ 中文! ẞİﬁ\u00a0\u200b\t"), max_size=40),
    lowercase=st.booleans(),
    strip=st.sampled_from([None, True, False]),
)
def test_a_trained_vocabulary_is_read_by_transformers(text: str, lowercase: bool, strip: bool | None) -> None:
    transformers = pytest.importorskip("transformers")
    config = TokenizerConfig("wordpiece", 120, lowercase=lowercase, strip_accents=strip)
    made = tokenizer.build_tokenizer(config, lambda: iter([text, "Café kind किताब"]))
    normalizer = made.backend.normalizer
    theirs = transformers.BertTokenizer(
        vocab=made._vocabulary, do_lower_case=normalizer.lowercase, strip_accents=normalizer.strip_accents
    )
    assert made.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert made.unknown not in made.encode(text)


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"vocab_size=40: word pieces of this text have at least \d+ entries"):
        tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 40), lambda: iter([TEXT]))


SCRIPT = """
import pydoc_data.topics
from lmjax.config import TokenizerConfig
from lmjax.data import tokenizer
texts = list(pydoc_data.topics.topics.values())[::4]
print(tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 1000), lambda: iter(texts)).sha256)
"""


def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    """Also with other hash seeds and other numbers of threads."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": str(i), "RAYON_NUM_THREADS": str(i + 1)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert len(outputs[0].strip()) == 64
    assert outputs[1:] == outputs[:1] * 2


def test_files_are_found_by_their_name(tmp_path: Path) -> None:
    load(tmp_path, SPECIALS + WORDS)
    assert vocabularies.files(tmp_path) == (tmp_path / "vocab.txt",)
    (tmp_path / "vocab.txt").rename(tmp_path / "bert-vocab.txt")
    assert tokenizer.load_tokenizer(tmp_path / "bert-vocab.txt").vocab_size == len(SPECIALS + WORDS)
    (tmp_path / "corpus.txt").write_text("a")
    with pytest.raises(UserError, match="is no tokenizer: give a"):
        tokenizer.load_tokenizer(tmp_path / "corpus.txt")


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert (loaded.sha256, loaded.special_ids, loaded.mask) == (TRAINED.sha256, TRAINED.special_ids, 4)
    assert loaded.encode(TEXT) == TRAINED.encode(TEXT)
    np.testing.assert_array_equal(loaded.continues, TRAINED.continues)


def test_other_tokenizers_have_no_such_tokens() -> None:
    made = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([]))
    assert (made.cls, made.sep, made.mask, made.pad, made.unknown) == (None,) * 5
    assert made.special_ids == {256}
    assert not made.continues.any()
