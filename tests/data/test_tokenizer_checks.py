"""Hostile tokenizer.json files: one line, in bounded time and memory."""

import base64
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer, tokenizer_checks

TREE = json.loads(tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([])).json)


def charsmap(trie: list[int], texts: bytes) -> str:
    return base64.b64encode(struct.pack(f"<I{len(trie)}I", 4 * len(trie), *trie) + texts).decode()


def replace(content: str, times: int = 1) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(*pieces: dict[str, Any], table: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [], "special_tokens": table or {}}


TEXT_PIECE = {"Sequence": {"id": "A", "type_id": 0}}
HOSTILE = {
    "two tokens with one id": (
        {"model": TREE["model"] | {"vocab": TREE["model"]["vocab"] | {"a": 5}}},
        "model.vocab gives the tokens .* one id, 5; give each token its own id",
    ),
    "exponential expression": ({"pre_tokenizer": split("(a+)+$")}, "repeats a part that can match the same text"),
    "polynomial expression": ({"pre_tokenizer": split("[ab]*[ab]*[ab]*[^ab!]")}, "more than 2 unbounded repetitions"),
    "expression in a normalizer": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x*)*y"}, "content": ""}},
        "repeats a part",
    ),
    "ten replacements": ({"normalizer": replace("a" * 100, 10)}, "can make a text .* times as long; the limit is 64"),
    "ten replacements in a decoder": (
        {"decoder": {"type": "Sequence", "decoders": replace("a" * 9, 10)["normalizers"]}},
        "times as long",
    ),
    "nested byte levels": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [TREE["pre_tokenizer"]] * 10}},
        "times as long",
    ),
    "an empty pattern": (
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        "a Replace without a pattern",
    ),
    "damaged Precompiled": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 40).decode()}},
        "precompiled_charsmap is damaged",
    ),
    "Precompiled with a long text": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap([0] * 256, b"a" * 10_000 + b"\0")}},
        "replaces a character by more than",
    ),
    "Precompiled with a place outside its trie": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap([0x7FFFFFFF] * 256, b"a\0")}},
        "precompiled_charsmap is damaged",
    ),
    "Precompiled with a text outside its texts": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap([256, *[99] * 255], b"a\0")}},
        "precompiled_charsmap is damaged",
    ),
    "unknown step": ({"normalizer": {"type": "Shell", "command": "id"}}, "has a step of type 'Shell'; lmjax uses Bert"),
    "many steps": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}}, "more than 50 steps"),
    "a text twice": ({"post_processor": template(TEXT_PIECE, TEXT_PIECE)}, "single has a text twice"),
    "many special tokens": (
        {"post_processor": template(TEXT_PIECE, table={"x": {"id": "x", "ids": [1] * 1000, "tokens": ["x"] * 1000}})},
        "more than 50 ids",
    ),
    "dropout": ({"model": TREE["model"] | {"dropout": 0.5}}, "model.dropout=0.5 makes encoding random"),
    "long words": (
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word is not a number up to 128",
    ),
    "a long token": (
        {"added_tokens": [TREE["added_tokens"][0] | {"content": "x" * 10**7}]},
        "added_tokens is not a list of tokens of at most 10000 characters",
    ),
    "a long prefix": (
        {"normalizer": {"type": "Prepend", "prepend": "x" * 10**7}},
        "Prepend.prepend has more than 10000",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TREE | change))
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        tokenizer.load_tokenizer(path)
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b'{"model":' * 100_000, b"\xff\xfe{\0}\0", b"[]", b"1" * 10_000])
def test_other_content_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="bad tokenizer file") as error:
        tokenizer.load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_a_panic_is_a_user_error_and_an_interrupt_is_not() -> None:
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(UserError, match="encode: the library `tokenizers` failed on it"),
        tokenizer_checks.library_errors("encode"),
    ):
        raise panic("index out of bounds\nnote: run with RUST_BACKTRACE=1")
    with pytest.raises(KeyboardInterrupt), tokenizer_checks.library_errors("encode"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"^encode: line one$"), tokenizer_checks.library_errors("encode"):
        raise Exception("line one\nline two")


def test_only_a_panic_discards_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    panic = type("PanicException", (BaseException,), {})
    with tokenizer_checks.library_errors("load", quiet=True):
        os.write(2, b"a warning")
    assert capfd.readouterr().err == "a warning"
    with pytest.raises(UserError), tokenizer_checks.library_errors("load", quiet=True):
        raise panic(os.write(2, b"thread panicked"))
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_text_that_is_not_utf8_is_named() -> None:
    built = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter([]))
    with pytest.raises(UserError, match=r"cannot encode this text: it is not valid UTF-8: byte 0xE9 at character 3$"):
        built.encode("caf\udce9")
    with pytest.raises(UserError, match=r"not valid UTF-8: U.D800 at character 0$"):
        built.encode_batch(["fine", "\ud800"])


def test_a_table_of_replacements_that_is_in_order_loads(tmp_path: Path) -> None:
    """One rule: "b" (98) becomes "a". Unit 0 leads to place 256, unit 256 ^ 98 has the label and a leaf."""
    trie = [256 << 10, *[0] * 511]
    place = 256 ^ 98
    trie[place] = 98 | 1 << 8 | (place ^ 300) << 10
    trie[300] = 1 << 31
    path = tmp_path / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap(trie, b"a\0")}
    path.write_text(json.dumps(TREE | {"normalizer": normalizer}))
    assert tokenizer.load_tokenizer(path).encode("abc") == list(b"aac")


def test_a_tokenizer_with_every_known_step_loads(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("b", -2.0)], 0))
    steps = [tokenizers.normalizers.Nmt(), tokenizers.normalizers.NFKC(), tokenizers.normalizers.Replace(" ", "\u2581")]
    backend.normalizer = tokenizers.normalizers.Sequence(steps)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert loaded.unknown == 0
    assert loaded.encode("ab") == [1, 2]
    assert not loaded.lossless
