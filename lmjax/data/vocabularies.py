"""Vocabulary files of other origins as `tokenizers` objects.

The formats are tokenizer.json, GPT-2's two files, tiktoken's ranks and BERT's vocab.txt. What the other files of a
folder say about the tokenizer is applied by `lmjax.data.tokenizer_folder`.
"""

import base64
import binascii
import codecs
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmjax.config import UserError
from lmjax.config.json_text import decode_utf8, parse_json
from lmjax.config.regular_files import read_regular
from lmjax.data.tokenizer_checks import check_json, library_errors
from lmjax.system import paths

_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_WORD_PIECES = "vocab.txt"

# BERT's special tokens, in the order of lmjax's vocabularies, and the prefix of pieces inside a word.
PAD, UNKNOWN, CLS, SEP, MASK = BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"

# A rank file does not define how text is split into words; the file name selects it. The expressions are OpenAI's
# cl100k_base (GPT-4; Llama 3 uses the same) and o200k_base (GPT-4o); all older files use GPT-2's.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = {
    "cl100k": _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST,
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST,
}
_WORDS["llama"] = _WORDS["cl100k"]
QWEN2_WORDS = _WORDS["cl100k"].replace(r"\p{N}{1,3}", r"\p{N}")  # Qwen2 and Qwen3: each digit is a word
QWEN3_5_WORDS = (  # marks belong to letters
    QWEN2_WORDS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
)


EXPRESSIONS = frozenset(["", QWEN2_WORDS, QWEN3_5_WORDS, *_WORDS.values()])


