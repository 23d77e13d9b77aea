"""The store: what is in it, when it is reused or refused, and what a split does."""

import dataclasses
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import SourceConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.sources import text
from lmjax.data.store import ingest, preparation
from lmjax.data.store.store import Store
from tests.data.store.corpus import configuration, documents, split_up


def test_streams_hold_every_document_with_its_start(tmp_path: Path) -> None:
    made = preparation.prepare(configuration(tmp_path, validation_fraction=0.2))
    training, validation = split_up(made.sources[0], made), split_up(made.validation, made)
    assert sorted(training + validation) == sorted(documents(100))
    assert [d for d in documents(100) if d in training] == training  # in their order
    expected = [d for d in documents(100) if int(hashlib.sha256(d.encode()).hexdigest()[:16], 16) < 0.2 * 2**64]
    assert validation == expected
    for tokens, texts in ((made.sources[0], training), (made.validation, validation)):
        assert tokens.ids.dtype == np.uint16
        assert isinstance(tokens.ids, np.memmap)
        assert tokens.bytes == sum(len(d.encode()) for d in texts)
        assert tokens.sha256 == hashlib.sha256(tokens.ids.tobytes()).hexdigest()
    assert made.manifest["sources"][0]["documents"] == 100
    assert (
        made.manifest["sources"][0]["documents_sha256"]
        == hashlib.sha256(b"".join(b"\0" + d.encode() for d in documents(100))).hexdigest()
    )
    assert made.tokenizer.sha256 == made.manifest["tokenizer"]["sha256"]
    assert hashlib.sha256((made.folder / "tokenizer.json").read_bytes()).hexdigest() == made.tokenizer.sha256


def test_a_document_never_changes_sides(tmp_path: Path) -> None:
    before = preparation.prepare(configuration(tmp_path, validation_fraction=0.2))
    kept = [*documents(100)[::-2], *(f"new {i}" for i in range(50))]
    (tmp_path / "a.txt").write_text("\n\n".join(kept), encoding="utf-8")
    after = preparation.prepare(configuration(tmp_path, validation_fraction=0.2))
    assert after.folder != before.folder
    old, new = split_up(before.validation, before), split_up(after.validation, after)
    assert {d for d in new if not d.startswith("new")} == {d for d in old if d in kept}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(content=st.text(min_size=2).filter(str.strip), piece=st.integers(1, 9))
def test_a_file_kept_whole_comes_back(tmp_path_factory: pytest.TempPathFactory, content: str, piece: int) -> None:
    folder = tmp_path_factory.mktemp("file")
    (folder / "a.txt").write_bytes(content.encode())
    config = configuration(folder, document="file", validation="tail", validation_fraction=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", piece)
        made = preparation.prepare(config)
    stream = np.concatenate([made.sources[0].ids, made.validation.ids])
    assert bytes(stream[:-1].astype(np.uint8)) == content.encode()
    assert stream[-1] == made.tokenizer.end_of_text
    assert len(made.sources[0].ids) == len(content.encode()) // 2 == made.sources[0].bytes
    assert made.validation.bytes + made.sources[0].bytes == len(content.encode())
    assert list(made.sources[0].starts) == list(made.validation.starts) == [0]


def test_the_tail_split_is_nanogpts(tmp_path: Path) -> None:
    content = "To be, or not to be\n" * 501
    (tmp_path / "a.txt").write_text(content)
    made = preparation.prepare(
        configuration(
            tmp_path,
            document="file",
            validation="tail",
            validation_fraction=0.1,
            tokenizer=TokenizerConfig("characters"),
        )
    )
    order = sorted(set(content))
    data = np.asarray([order.index(char) for char in content])
    assert np.array_equal(made.sources[0].ids, data[: int(len(data) * 0.9)])
    assert np.array_equal(made.validation.ids[:-1], data[int(len(data) * 0.9) :])


def test_the_tail_split_keeps_starts_and_joins_sources(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{i:03}" for i in range(100)))
    parts = tuple(SourceConfig(files=(str(tmp_path / f"{name}.txt"),)) for name in "ab")
    config = configuration(
        tmp_path, files=(), mixture=parts, document="line", validation="tail", validation_fraction=0.101
    )
    made = preparation.prepare(config)
    assert len(made.sources) == 2
    for tokens, name in zip(made.sources, "ab", strict=True):
        assert len(tokens.ids) == int(499 * (1 - 0.101)) == 448  # documents of 4 + 1 tokens
        assert list(tokens.starts) == list(range(0, 448, 5))
        assert made.tokenizer.decode(tokens.ids[:4]) == f"{name}000"
        assert tokens.bytes == 89 * 4 + 3
    assert list(made.validation.starts) == [0, *range(2, 52, 5), 52, *range(54, 104, 5)]
    assert made.validation.bytes == 2 * (400 - 89 * 4 - 3)


def test_a_mixture_shares_tokenizer_and_validation(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(300)))
    parts = tuple(SourceConfig(files=(str(tmp_path / f"{name}.txt"),)) for name in "ab")
    config = configuration(tmp_path, files=(), mixture=parts, document="line", tokenizer=TokenizerConfig("bpe", 280))
    made = preparation.prepare(config)
    a, b = (split_up(tokens, made) for tokens in made.sources)
    both = split_up(made.validation, made)
    assert {d[0] for d in a} == {"a"}
    assert {d[0] for d in b} == {"b"}
    assert [d[0] for d in both] == sorted(d[0] for d in both)
    assert len(a) + len(b) + len(both) == 600
    weighted = tuple(dataclasses.replace(part, weight=3.0) for part in parts)
    assert preparation.prepare(dataclasses.replace(config, mixture=weighted)).folder == made.folder


def test_large_vocabularies_take_four_bytes() -> None:
    assert [ingest.dtype(size) for size in (65_536, 65_537)] == [np.uint16, np.uint32]


# ---- Reuse and refusal ------------------------------------------------------------------------------------------


def test_nothing_changed_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path)
    made = preparation.prepare(config)
    monkeypatch.setattr(preparation, "ingest", None)  # would fail if called
    again = preparation.prepare(config, verify=True)
    assert (again.fingerprint, again.folder) == (made.fingerprint, made.folder)
    assert os.listdir(tmp_path / "cache") == [made.folder.name]


