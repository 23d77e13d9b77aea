"""Training of vocabularies: byte-level BPE, word pieces and characters.

Equal text gives an equal vocabulary.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import vocabularies
from lmjax.data.sources.text import pieces

TRAINING_BYTES = 200_000_000  # maximum amount of text that a vocabulary is trained on
LONGEST_WORD = 256  # characters; longer words are cut, since the trainer's time grows with the square of their length
COVERAGE = 0.9999  # share of the characters of the text that the alphabet of word pieces covers
SMALL_ALPHABET = 1000  # characters; an alphabet up to this size is complete
VOWEL_SIGNS = 0.001  # share of marks that carry meaning from which on accents are not stripped

_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD},}}|\s{{{LONGEST_WORD},}}")
_VIETNAMESE = "\u0309\u031b\u0323"  # hook above, horn, dot below

Texts = Callable[[], Iterator[str]]


def train_bpe(vocab_size: int, texts: Texts) -> Backend:
    """Train a byte-level BPE with one entry less than `vocab_size`, for the end-of-text token.

    Raises:
        UserError: `vocab_size` is too small.
    """
    if vocab_size < 257:
        raise UserError(f"data.tokenizer.vocab_size={vocab_size}: a byte-level BPE has at least 257 entries")
    backend = vocabularies.byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = vocabularies.byte_level().pre_tokenizer
    backend.train_from_iterator(_short_words(words, training_texts(texts())), trainer)
    return backend


def train_word_pieces(config: TokenizerConfig, texts: Texts) -> Backend:
    """Train a WordPiece vocabulary.

    It has BERT's special tokens, characters, and the most frequent merges. The library's trainer numbers the characters
    inside words in the order of a hash map, which differs from run to run, and breaks ties by number. Here they are
    all numbered before the training.

    Raises:
        UserError: The vocabulary has no room for the characters of the text.
    """
    raw: Counter[str] = Counter()
    for part in training_texts(texts()):
        raw.update(part)
    lowercase, strip_accents = config.lowercase, config.strip_accents
    if strip_accents is None and lowercase and _vowel_signs(raw) >= VOWEL_SIGNS:
        strip_accents = False
    backend = vocabularies.word_pieces(lowercase=lowercase, strip_accents=strip_accents)
    alphabet, inside = _alphabet(backend, raw, config.vocab_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*vocabularies.BERT_SPECIALS, *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=vocabularies.CONTINUES,
        show_progress=False,
    )
    words = vocabularies.word_pieces().pre_tokenizer
    backend.train_from_iterator(_short_words(words, training_texts(texts())), trainer)
    entries = backend.get_vocab(with_added_tokens=False)
    return vocabularies.word_pieces(entries, lowercase=lowercase, strip_accents=strip_accents)


def _vowel_signs(raw: Counter[str]) -> float:
    """Return the share of characters with marks that are no accents of European letters.

    BERT strips all marks: vowel signs of Devanagari, Thai and Arabic, the voicing of kana, the tones of Vietnamese.
    """
    marks = total = 0
    for char, count in raw.items():
        if not char.isspace():
            total += count
            decomposed = unicodedata.normalize("NFD", char)
            if any(unicodedata.category(c) == "Mn" and not _is_accent(c) for c in decomposed):
                marks += count
    return marks / max(total, 1)


def _is_accent(mark: str) -> bool:
    return "\u0300" <= mark <= "\u036f" and mark not in _VIETNAMESE


def _alphabet(backend: Backend, raw: Counter[str], vocab_size: int) -> tuple[list[str], list[str]]:
    """Return the characters of the vocabulary, and the entries for those inside a word.

    An alphabet of more than `SMALL_ALPHABET` characters is cut to those that cover the text, and to the vocabulary.
    """
    normalize, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for char, count in raw.items():
        for normal in normalize(char):
            counts[normal] += count
    frequent = sorted((char for char in counts if not char.isspace()), key=lambda char: (-counts[char], char))
    inside = {char: vocabularies.CONTINUES + char for char in frequent if len(split(normalize("a" + char))) == 1}
    if len(frequent) > SMALL_ALPHABET:
        frequent = _covering(frequent, counts)
        room = vocab_size - len(vocabularies.BERT_SPECIALS)
        for size, char in enumerate(frequent):
            room -= 2 if char in inside else 1
            if room < 0:
                frequent = frequent[:size]
                break
    alphabet = sorted(frequent)
    entries = [inside[char] for char in alphabet if char in inside]
    least = len(vocabularies.BERT_SPECIALS) + len(entries) + len(alphabet)
    if vocab_size < least:
        raise UserError(
            f"data.tokenizer.vocab_size={vocab_size}: word pieces of this text have at least {least} entries, its "
            "characters"
        )
    return alphabet, entries


def _covering(frequent: list[str], counts: Counter[str]) -> list[str]:
    """Return the most frequent characters that cover the text, at least `SMALL_ALPHABET`."""
    total, covered = sum(counts[char] for char in frequent), 0
    for size, char in enumerate(frequent, 1):
        covered += counts[char]
        if size >= SMALL_ALPHABET and covered >= COVERAGE * total:
            return frequent[:size]
    return frequent


# ---- The text ---------------------------------------------------------------------------------------------------


def training_texts(texts: Iterator[str]) -> Iterator[str]:
    """Yield the first `TRAINING_BYTES` in small pieces; the trainer buffers 256 of them."""
    left = TRAINING_BYTES
    for item in texts:
        for part, _ in pieces([item], 1 << 16):
            yield part
            left -= len(part.encode())
            if left <= 0:
                return


def _short_words(words: Any, texts: Iterator[str]) -> Iterator[str]:
    """Yield the texts, cut inside words of more than `LONGEST_WORD` characters.

    `words` is a pre-tokenizer of its own: that of a backend is locked while the backend is trained.
    """
    for text in texts:
        if not _LONG_RUN.search(text):
            yield text
            continue
        begin = 0
        for _, (start, end) in words.pre_tokenize_str(text):
            for cut in range(start + LONGEST_WORD, end, LONGEST_WORD):
                yield text[begin:cut]
                begin = cut
        yield text[begin:]


def characters(texts: Texts) -> Backend:
    """Return a vocabulary of all characters of a text, in the order of their numbers."""
    alphabet: set[str] = set()
    for piece in texts():
        alphabet.update(piece)
    backend = Backend(models.BPE(vocab={character: i for i, character in enumerate(sorted(alphabet))}, merges=[]))
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return backend
