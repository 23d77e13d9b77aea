"""Checks of a tokenizer.json before and while the Rust library `tokenizers` uses it.

A file can ask for exponential time (regular expressions, steps inside each other) or for memory without bound
(replacements of a character by a text). Only known kinds of steps are used, with bounds on their sizes.
"""

import base64
import binascii
import contextlib
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.config.expressions import check_expression
from lmjax.config.json_text import parse_json

STEPS = 50  # maximum number of steps of a normalizer, a pre-tokenizer, a decoder or a post-processor
GROWTH = 64  # maximum factor by which the replacements of a normalizer or decoder can lengthen a text
UNBOUNDED = 2  # maximum number of unbounded repetitions in an alternative of an expression; public tokenizers have 2
LONGEST = 10_000  # maximum number of characters of a token, and of a text in a step
_LONGEST_WORD = 128  # maximum of max_input_chars_per_word: the time grows with its square; BERT's is 100
_LONGEST_PIECE = 128  # bytes of a piece of a Unigram model: its time grows with the longest one; public ones have 64

_MODELS = frozenset(["BPE", "WordPiece", "WordLevel", "Unigram"])
_STEPS = {
    "normalizer": frozenset(
        [
            "BertNormalizer",
            "ByteLevel",
            "Lowercase",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Nmt",
            "Precompiled",
            "Prepend",
            "Replace",
            "Sequence",
            "Strip",
            "StripAccents",
        ]
    ),
    "pre_tokenizer": frozenset(
        [
            "BertPreTokenizer",
            "ByteLevel",
            "CharDelimiterSplit",
            "Digits",
            "FixedLength",
            "Metaspace",
            "Punctuation",
            "Sequence",
            "Split",
            "UnicodeScripts",
            "Whitespace",
            "WhitespaceSplit",
        ]
    ),
    "decoder": frozenset(
        [
            "BPEDecoder",
            "ByteFallback",
            "ByteLevel",
            "CTC",
            "Fuse",
            "Metaspace",
            "Replace",
            "Sequence",
            "Strip",
            "WordPiece",
        ]
    ),
    "post_processor": frozenset(["BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"]),
}
_PARTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "decoder": "decoders",
    "post_processor": "processors",
}


def check_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse and check the content of a tokenizer.json.

    Args:
        text: The content.
        where: The location, which begins each error message.

    Returns:
        The content as an object.

    Raises:
        UserError: The text is no tokenizer.json, or has a part that lmjax does not use, or one that is too large.
    """
    tree = parse_json(text, where)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise UserError(f"{where} has no model: it is not a tokenizer.json")
    _check_model(tree["model"], where)
    for name in _STEPS:
        steps = list(_steps(tree.get(name), name, where))
        _check_growth(steps, f"{where}: {name}")
        for step in steps:
            _check_step(step, f"{where}: {name}")
    tokens = tree.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(_is_token(token) for token in tokens):
        raise UserError(f"{where}: added_tokens is not a list of tokens of at most {LONGEST} characters")
    return tree


def _check_model(model: dict[str, Any], where: str) -> None:
    kind = model.get("type", "BPE")  # the oldest files do not name it; the library finds out
    if kind not in _MODELS:
        raise UserError(f"{where}: model.type={str(kind)[:40]!r} is not one of {', '.join(sorted(_MODELS))}")
    if model.get("dropout"):
        raise UserError(f"{where}: model.dropout={model['dropout']} makes encoding random; remove it from the file")
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > _LONGEST_WORD:
        raise UserError(f"{where}: model.max_input_chars_per_word is not a number up to {_LONGEST_WORD}")
    vocabulary = model.get("vocab")
    if kind == "Unigram" and isinstance(vocabulary, list):
        pieces = (entry[0] for entry in vocabulary if isinstance(entry, list) and entry and isinstance(entry[0], str))
        for piece in pieces:
            if len(piece.encode("utf-8", "replace")) > _LONGEST_PIECE:
                raise UserError(
                    f"{where}: model.vocab has the piece {piece[:40]!r} of more than {_LONGEST_PIECE} bytes"
                )
    if isinstance(vocabulary, dict):  # a list numbers its tokens; the library checks the types of ids
        token_of: dict[Any, str] = {}
        for token, id in vocabulary.items():
            if isinstance(id, int) and token_of.setdefault(id, token) != token:
                raise UserError(
                    f"{where}: model.vocab gives the tokens {token_of[id][:40]!r} and {token[:40]!r} one id, {id}; "
                    "give each token its own id"
                )


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and len(token["content"]) <= LONGEST


def _steps(part: Any, name: str, where: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of the file, those of sequences in their order."""
    count, todo = 0, [part] if part is not None else []
    while todo:
        step = todo.pop()
        kind = step.get("type") if isinstance(step, dict) else None
        if not isinstance(kind, str) or kind not in _STEPS[name]:
            known = ", ".join(sorted(_STEPS[name]))
            raise UserError(f"{where}: {name} has a step of type {str(kind)[:40]!r}; lmjax uses {known}")
        count += 1
        if count > STEPS:
            raise UserError(f"{where}: {name} has more than {STEPS} steps")
        if kind == "Sequence":
            inside = step.get(_PARTS[name])
            if not isinstance(inside, list):
                raise UserError(f"{where}: {name}: a Sequence without {_PARTS[name]!r}")
            todo += reversed(inside)
        else:
            yield step