@cache
def byte_of() -> dict[str, int]:
    """Map each character of a byte-level vocabulary to its byte.

    As in Radford et al. 2019, encoder.py: bytes that are visible Latin-1 characters represent themselves; the others
    map, in order, to U+0100 and above.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(moved)}


def byte_level(vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None) -> Backend:
    """Create a byte-level BPE that splits words as GPT-2 does.

    Without arguments it is for training. With a vocabulary without merges the text is not split into words, since
    that has no effect.
    """
    if vocabulary is None:
        backend, split = Backend(models.BPE()), True
    else:
        backend, split = Backend(models.BPE(vocab=vocabulary, merges=merges or [])), bool(merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def word_pieces(
    vocabulary: dict[str, int] | None = None,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    unknown: str = UNKNOWN,
    special: Sequence[str] = BERT_SPECIALS,
) -> Backend:
    """Create BERT's WordPiece; without a vocabulary, for training.

    Text is cleaned of control characters, lower-cased and stripped of accents if `lowercase`, and split at blanks and
    punctuation and around every Chinese character; a word is then cut into the longest entries from the left, or is
    [UNK] (Devlin et al. 2019; Wu et al. 2016, section 4.1). Decoding thus restores words, not every letter.

    Args:
        vocabulary: The entries with their ids.
        lowercase: Convert text to lower case.
        strip_accents: Remove combining marks; None: if `lowercase`. Vowel signs of many scripts are such marks.
        unknown: The entry for a word that cannot be represented.
        special: Entries that are special tokens.
    """
    if vocabulary is None:
        backend = Backend(models.WordPiece(unk_token=unknown))
    else:
        backend = Backend(models.WordPiece(vocabulary, unk_token=unknown, continuing_subword_prefix=CONTINUES))
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)  # pyright: ignore
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def load(parts: tuple[Path, ...], end_of_text: str, special: Sequence[str] = BERT_SPECIALS) -> Backend:
    """Load the tokenizer in a file or in two files.

    Args:
        parts: The paths that `files` returns.
        end_of_text: The token that ranks get as the last entry.
        special: The special tokens that a vocab.txt must have; the second one is the unknown token.

    Raises:
        UserError: A file is no valid tokenizer.
    """
    what = f"bad tokenizer file '{parts[0]}'"
    try:
        contents = [read_regular(part).removeprefix(codecs.BOM_UTF8) for part in parts]
    except OSError as error:
        raise UserError(f"{what}: it cannot be read ({error.strerror})") from None
    with library_errors(what, quiet=True):
        if len(parts) == 2:
            return _gpt2(*parts, *contents)
        if parts[0].suffix.lower() == ".tiktoken":
            return _tiktoken(parts[0], contents[0], end_of_text)
        if parts[0].suffix.lower() == ".txt":
            return _vocab_txt(parts[0], contents[0], special)
        check_json(contents[0], what)
        return Backend.from_str(contents[0].decode())


def files(path: Path) -> tuple[Path, ...]:
    """Return the file or the two files of the tokenizer `path`."""
    path = paths.local(path, key="data.tokenizer.path")
    if not str(path) or str(path) == ".":
        raise UserError("data.tokenizer.kind=file needs data.tokenizer.path=PATH")
    if not path.exists():
        raise paths.missing(path)
    if path.is_file():
        if path.suffix.lower() not in (".json", ".tiktoken") and not path.name.endswith(_WORD_PIECES):
            raise UserError(f"'{path}' is no tokenizer: give a tokenizer.json, a .tiktoken, a vocab.txt, or a folder")
        return (path,)
    for names in (("tokenizer.json",), *_PAIRS, (_WORD_PIECES,)):
        if all((path / name).is_file() for name in names):
            return tuple(path / name for name in names)
    ranks = sorted(path.glob("*.tiktoken"))
    if len(ranks) > 1:
        several = ", ".join(file.name for file in ranks)
        raise UserError(f"the folder '{path}' has several tokenizers ({several}); give the path of one of them")
    if ranks:
        return (ranks[0],)
    formats = ", ".join(" + ".join(names) for names in [("tokenizer.json",), *_PAIRS, (_WORD_PIECES,)])
    raise UserError(f"no tokenizer in the folder '{path}': it has none of {formats}, *.tiktoken")


def _vocab_txt(path: Path, content: bytes, special: Sequence[str]) -> Backend:
    """Load a vocabulary of one entry per line. It is lower-case if no entry has a capital."""
    entries = decode_utf8(content, f"bad tokenizer file '{path}'").removesuffix("\n").split("\n")
    vocabulary = {entry.removesuffix("\r"): i for i, entry in enumerate(entries)}
    if len(vocabulary) != len(entries):
        raise UserError(f"bad tokenizer file '{path}': it has {len(entries)} lines, {len(vocabulary)} of them distinct")
    lacking = [name for name in special if name not in vocabulary]
    if lacking:
        raise UserError(f"bad tokenizer file '{path}': BERT's vocabulary has {', '.join(lacking)}, this one has not")
    plain = (entry for entry in vocabulary if entry not in special and not re.fullmatch(r"\[.+\]", entry))
    capitals = any(entry != entry.lower() for entry in plain)
    return word_pieces(vocabulary, lowercase=not capitals, unknown=special[1], special=special)


def _gpt2(vocabulary: Path, merges: Path, table_content: bytes, merges_content: bytes) -> Backend:
    lines = decode_utf8(merges_content, f"bad tokenizer file '{merges}'").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"bad tokenizer file '{merges}': {' '.join(wrong)!r} is not a pair of tokens")
    table = parse_json(table_content, f"bad tokenizer file '{vocabulary}'")
    if not isinstance(table, dict) or not all(type(i) is int and 0 <= i < 2**31 for i in table.values()):
        raise UserError(f"bad tokenizer file '{vocabulary}': it is not an object of token: id")
    return byte_level(table, [(a, b) for a, b in pairs])


def _tiktoken(path: Path, content: bytes, end_of_text: str) -> Backend:
    """A rank file (`base64 rank` lines) as a BPE that merges like tiktoken.

    tiktoken joins any two neighbours whose concatenation is an entry, lowest rank first; so every split of an entry
    into two entries is a merge, in the order of the ranks. A word that is an entry remains one token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"bad tokenizer file '{path}': line {number} is not 'base64 rank'") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"bad tokenizer file '{path}': its ranks do not count from 0 to {len(ranks) - 1}")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"bad tokenizer file '{path}': some single bytes have no rank")

    char_of = {byte: char for char, byte in byte_of().items()}
    spelled = {token: "".join(char_of[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        splits = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        splits.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled[left], spelled[right]) for left, right in splits]
    backend = byte_level({spelled[token]: rank for token, rank in ranks.items()}, merges)
    backend.model.ignore_merges = True  # pyright: ignore[reportAttributeAccessIssue]
    words = next((pattern for name, pattern in _WORDS.items() if name in path.name.lower()), None)
    if words is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.add_special_tokens([end_of_text])
    return backend
