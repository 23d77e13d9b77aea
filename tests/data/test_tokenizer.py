"""Tokenizers: text comes back, special tokens cannot be smuggled in, and files of others mean what they meant."""

import base64
import codecs
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer, tokenizer_training, vocabularies
from lmjax.data.tokenizer import Tokenizer

TEXT = "The bees hum; the trees hum, the bees' knees don't.\n\n  Summer 1999: Zwölf Bienen summen.\r\n" * 20
PLAIN = tokenizer.END_OF_TEXT
BUILT = {kind: tokenizer.build_tokenizer(TokenizerConfig(kind, 300), lambda: iter([TEXT])) for kind in ("bytes", "bpe")}
CHARACTERS = tokenizer.build_tokenizer(TokenizerConfig("characters"), lambda: iter([TEXT]))


@pytest.mark.parametrize("kind", BUILT)
@settings(max_examples=150, deadline=None)
@given(value=st.text(max_size=80))
@example(value=f"a{PLAIN}b [SEP] </s>")
@example(value="\x00\r\n\ufeff\U0010ffff")
def test_any_text_comes_back(kind: str, value: str) -> None:
    ids = BUILT[kind].encode(value)
    assert BUILT[kind].decode(ids) == value
    assert BUILT[kind].end_of_text not in ids
    assert BUILT[kind].nbytes(np.asarray(ids, np.int64)) == len(value.encode())


def test_bytes_are_bytes() -> None:
    value = f"né\r\n{PLAIN}🙂\x00"
    assert BUILT["bytes"].encode(value) == list(value.encode())
    assert (BUILT["bytes"].vocab_size, BUILT["bytes"].end_of_text) == (257, 256)


@given(value=st.text(st.sampled_from(sorted(set(TEXT))), max_size=80))
def test_characters_are_numbered_in_their_order(value: str) -> None:
    """nanoGPT's numbering, with end_of_text after it."""
    order = sorted(set(TEXT))
    assert CHARACTERS.encode(value) == [order.index(char) for char in value]
    assert CHARACTERS.decode(CHARACTERS.encode(value)) == value
    assert CHARACTERS.end_of_text == len(order) == CHARACTERS.vocab_size - 1


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(UserError, match=r"character '中' \(U\+4E2D\) is not in the tokenizer's vocabulary of \d+ char"):
        CHARACTERS.encode_batch(["bees", "the 中"])
    with pytest.raises(UserError, match="cannot encode"):
        CHARACTERS.encode("half \ud800")


def test_a_trained_bpe_has_the_asked_size_and_is_the_same_each_time() -> None:
    trained = BUILT["bpe"]
    assert trained.vocab_size == 300
    assert trained.end_of_text == 299
    assert len(trained.encode(TEXT)) < len(TEXT) / 3
    again = tokenizer.build_tokenizer(TokenizerConfig("bpe", 300), lambda: iter([TEXT[:700], TEXT[700:]]))
    assert tokenizer.build_tokenizer(TokenizerConfig("bpe", 300), lambda: iter([TEXT])).sha256 == trained.sha256
    assert again.vocab_size == 300  # cut elsewhere; possibly another, equally good one
    with pytest.raises(UserError, match="at least 257"):
        tokenizer.build_tokenizer(TokenizerConfig("bpe", 256), lambda: iter([TEXT]))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_long_words_are_cut_for_the_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters without blanks take time in proportion to their number, and shorter words are not touched."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("acgt"), 400)) for _ in range(3)]
    text, config = " ".join(words), TokenizerConfig(kind, 300)  # pyright: ignore[reportArgumentType]
    plain = "the bees hum " * 40
    ordinary = tokenizer.build_tokenizer(config, lambda: iter([plain])).sha256
    cut = tokenizer.build_tokenizer(config, lambda: iter([text]))
    assert cut.sha256 == tokenizer.build_tokenizer(config, lambda: iter([text])).sha256
    parts = [word[i : i + 100] for word in words for i in range(0, 400, 100)]
    monkeypatch.setattr(tokenizer_training, "LONGEST_WORD", 100)
    monkeypatch.setattr(tokenizer_training, "_LONG_RUN", tokenizer_training._LONG_RUN)
    assert tokenizer.build_tokenizer(config, lambda: iter([plain])).sha256 == ordinary
    if kind == "wordpiece":  # a blank belongs to the words of a BPE
        made = tokenizer.build_tokenizer(config, lambda: iter([text]))
        assert made.sha256 == tokenizer.build_tokenizer(config, lambda: iter([" ".join(parts)])).sha256


