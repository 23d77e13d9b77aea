"""Tokenizers: one class around `tokenizers` for tokenizers of any origin.

Every tokenizer is saved as one tokenizer.json and is identified by the sha256 of that text. Only lmjax itself writes
`<|endoftext|>` (or its equivalent in a loaded tokenizer) into a stream: in text, special tokens are plain text.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import vocabularies
from lmjax.data.sources.text import pieces

# Rust threads and a later fork conflict. An explicit choice of threads suppresses the warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", vocabularies.SEP)
TRAINING_BYTES = 200_000_000  # maximum amount of text that a vocabulary is trained on
ALPHABET = 1000  # maximum number of characters in word pieces, the most frequent ones


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer, a wrapper of `tokenizers.Tokenizer`.

    Raises:
        UserError: The ids do not form a vocabulary.
    """

    #: The wrapped tokenizer.
    backend: Backend

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # text that reads "<|endoftext|>" is text
        if self.end_of_text is not None:  # also for a file that lists it as an ordinary token
            self.backend.add_special_tokens([_special(self.token_text(self.end_of_text))])
        vocabulary = self._vocabulary
        if not vocabulary or self.vocab_size > 2 * len(vocabulary) + 1024:
            token, largest = max(vocabulary.items(), key=lambda item: item[1], default=("", 0))
            raise UserError(
                f"bad tokenizer: {len(vocabulary)} entries, but token {token!r} has the id {largest}; "
                "ids must count from 0"
            )

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._vocabulary.values(), default=-1) + 1

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that ends a document in a stream, if the vocabulary has one."""
        return next((self._vocabulary[name] for name in _ENDS if name in self._vocabulary), None)

    @property
    def cls(self) -> int | None:
        """The id of [CLS], the first token of BERT's rows, if the vocabulary has it."""
        return self._vocabulary.get(vocabularies.CLS)

    @property
    def sep(self) -> int | None:
        """The id of [SEP], the token after each part of a row."""
        return self._vocabulary.get(vocabularies.SEP)

    @property
    def mask(self) -> int | None:
        """The id of [MASK], which replaces a token to predict."""
        return self._vocabulary.get(vocabularies.MASK)

    @property
    def pad(self) -> int | None:
        """The id of [PAD], which fills a row after its end."""
        return self._vocabulary.get(vocabularies.PAD)

    @property
    def unknown(self) -> int | None:
        """The id of [UNK], which replaces a word that the vocabulary cannot represent."""
        return self._vocabulary.get(vocabularies.UNKNOWN)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that represent no text."""
        named = (self.cls, self.sep, self.mask, self.pad, self.unknown, self.end_of_text)
        added = self.backend.get_added_tokens_decoder()
        return frozenset([i for i in named if i is not None] + [i for i, token in added.items() if token.special])

    @cached_property
    def continues(self) -> np.ndarray:
        """Whether each id continues the previous word, bool; known only for WordPiece."""
        continues_V = np.zeros(self.vocab_size, bool)
        if isinstance(self.backend.model, models.WordPiece):
            prefix = self.backend.model.continuing_subword_prefix
            continues_V[
                [i for token, i in self._vocabulary.items() if token.startswith(prefix) and token != prefix]
            ] = 1
        return continues_V

    @cached_property
    def json(self) -> str:
        """The content of tokenizer.json."""
        return self.backend.to_str(pretty=True)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of tokenizer.json."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write tokenizer.json to the file `path`."""
        Path(path).write_bytes(self.json.encode())

    def encode(self, text: str) -> list[int]:
        """Encode a text, without additional tokens.

        Raises:
            UserError: A character vocabulary lacks a character of the text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in parallel."""
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the only type that the Rust library raises
            raise UserError(f"the tokenizer cannot encode this text: {error}") from None
        batch = [encoding.ids for encoding in encodings]
        if self._by_character:
            for item, ids in zip(texts, batch, strict=True):
                if len(ids) != len(item):
                    lacking = next(c for c in item if c not in self._vocabulary)
                    raise UserError(
                        f"character {lacking!r} (U+{ord(lacking):04X}) is not in the tokenizer's vocabulary "
                        f"of {self.vocab_size - 1} characters"
                    )
        return batch

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decode ids; end_of_text appears as text, and invalid UTF-8 becomes U+FFFD."""
        return self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def token_text(self, id: int) -> str:
        """Return an entry of the vocabulary in its stored form.

        Raises:
            UserError: The id is outside the vocabulary.
        """
        token = self.backend.id_to_token(int(id))
        if token is None:
            raise UserError(f"token id {id} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return token

    def token(self, id: int) -> str:
        """Return a token in printable form, with escapes for control and partial characters."""
        stored = self.token_text(id)
        if self._by_bytes and int(id) != self.end_of_text:
            table = vocabularies.byte_of()
            if all(char in table for char in stored):
                stored = bytes(table[char] for char in stored).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in stored)

    def nbytes(self, ids: np.ndarray) -> int:
        """Count the UTF-8 bytes of the text of these ids; they may split a character."""
        if self._lengths is None:
            text_ids = ids[ids != self.end_of_text] if self.end_of_text is not None else ids
            parts = (text_ids[i : i + 100_000] for i in range(0, len(text_ids), 100_000))
            return sum(len(self.decode(part).encode()) for part in parts)
        counts = np.bincount(ids, minlength=self.vocab_size) if len(ids) else np.zeros(self.vocab_size, np.int64)
        return int(counts @ self._lengths)

    @property
    def _by_bytes(self) -> bool:
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    @property
    def _by_character(self) -> bool:  # only this kind joins its tokens without another step
        return isinstance(self.backend.decoder, decoders.Fuse)

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        """UTF-8 bytes of each token (0 if special); None unless tokens are bytes or characters."""
        if not (self._by_bytes or self._by_character):
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        added = self.backend.get_added_tokens_decoder()
        for token, i in self._vocabulary.items():
            if i in added:
                lengths[i] = 0 if added[i].special else len(token.encode())
            else:
                lengths[i] = len(token) if self._by_bytes else len(token.encode())
        return lengths


def build_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """Build the tokenizer of a configuration.

    BPE and word pieces are trained on the first 200 MB of text; the same text gives the same tokenizer.

    Args:
        config: The configuration.
        texts: A function that starts the corpus. The kinds `bytes` and `file` do not read it.
    """
    if config.kind == "file":
        return load_tokenizer(Path(config.path))
    if config.kind == "bytes":
        return Tokenizer(_with_end(vocabularies.byte_level(dict(vocabularies.byte_of()))))
    if config.kind == "characters":
        characters: set[str] = set()
        for piece in texts():
            characters.update(piece)
        model = models.BPE(vocab={char: i for i, char in enumerate(sorted(characters))}, merges=[])
        backend = Backend(model)
        backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
        return Tokenizer(_with_end(backend))
    if config.kind == "wordpiece":
        return Tokenizer(_train_word_pieces(config.vocab_size, texts))
    if config.vocab_size < 257:
        raise UserError(f"data.tokenizer.vocab_size={config.vocab_size}: a byte-level BPE has at least 257 entries")
    backend = vocabularies.byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_training_texts(texts()), trainer)
    return Tokenizer(_with_end(backend))


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a file, or from a folder that holds it.

    The formats are tokenizer.json, GPT-2's two files, .tiktoken ranks and vocab.txt.

    Raises:
        UserError: The path has no valid tokenizer.
    """
    return Tokenizer(vocabularies.load(path, END_OF_TEXT))