def _check_growth(steps: list[dict[str, Any]], where: str) -> None:
    growth = 1.0
    for step in steps:
        if step["type"] == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            text = pattern.get("String") if isinstance(pattern, dict) else None
            if not isinstance(content, str) or text == "":
                raise UserError(f"{where}: a Replace without a pattern or content")
            growth *= max(1.0, len(content) / len(text or "x"))
        elif step["type"] == "ByteLevel":
            growth *= 2  # a byte becomes a character of up to two bytes
        elif step["type"] == "TemplateProcessing":
            _check_template(step, where)
    if growth > GROWTH:
        raise UserError(f"{where}: its steps can make a text {growth:,.0f} times as long; the limit is {GROWTH}")


def _check_template(step: dict[str, Any], where: str) -> None:
    for form in ("single", "pair"):
        pieces = step.get(form)
        if not isinstance(pieces, list) or len(pieces) > STEPS:
            raise UserError(f"{where}: {form} is not a list of at most {STEPS} pieces")
        texts = [piece["Sequence"] for piece in pieces if isinstance(piece, dict) and "Sequence" in piece]
        names = [text.get("id") for text in texts if isinstance(text, dict)]
        if len(names) != len(set(names)):
            raise UserError(f"{where}: {form} has a text twice")
    table = step.get("special_tokens")
    rows = list(table.values()) if isinstance(table, dict) else []
    if any(isinstance(row, dict) and len(row.get("ids") or []) > STEPS for row in rows):
        raise UserError(f"{where}: special_tokens has an entry of more than {STEPS} ids")


def _check_step(step: dict[str, Any], where: str) -> None:
    for key, value in step.items():
        if key != "precompiled_charsmap" and isinstance(value, str) and len(value) > LONGEST:
            raise UserError(f"{where}: {step['type']}.{key} has more than {LONGEST} characters")
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        check_expression(pattern["Regex"], where, unbounded=UNBOUNDED)
    if step["type"] == "Precompiled":
        _check_charsmap(step.get("precompiled_charsmap"), where)
    if step["type"] == "FixedLength" and not (isinstance(step.get("length"), int) and step["length"] > 0):
        raise UserError(f"{where}: FixedLength.length is not a positive number")


def _check_charsmap(encoded: Any, where: str) -> None:
    """Check SentencePiece's table of replacements.

    It has the size of a trie, the trie, and texts that end in a zero byte. The trie is a double array of darts-clone: a
    unit of the label c at place i leads to the place i ^ offset, and on from there by ^ with the next byte. The library
    does not check these places.
    """
    wrong = UserError(f"{where}: Precompiled.precompiled_charsmap is damaged")
    try:
        content = base64.b64decode(encoded, validate=True)
        (size,) = struct.unpack_from("<I", content)
        texts = content[4 + size :]
        texts.decode("utf-8")
    except (TypeError, ValueError, binascii.Error, struct.error):
        raise wrong from None
    if not 0 < size <= len(content) - 4 or size % 4 or not texts.endswith(b"\0"):
        raise wrong
    units = np.frombuffer(content[4 : 4 + size], "<u4").astype(np.int64)
    used = np.flatnonzero((units >> 31 == 0) & (units & 255 > 0) | (np.arange(len(units)) == 0))
    targets = used ^ ((units[used] >> 10) << ((units[used] >> 6) & 8))
    if len(units) % 256 or targets.max() >= len(units):
        raise wrong
    values = units[targets[units[used] >> 8 & 1 == 1]] & (2**31 - 1)
    bytes_of_texts = np.frombuffer(texts, np.uint8)
    if len(values) and (values.max() >= len(texts) or (bytes_of_texts[values] & 0xC0 == 0x80).any()):
        raise wrong
    if max(map(len, texts.split(b"\0"))) > GROWTH * 8:
        raise UserError(f"{where}: Precompiled replaces a character by more than {GROWTH * 8} bytes")


# ---- Errors of the library ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def library_errors(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Turn an error or a panic of the Rust library into a UserError of one line.

    Args:
        what: The beginning of the message.
        quiet: Discard what a panic writes to standard error.
    """
    try:
        with _panics_discarded() if quiet else contextlib.nullcontext():
            yield
    except UserError:
        raise
    except Exception as error:  # the library raises no narrower type
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{what}: {reason}") from None
    except BaseException as error:
        if not _is_panic(error):  # KeyboardInterrupt
            raise
        reason = "an expression takes too long" if "retry-limit" in str(error) else "a step is damaged"
        raise UserError(f"{what}: the library `tokenizers` failed on it ({reason})") from None


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # no module exports this type


@contextlib.contextmanager
def _panics_discarded() -> Iterator[None]:
    """Hold back standard error of the process; after a panic it is discarded."""
    try:
        sys.stderr.flush()
        standard = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = _is_panic(error)
            raise
        finally:
            os.dup2(standard, 2)
            os.close(standard)
            held.seek(0)
            if not panicked and (text := held.read()):
                os.write(2, text)


def not_utf8(text: str) -> str | None:
    """Return why a text is invalid, or None.

    Python holds bytes that are not UTF-8 as lone surrogates.
    """
    wrong = re.search("[\ud800-\udfff]", text)
    if wrong is None:
        return None
    code = ord(wrong[0])
    byte = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
    return f"it is not valid UTF-8: {byte} at character {wrong.start()}"
