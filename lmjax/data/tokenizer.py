"""Tokenizers: one class around `tokenizers` for tokenizers of any origin.

Every tokenizer is saved as one tokenizer.json and is identified by the sha256 of that text. Only lmjax itself writes
`<|endoftext|>` (or its equivalent in a loaded tokenizer) into a stream: in text, special tokens are plain text.

A tokenizer.json has no place for the roles of special tokens. Where a role cannot be known from the token's name, the
file records it as an entry of its post-processor's table of special tokens, named `lmjax:end_of_text` and so on. No
template uses these entries, so other programs read the same tokenizer.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import (
    control_tokens,
    tokenizer_budget,
    tokenizer_bytes,
    tokenizer_folder,
    tokenizer_roles,
    tokenizer_settings,
    tokenizer_training,
    vocabularies,
)
from lmjax.data.tokenizer_checks import library_errors, not_utf8
from lmjax.data.tokenizer_steps import keeps_text, steps
from lmjax.system import paths
from lmjax.system.files import write_text

# Rust threads and a later fork conflict. An explicit choice of threads suppresses the warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", vocabularies.SEP)
_OF_BERT = {  # the names in transformers, the roles in a tokenizer.json, and BERT's tokens
    "cls_token": ("cls", vocabularies.CLS),
    "sep_token": ("sep", vocabularies.SEP),
    "mask_token": ("mask", vocabularies.MASK),
    "pad_token": ("pad", vocabularies.PAD),
}
_NO_END = "no token ends a document: neither eos_token nor the vocabulary names one"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer, a wrapper of `tokenizers.Tokenizer`.

    Raises:
        UserError: The ids do not form a vocabulary.
    """

    #: The wrapped tokenizer.
    backend: Backend
    #: Special tokens by their names in transformers, bos_token and so on, as the files of a folder give them.
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: Settings of tokenizer_config.json that an export writes again.
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # text that reads "<|endoftext|>" is text
        self._record_roles()
        if self.end_of_text is not None:  # also for a file that lists it as an ordinary token
            self.backend.add_special_tokens([control_tokens.special(self.token_text(self.end_of_text))])
        vocabulary = self._vocabulary
        if not vocabulary or self.vocab_size > 2 * len(vocabulary) + 1024:
            token, largest = max(vocabulary.items(), key=lambda item: item[1], default=("", 0))
            raise UserError(
                f"bad tokenizer: {len(vocabulary)} entries, but token {token!r} has the id {largest}; "
                "ids must count from 0"
            )

    def _record_roles(self) -> None:
        """Record in the backend the special tokens of a run that their names do not show."""
        present = tokenizer_roles.recorded(self.backend)
        roles = {"end_of_text": self.named.get("eos_token")}
        if self.named.get("mask_token") in self._vocabulary:  # the vocabulary of a masked language model
            roles |= {role: self.named.get(name) for name, (role, _) in _OF_BERT.items()}
        usual = dict(_OF_BERT.values()) | {"end_of_text": self._usual_end}
        wanted = {
            role: token
            for role, token in roles.items()
            if token in self._vocabulary and token != present.get(role, usual.get(role))
        }
        if wanted:
            tokenizer_roles.record(self.backend, wanted)

    @cached_property
    def _roles(self) -> dict[str, int]:
        """The ids of the recorded special tokens by their roles."""
        tokens = tokenizer_roles.recorded(self.backend)
        return {role: self._vocabulary[token] for role, token in tokens.items() if token in self._vocabulary}

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._vocabulary.values(), default=-1) + 1

    @property
    def _usual_end(self) -> str | None:
        return next((name for name in _ENDS if name in self._vocabulary), None)

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that ends a document: of the token that eos_token names, or a usual one."""
        return self._roles.get("end_of_text", self._vocabulary.get(self._usual_end or ""))

    @property
    def end_description(self) -> str:
        """A sentence about the token that ends a document."""
        if self.end_of_text is None:
            return _NO_END
        return f"{self.token(self.end_of_text)!r} (id {self.end_of_text}) ends each document"

    def id_of(self, name: str) -> int | None:
        """Return the id of a special token that a folder's files name, such as bos_token."""
        token = self.named.get(name)
        return None if token is None else self._vocabulary.get(token)

    def id_of_token(self, token: str) -> int | None:
        """Return the id of an entry of the vocabulary in its stored form, or None."""
        return self._vocabulary.get(token)

    def _of_bert(self, name: str) -> int | None:
        role, usual = _OF_BERT[name]
        return self._roles.get(role, self._vocabulary.get(usual))

    @property
    def cls(self) -> int | None:
        """The id of [CLS], the first token of BERT's rows, if the vocabulary has it."""
        return self._of_bert("cls_token")

    @property
    def sep(self) -> int | None:
        """The id of [SEP], the token after each part of a row."""
        return self._of_bert("sep_token")

    @property
    def mask(self) -> int | None:
        """The id of [MASK], which replaces a token to predict."""
        return self._of_bert("mask_token")

    @property
    def pad(self) -> int | None:
        """The id of [PAD], which fills a row after its end."""
        return self._of_bert("pad_token")

    @cached_property
    def unknown(self) -> int | None:
        """The id that replaces what the vocabulary cannot represent, such as [UNK]."""
        token = getattr(self.backend.model, "unk_token", None)
        if token in self._vocabulary:
            return self._vocabulary[token]
        if isinstance(self.backend.model, models.Unigram):
            return json.loads(self.backend.to_str())["model"].get("unk_id")
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
        write_text(Path(path), self.json)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a text, without additional tokens.

        Args:
            text: The text.
            special: Recognize special tokens in the text; otherwise `<|endoftext|>` in a text is ordinary text.

        Raises:
            UserError: The text is not valid, or a character vocabulary lacks a character of the text.
        """
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Encode several texts in parallel; see `encode`."""
        backend = self.recognizing if special else self.backend
        what = "the tokenizer cannot encode this text"
        try:
            with library_errors(what, quiet=bool(self.budget.patterns)):
                self.budget.check(texts)
                batch = [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except UserError as error:
            wrong = next(filter(None, map(not_utf8, texts)), None)
            raise (UserError(f"{what}: {wrong}") if wrong else error) from None
        if self.by_character and not special:
            wrong = (text for text, ids in zip(texts, batch, strict=True) if len(ids) != len(text))
            if lacking := "".join(map(self.refused, wrong))[:1]:
                size = len(self._vocabulary) - len(self.backend.get_added_tokens_decoder())
                name = f"character {lacking!r} (U+{ord(lacking):04X})"
                advice = "leave out the text that has it, or use a tokenizer of this text"
                raise UserError(f"{name} is not in the tokenizer's vocabulary of {size} characters; {advice}")
        return batch

    def refused(self, text: str) -> str:
        """Return the characters of a text that a character vocabulary lacks."""
        return "".join(c for c in text if c not in self._vocabulary) if self.by_character else ""

    @cached_property
    def budget(self) -> tokenizer_budget.Budget:
        """The budget of unusual expressions of its steps, whose search may fail or take long."""
        parts = [*steps(self.backend.pre_tokenizer), *steps(self.backend.normalizer)]
        patterns = [step["pattern"].get("Regex", "") for step in parts if "pattern" in step]
        return tokenizer_budget.Budget(set(patterns) - vocabularies.EXPRESSIONS)

    @cached_property
    def recognizing(self) -> Backend:
        """A copy of the backend that recognizes special tokens in text."""
        backend = Backend.from_str(self.json)
        backend.encode_special_tokens = False
        return backend

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

    def nbytes(self, ids: np.ndarray, *, before: Sequence[int] | np.ndarray = ()) -> int:
        """Count the UTF-8 bytes of the text of these ids; they may split a character.

        Args:
            ids: The ids; each end_of_text ends a document.
            before: Ids that precede them. Without them, `ids` is the beginning of a document, which some tokenizers
                decode differently.
        """
        if self._lengths is None:
            return tokenizer_bytes.count(ids, self.decode, end=self.end_of_text, before=before)
        counts = np.bincount(ids, minlength=self.vocab_size) if len(ids) else np.zeros(self.vocab_size, np.int64)
        return int(counts @ self._lengths)

    @cached_property
    def lossless(self) -> bool:
        """Whether decoding the tokens of a text always returns the text.

        True for byte-level BPE without a normalizer and for characters. Word pieces and SentencePiece vocabularies
        change some texts.
        """
        added = self.backend.get_added_tokens_decoder().values()
        if self.backend.normalizer is not None or any(token.lstrip or token.rstrip for token in added):
            return False
        parts = steps(self.backend.pre_tokenizer)
        model, table = self.backend.model, vocabularies.byte_of()
        if not self._by_bytes:
            return self.by_character and not parts
        return (
            isinstance(model, models.BPE)
            and not (model.continuing_subword_prefix or model.end_of_word_suffix)
            and any(step["type"] == "ByteLevel" for step in parts)
            and all(keeps_text(step) for step in parts)
            and all(char in self._vocabulary for char in table)
            # The decoder reads each token as bytes, tokens that were added as text too.
            and all(t.special or t.content.isascii() or not table.keys() >= set(t.content) for t in added)
        )

    @property
    def _by_bytes(self) -> bool:
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    @property
    def by_character(self) -> bool:
        """Whether each token is a character: only this kind joins its tokens without another step."""
        return isinstance(self.backend.decoder, decoders.Fuse)

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        """UTF-8 bytes of each token (0 if special); None unless tokens are bytes or characters."""
        if not (self._by_bytes or self.by_character):
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
    if config.kind != "wordpiece" and (config.lowercase, config.strip_accents) != (True, None):
        name = "strip_accents" if config.lowercase else "lowercase"
        raise UserError(f"data.tokenizer.{name} is for kind=wordpiece; remove it for kind={config.kind}")
    if config.kind == "file":
        return load_tokenizer(Path(config.path))
    if config.kind == "bytes":
        return _complete(vocabularies.byte_level(dict(vocabularies.byte_of())), config)
    if config.kind == "characters":
        return _complete(tokenizer_training.characters(texts), config)
    trained = dataclasses.replace(config, vocab_size=config.vocab_size - config.reserved)
    if config.kind == "wordpiece":
        return Tokenizer(control_tokens.reserve(tokenizer_training.train_word_pieces(trained, texts), config.reserved))
    return _complete(tokenizer_training.train_bpe(trained.vocab_size, texts), config)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a file, or from a folder that holds it.

    The formats are tokenizer.json, GPT-2's two files, .tiktoken ranks and vocab.txt.

    Raises:
        UserError: The path has no valid tokenizer.
    """
    loaded = tokenizer_folder.load(path, END_OF_TEXT)
    return Tokenizer(loaded.backend, loaded.named, loaded.config)


def file_identity(path: Path) -> list[list[str]]:
    """Return the names and hashes of the files of a tokenizer, which identify it.

    If the other files of a folder change the tokenizer, the hash of the result is the last entry.

    Raises:
        UserError: The path has no valid tokenizer.
    """
    parts = vocabularies.files(path)
    entries = [[part.name, hashlib.sha256(part.read_bytes()).hexdigest()] for part in parts]
    if tokenizer_settings.exist(parts[0].parent) and paths.local(path, key="data.tokenizer.path").is_dir():
        complete = load_tokenizer(path).sha256
        try:
            alone = Tokenizer(vocabularies.load(parts, END_OF_TEXT)).sha256
        except UserError:  # a vocab.txt with other special tokens
            alone = None
        if complete != alone:
            entries.append(["settings", complete])
    return entries


def _complete(backend: Backend, config: TokenizerConfig) -> Tokenizer:
    """Add the end-of-text token and the reserved control tokens to a vocabulary."""
    backend.add_special_tokens([control_tokens.special(END_OF_TEXT)])
    return Tokenizer(control_tokens.reserve(backend, config.reserved))