def _train_word_pieces(vocab_size: int, texts: Callable[[], Iterator[str]]) -> Backend:
    """Train a WordPiece vocabulary.

    It has BERT's special tokens, characters, and the most frequent merges. The library's trainer numbers the characters
    inside words in the order of a hash map, which differs from run to run, and breaks ties by number. Here they are
    all numbered before the training.
    """
    backend = vocabularies.word_pieces()
    normalize, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for part in _training_texts(texts()):
        counts.update(normalize(part))
    frequent = sorted((char for char in counts if not char.isspace()), key=lambda char: (-counts[char], char))
    alphabet = sorted(frequent[:ALPHABET])
    inside = [vocabularies.CONTINUES + char for char in alphabet if len(split(normalize("a" + char))) == 1]
    first_entries = [*vocabularies.BERT_SPECIALS, *inside]
    least = len(first_entries) + len(alphabet)
    if vocab_size < least:
        raise UserError(
            f"data.tokenizer.vocab_size={vocab_size}: word pieces of this text have at least {least} entries, its "
            "characters"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first_entries,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=vocabularies.CONTINUES,
        show_progress=False,
    )
    backend.train_from_iterator(_training_texts(texts()), trainer)
    return vocabularies.word_pieces(backend.get_vocab(with_added_tokens=False))


def _special(name: str) -> AddedToken:
    return AddedToken(name, normalized=False, special=True)


def _with_end(backend: Backend) -> Backend:
    backend.add_special_tokens([_special(END_OF_TEXT)])
    return backend


def _training_texts(texts: Iterator[str]) -> Iterator[str]:
    """Yield the first TRAINING_BYTES in small pieces; the trainer buffers 256 of them."""
    left = TRAINING_BYTES
    for item in texts:
        for part, _ in pieces([item], 1 << 16):
            yield part
            left -= len(part.encode())
            if left <= 0:
                return