def test_a_bpe_is_trained_on_the_start_of_a_long_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def texts():
        for i in range(100):
            read.append(i)
            yield TEXT

    monkeypatch.setattr(tokenizer_training, "TRAINING_BYTES", 3 * len(TEXT.encode()))
    tokenizer.build_tokenizer(TokenizerConfig("bpe", 260), texts)
    assert len(read) <= 4


@pytest.mark.parametrize("made", [*BUILT.values(), CHARACTERS], ids=[*BUILT, "characters"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, made: Tokenizer) -> None:
    made.save(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", tmp_path):
        loaded = tokenizer.load_tokenizer(path)
        assert (loaded.sha256, loaded.vocab_size, loaded.end_of_text) == (
            made.sha256,
            made.vocab_size,
            made.end_of_text,
        )
        assert loaded.encode(TEXT) == made.encode(TEXT)
    if made is not CHARACTERS:
        assert tokenizer.load_tokenizer(tmp_path).end_of_text not in tokenizer.load_tokenizer(tmp_path).encode(PLAIN)


def test_tokens_are_printable() -> None:
    assert [BUILT["bytes"].token(i) for i in (65, 10, 0xC3, 32, 256)] == ["A", "\\n", "\\xc3", " ", PLAIN]
    assert CHARACTERS.token(0) == "\\n"
    with pytest.raises(UserError, match="token id 257 is outside the tokenizer's vocabulary of 257"):
        BUILT["bytes"].token(257)


def test_bytes_of_a_part_of_a_character() -> None:
    ids = np.asarray(BUILT["bytes"].encode("né🙂"))
    assert [BUILT["bytes"].nbytes(part) for part in (ids[:2], ids[2:5], ids[5:], ids[:0])] == [2, 3, 2, 0]


# ---- Files of others --------------------------------------------------------------------------------------------


def ranks_of(trained: Tokenizer) -> dict[bytes, int]:
    """A small vocabulary in the order of its ids, which for a BPE is the order of its merges."""
    entries = sorted(trained._vocabulary.items(), key=lambda item: item[1])
    table = vocabularies.byte_of()
    return {bytes(table[char] for char in entry): i for entry, i in entries if i != trained.end_of_text}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


def merged(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as tiktoken defines it: join the neighbours of lowest joint rank, the leftmost first."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=150, deadline=None)
@given(value=st.text(st.sampled_from("the bees' knumdo\n 19é"), max_size=40))
def test_ranks_merge_like_tiktoken(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    ranks = ranks_of(BUILT["bpe"])
    path = tmp_path_factory.getbasetemp() / "tiny.tiktoken"
    loaded = tokenizer.load_tokenizer(path if path.exists() else write_ranks(path, ranks))
    words = [word for word, _ in loaded.backend.pre_tokenizer.pre_tokenize_str(value)]
    table = vocabularies.byte_of()
    expected = [i for word in words for i in merged(bytes(table[char] for char in word), ranks)]
    assert loaded.encode(value) == expected == BUILT["bpe"].encode(value)


@pytest.mark.parametrize("name", ["tiny", "cl100k_tiny", "o200k_tiny"])
def test_ranks_against_tiktoken_itself(tmp_path: Path, name: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = ranks_of(BUILT["bpe"])
    loaded = tokenizer.load_tokenizer(write_ranks(tmp_path / f"{name}.tiktoken", ranks))
    gpt2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    pattern = vocabularies._WORDS.get(name.split("_")[0], gpt2)
    reference = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={PLAIN: len(ranks)})
    value = f"{TEXT} DON'T x_y/z//\n/ \t\u2028 123456 ½ 中文🙂{PLAIN}"
    assert loaded.encode(value) == reference.encode_ordinary(value)
    assert (loaded.end_of_text, loaded.vocab_size) == (len(ranks), len(ranks) + 1)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_files(tmp_path: Path, names: tuple[str, str]) -> None:
    trained = BUILT["bpe"]
    parts = json.loads(trained.json)["model"]
    vocabulary = parts["vocab"] | {PLAIN: 299}
    (tmp_path / names[0]).write_text(json.dumps(vocabulary))
    (tmp_path / names[1]).write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in parts["merges"]) + "\n")
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert loaded.encode(TEXT) == trained.encode(TEXT)
    assert (loaded.end_of_text, loaded.vocab_size) == (299, 300)
    assert 299 not in loaded.encode(PLAIN)


def test_any_tokenizer_json_without_its_additions(tmp_path: Path) -> None:
    """A WordPiece with [CLS] ... [SEP] and truncation: text gets neither."""
    names = ["[UNK]", "[CLS]", "[SEP]", "bees", "hum", "##s"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load_tokenizer(tmp_path)
    ids = loaded.encode("bees hums bees")
    assert [loaded.token(i) for i in ids] == ["bees", "hum", "##s", "bees"]
    assert loaded.end_of_text == 2
    assert 2 not in loaded.encode("bees [SEP]")
    assert loaded.nbytes(np.asarray([*ids, 2])) == len("bees hums bees")


def test_an_ordinary_token_that_ends_text_becomes_special(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(BUILT["bytes"].json)
    backend.add_tokens(["</s>"])
    assert 257 in backend.encode("a</s>").ids
    plain = json.loads(backend.to_str())
    plain["added_tokens"] = [entry for entry in plain["added_tokens"] if entry["id"] == 257]
    plain["added_tokens"][0]["id"] = 256
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    loaded = tokenizer.load_tokenizer(tmp_path)
    assert loaded.end_of_text == 256
    assert loaded.encode("a</s>") == list(b"a</s>")


BAD = {
    "tokenizer.json": (b"{}", "bad tokenizer file '.*tokenizer.json'"),
    "text.json": (b"\xff\xfe", "bad tokenizer file"),
    "a.tiktoken": (b"IQ== 0\nnot base64\n", "line 2 is not 'base64 rank'"),
    "gap.tiktoken": (b"IQ== 1\n", "its ranks do not count from 0 to 0"),
    "few.tiktoken": (b"IQ== 0\n", "some single bytes have no rank"),
    "a.model": (b"x", "is no tokenizer: give a tokenizer.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizer.load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["tokenizer.json", "tiny.tiktoken", "vocab.txt", "merges.txt"])
def test_a_byte_order_mark_and_line_ends_of_windows_are_no_tokens(tmp_path: Path, kind: str) -> None:
    files = {"tokenizer.json": BUILT["bpe"].json.encode()}
    if kind == "tiny.tiktoken":
        files = {kind: write_ranks(tmp_path / "ranks", ranks_of(BUILT["bpe"])).read_bytes()}
    elif kind == "vocab.txt":
        files = {kind: "\n".join([*vocabularies.BERT_SPECIALS, "bees", "hum", "##s"]).encode()}
    elif kind == "merges.txt":
        model = json.loads(BUILT["bpe"].json)["model"]
        merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])])
        files = {"vocab.json": json.dumps(model["vocab"]).encode(), kind: merges.encode()}
    hashes = set()
    for mark, end in ((b"", b"\n"), (codecs.BOM_UTF8, b"\n"), (codecs.BOM_UTF8, b"\r\n")):
        folder = tmp_path / f"{len(mark)}{len(end)}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(mark + content.replace(b"\n", end))
        hashes.add(tokenizer.load_tokenizer(folder).sha256)
    assert len(hashes) == 1


def test_a_folder_of_several_rank_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_ranks(tmp_path / f"{name}.tiktoken", ranks_of(BUILT["bpe"]))
    with pytest.raises(UserError, match=r"several tokenizers \(a.tiktoken, b.tiktoken\); give the path of one of them"):
        tokenizer.load_tokenizer(tmp_path)
    assert tokenizer.load_tokenizer(tmp_path / "b.tiktoken").vocab_size == len(ranks_of(BUILT["bpe"])) + 1


def test_other_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of tokenizer.json, encoder.json \+ vocab.bpe"):
        tokenizer.load_tokenizer(tmp_path)
    BUILT["bytes"].save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"did you mean '.*tokenizer.json'"):
        tokenizer.load_tokenizer(tmp_path / "tokeniser.json")
    with pytest.raises(UserError, match=r"needs data.tokenizer.path"):
        tokenizer.build_tokenizer(TokenizerConfig("file"), lambda: iter([]))


def test_ids_that_make_no_vocabulary_are_refused() -> None:
    huge = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    with pytest.raises(UserError, match="2 entries, but token 'b' has the id 70000"):
        Tokenizer(huge)
    with pytest.raises(UserError, match="0 entries"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
