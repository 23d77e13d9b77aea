"""What is said about prepared data: unknown tokens, changed texts, documents that nothing separates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import DataConfig, RecordsConfig, SourceConfig, TokenizerConfig
from lmjax.data import tokenizer
from lmjax.data.store import ingest, preparation
from lmjax.data.store.facts import notes, store_facts
from lmjax.data.store.store import Store


def vocabulary(folder: Path, *entries: str) -> TokenizerConfig:
    """A BERT vocabulary of these entries."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *entries]) + "\n")
    return TokenizerConfig("file", path=str(path))


def prepared(folder: Path, texts: list[str], choice: TokenizerConfig, **options: Any) -> Store:
    (folder / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    return preparation.prepare(
        DataConfig(
            files=(str(folder / "a.txt"),),
            document="line",
            tokenizer=choice,
            validation_fraction=0.3,
            cache=str(folder / "cache"),
            **options,
        )
    )


def without_counts(store: Store) -> Store:
    """The same store as an older version wrote it."""
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest.pop("compared", None)
    for entry in manifest["streams"].values():
        entry.pop("unknown", None)
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    return Store.open(store.folder)


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_unknown_tokens_are_counted(tmp_path: Path, split: str) -> None:
    texts = [f"{'zebra' if i % 10 == 0 else 'cat'} sat" for i in range(100)]
    store = prepared(tmp_path, texts, vocabulary(tmp_path, "cat", "sat"), validation=split)
    counts = {name: tokens.ids.tolist().count(1) for name, tokens in store.streams.items()}
    assert sum(counts.values()) == 10
    for opened in (store, without_counts(store)):
        assert {name: opened.unknown_tokens(name) for name in opened.streams} == counts
        assert store_facts(opened) == {
            "unknown_tokens": {"training": counts["train-0"], "validation": counts["validation"]}
        }
        assert opened.lossless is False
    (line,) = [line for line in notes(store) if "[UNK]" in line]
    assert line.startswith("WARNING: unknown tokens: 10 (3.33%) are [UNK]")
    assert "data.tokenizer" in line


def test_few_unknown_tokens_are_no_warning(tmp_path: Path) -> None:
    texts = ["cat sat " * 50 + ("zebra" if i == 3 else "") for i in range(50)]
    store = prepared(tmp_path, texts, vocabulary(tmp_path, "cat", "sat"))
    assert [line.split(":")[0] for line in notes(store) if "[UNK]" in line] == ["unknown tokens"]


def test_a_text_that_the_tokenizer_changes_is_known_from_a_sample(tmp_path: Path) -> None:
    plain = prepared(tmp_path, [f"cat {'sat ' * (i % 9)}sat" for i in range(60)], vocabulary(tmp_path, "cat", "sat"))
    assert plain.manifest["compared"]["pieces"] == 60
    assert plain.manifest["compared"]["different"] == 0
    assert plain.lossless is True
    assert not any("changes" in line for line in notes(plain))
    assert without_counts(plain).lossless is None
    capitals = prepared(
        tmp_path, ["Cat sat"] * 3 + [f"cat{' sat' * i}" for i in range(60)], vocabulary(tmp_path, "cat", "sat")
    )
    assert capitals.manifest["compared"]["different"] == 3
    assert capitals.lossless is False
    assert any("changes 3 of 63 texts that were compared (the first 7.28 kB)" in line for line in notes(capitals))


def test_the_sample_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH", 100)
    monkeypatch.setattr(ingest, "COMPARED", 250)
    store = prepared(tmp_path, ["cat sat sat"] * 300, vocabulary(tmp_path, "cat", "sat"), validation="tail")
    assert 250 <= store.manifest["compared"]["bytes"] <= 400


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_a_lossless_tokenizer_needs_no_sample(tmp_path: Path, kind: Any) -> None:
    store = prepared(tmp_path, [f"Ärger {i}" for i in range(60)], TokenizerConfig(kind, 300))
    assert store.lossless is True
    assert "compared" not in store.manifest
    assert notes(store) == []
    assert store_facts(store) == {"unknown_tokens": {"training": 0, "validation": 0}}


def test_records_count_what_is_skipped_and_unknown(tmp_path: Path) -> None:
    rows = [{"text": ["cat", "zebra", "sat sat"][i % 3] if i else "", "label": i % 2} for i in range(90)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = preparation.prepare(
        RecordsConfig(
            files=(str(tmp_path / "a.jsonl"),),
            texts=("text",),
            label="label",
            tokenizer=vocabulary(tmp_path, "cat", "sat"),
            validation_fraction=0.3,
            cache=str(tmp_path / "cache"),
        )
    )
    unknown = store_facts(store)["unknown_tokens"]
    assert unknown["training"] + unknown["validation"] == 30
    assert store_facts(store)["skipped_records"] == 1
    assert any("30 (" in line and "[UNK]" in line for line in notes(store))


def test_documents_without_a_token_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "end_of_text", None)
    store = prepared(tmp_path, [f"line {i}" for i in range(60)], TokenizerConfig("bytes"))
    assert store.manifest["tokenizer"]["end_of_text"] is None
    (line,) = notes(store)
    assert "nothing separates the 60 documents" in line
    (tmp_path / "one").mkdir()
    alone = prepared(tmp_path / "one", ["only one"], TokenizerConfig("bytes"), validation="tail")
    assert len(alone.sources[0].starts) + len(alone.validation.starts) == 2  # the tail is a part of the same document


def test_the_token_that_ends_a_document_is_named_for_a_tokenizer_from_a_file(tmp_path: Path) -> None:
    store = prepared(tmp_path, ["cat sat"] * 60 + ["sat"] * 60, vocabulary(tmp_path, "cat", "sat"))
    assert "documents: each ends in [SEP]" in notes(store)


@pytest.mark.parametrize("kind", ["hash", "tail"])
def test_a_file_of_two_sources_is_a_warning(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(f"document {i} of {name}" for i in range(100)))
    sources = [SourceConfig(files=(str(tmp_path / "a"),)), SourceConfig(files=(str(tmp_path / "a/../a/*.txt"),))]
    data = DataConfig(mixture=tuple(sources), validation=kind, tokenizer=TokenizerConfig("bytes"), cache=str(tmp_path))
    lines = notes(preparation.prepare(data))
    assert any("1.txt' is in more than one source of data.mixture" in line for line in lines)
    assert any("training data in the other" in line for line in lines) == (kind == "tail")
    apart = replace(data, mixture=(sources[0], SourceConfig(files=(str(tmp_path / "b.txt"),))))
    assert notes(preparation.prepare(apart)) == []


def test_validation_records_of_a_training_file_are_a_warning(tmp_path: Path) -> None:
    path, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    path.write_text("".join(f'{{"source": "{i}", "target": "x"}}\n' for i in range(20)))
    link.symlink_to(path)
    data = RecordsConfig(files=(str(path),), validation_files=(str(link),), tokenizer=TokenizerConfig("bytes"))
    lines = notes(preparation.prepare(replace(data, cache=str(tmp_path / "cache"))))
    assert any("link.jsonl' is in data.files and in data.validation_files" in line for line in lines)