def test_the_fingerprint_is_of_the_content_not_of_the_path(tmp_path: Path) -> None:
    made = preparation.prepare(configuration(tmp_path))
    packed = tmp_path / "moved.txt.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    again = preparation.prepare(configuration(tmp_path, files=(str(packed),)))
    assert again.folder != made.folder
    assert again.fingerprint == made.fingerprint
    other = preparation.prepare(configuration(tmp_path, validation_fraction=0.2))
    assert other.fingerprint != made.fingerprint


@pytest.mark.slow
def test_reuse_imports_neither_jax_nor_datasets(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    preparation.prepare(config)
    code = (
        "import sys; from lmjax.config import *; from lmjax.data.store import preparation\n"
        f"preparation.prepare({config!r})\n"
        "print([name for name in ('jax', 'datasets', 'torch', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    folder = preparation.prepare(config).folder
    path = folder / "train-0.ids"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train-0.ids': it has \d+ bytes, the manifest says \d+; delete the folder"):
        preparation.prepare(config)
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=r"train-0.ids': its sha256 is not the manifest's"):
        preparation.prepare(config, verify=True)
    path.unlink()
    with pytest.raises(UserError, match=r"train-0.ids': it is missing"):
        preparation.prepare(config)
    path.write_bytes(content)
    preparation.prepare(config, verify=True)
    changed = (folder / "tokenizer.json").read_bytes().replace(b'"A"', b'"B"', 1)
    (folder / "tokenizer.json").write_bytes(changed)
    with pytest.raises(UserError, match=r"tokenizer.json': its sha256"):
        preparation.prepare(config)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a manifest of this version"):
        preparation.prepare(config)
    with pytest.raises(UserError, match="is not prepared data"):
        Store.open(tmp_path)


def test_the_store_of_a_run_is_used_when_its_text_is_gone(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    made = preparation.prepare(config)
    preparation.prepare(configuration(tmp_path, validation_fraction=0.2))  # another store in the cache
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"no file or folder '[^']*a\.txt'(?!.*allow-change)"):
        preparation.prepare(config)
    again = preparation.prepare(config, known=made.fingerprint)
    assert (again.folder, again.fingerprint) == (made.folder, made.fingerprint)
    with pytest.raises(UserError, match=r"no file or folder .*data\.files=\[NEW PLACE\] --allow-change data\.files"):
        preparation.prepare(config, known="0" * 64)
    (made.folder / "train-0.ids").write_bytes(bytes((made.folder / "train-0.ids").stat().st_size))
    with pytest.raises(UserError, match="its sha256 is not"):
        preparation.prepare(config, known=made.fingerprint)
    with pytest.raises(UserError, match="its sha256 is not"):
        preparation.prepare_to_read(config, made.fingerprint)
    shutil.rmtree(made.folder)
    mixture = (SourceConfig(files=(str(tmp_path / "a.txt"),)),)
    with pytest.raises(UserError, match=r"data\.mixture=\[NEW PLACE\] --allow-change data\.mixture"):
        preparation.prepare(dataclasses.replace(config, files=(), mixture=mixture), known=made.fingerprint)


def test_reading_a_run_writes_only_to_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    config = configuration(tmp_path, cache=str(tmp_path / "elsewhere"))
    expected = preparation.prepare(configuration(tmp_path)).fingerprint
    assert preparation.prepare_to_read(config, expected).folder.parent == tmp_path / "user" / "lmjax"
    assert not (tmp_path / "elsewhere").exists()
    named = preparation.prepare(config)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").rglob("*"))
    assert preparation.prepare_to_read(config, expected).folder == named.folder
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").rglob("*")) == before


def test_a_newer_setting_of_the_tokenizer_does_not_rename_stores(tmp_path: Path) -> None:
    """Names are part of what a resume needs; this one is of a text in a fixed place with a fixed time."""
    identity = preparation._identity(configuration(tmp_path))
    assert identity["tokenizer"] == {"kind": "bytes", "vocab_size": 2048, "path": ""}
    assert set(identity) == {"format", "tokenizer", "sources", "validation"}


# ---- Mixtures ---------------------------------------------------------------------------------------------------


def test_a_source_that_is_never_trained_on_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i}" for i in range(300)))
    parts = tuple(SourceConfig(files=(str(tmp_path / f"{name}.txt"),)) for name in "ab")
    off = (parts[0], dataclasses.replace(parts[1], weight=0.0))
    for changes in ((), ((100, (1.0, 0.0)),), ((100, (2.0, 0.0)), (200, (1.0, 0.0)))):
        with pytest.raises(
            UserError, match=r"data\.mixture\[1\]\.weight = 0 \(.*b\.txt\).*remove it from data\.mixture"
        ):
            preparation.prepare(configuration(tmp_path, files=(), mixture=off, mixture_changes=changes))
    raised = configuration(tmp_path, files=(), mixture=off, mixture_changes=((100, (1.0, 0.5)),))
    assert len(preparation.prepare(raised).sources) == 2
    fading = configuration(tmp_path, files=(), mixture=parts, mixture_changes=((100, (1.0, 0.0)),))
    assert len(preparation.prepare(fading).sources) == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    fraction=st.sampled_from([0.1, 0.3, 0.5]),
    split=st.sampled_from(["hash", "tail"]),
    kind=st.sampled_from(["bytes", "no end"]),
)
def test_validation_tokens_are_known_by_source(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], fraction: float, split: str, kind: str
) -> None:
    """Each source has a letter of its own, which tells where a token is from."""
    folder = tmp_path_factory.mktemp("sources")
    for letter, size in zip("abcd", sizes, strict=False):
        lines = [letter * (1 + (7 * i + size) % 5) for i in range(size)]
        (folder / f"{letter}.txt").write_text("\n".join(f"{line}" for line in lines))
    parts = tuple(SourceConfig(files=(str(folder / f"{letter}.txt"),)) for letter in "abcd"[: len(sizes)])
    config = configuration(
        folder, files=(), mixture=parts, document="line", validation=split, validation_fraction=fraction
    )
    with pytest.MonkeyPatch.context() as patch:
        if kind == "no end":
            patch.setattr(tokenizer.Tokenizer, "end_of_text", None)
        try:
            made = preparation.prepare(config)
        except UserError:  # a side of the split is empty
            return
        firsts = made.validation_sources
        if firsts is None:
            assert kind == "no end"
            assert split == "tail"
            return
    ends = [*firsts[1:], len(made.validation.ids)]
    for letter, first, end in zip("abcd", firsts, ends, strict=False):
        assert {chr(id) for id in made.validation.ids[first:end] if id < 256} <= {letter}


def mistakes(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    (folder / "empty.txt").write_text(" \n\n ")
    (folder / "one.txt").write_text("one document")
    return {
        "empty": ({"files": (str(folder / "empty.txt"),)}, r"empty.txt: the corpus is empty; add text"),
        "one": ({"files": (str(folder / "one.txt"),)}, r"no document \(of 1\) fell into the validation split"),
        "all": ({"validation_fraction": 0.9999}, "all documents fell into the validation split"),
        "fraction": ({"validation_fraction": 1.5}, r"validation_fraction = 1.5 must be in \(0, 1\)"),
        "missing": ({"files": (str(folder / "b.txt"),)}, "no file or folder"),
        "cache": ({"cache": str(folder / "one.txt" / "cache")}, "cannot write prepared data to .* set data.cache"),
        "tokenizer": ({"tokenizer": TokenizerConfig("file", path=str(folder / "t.json"))}, "no file or folder"),
    }


@pytest.mark.parametrize("name", ["empty", "one", "all", "fraction", "missing", "cache", "tokenizer"])
def test_a_mistake_is_one_clear_line(tmp_path: Path, name: str) -> None:
    options, message = mistakes(tmp_path)[name]
    with pytest.raises(UserError, match=message) as error:
        preparation.prepare(configuration(tmp_path, **options))
    assert "\n" not in str(error.value)


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_batch", lambda self, texts: [[65, 300] for _ in texts])
    with pytest.raises(UserError, match="token id 300 is outside the tokenizer's vocabulary of 257"):
        preparation.prepare(configuration(tmp_path))
