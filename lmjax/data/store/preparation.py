"""Preparation of the store of a configuration, or its reuse from the cache."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmjax import __version__
from lmjax.config import DataConfig, RecordsConfig, SourceConfig, UserError
from lmjax.config.ranges import check_ranges
from lmjax.data import vocabularies
from lmjax.data.sources import rows, streams
from lmjax.data.store import ingest_records
from lmjax.data.store.ingest import Report, Split, StaleProgress, Text, dtype, ingest
from lmjax.data.store.store import FORMAT, Store, file_sha256
from lmjax.data.tokenizer import TRAINING_BYTES, Tokenizer, build_tokenizer, load_tokenizer
from lmjax.system import files
from lmjax.system.files import write_text

WAITING = "waiting for another process that prepares the same data"


def silent(done: int, total: int | None, message: str) -> None:
    """Report nothing."""


def prepare(config: DataConfig | RecordsConfig, *, report: Report = silent, verify: bool = False) -> Store:
    """Return the store of a configuration from the cache, after ingestion if necessary.

    An interrupted ingestion of text resumes; an ingestion of records restarts. If several processes need the same
    store, one process prepares it and the others wait.

    Args:
        config: The data.
        report: Called with (bytes done, total bytes or None, current activity).
        verify: Check the hash of every file.

    Raises:
        UserError: The input is invalid, the cache is not writable, or the store does not match its manifest.
    """
    identity = _identity(config)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    cache = cache_folder(config.cache)
    folder = cache / name
    if not (folder / "manifest.json").exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with files.locked(cache / f"{name}.lock", wait=partial(report, 0, None, WAITING)):
                if not (folder / "manifest.json").exists():
                    _make(folder, config, identity, report)
        except OSError as error:
            raise UserError(
                f"cannot write prepared data to '{cache}' ({error.strerror or error}): set data.cache=FOLDER"
            ) from None
    return Store.open(folder, verify=verify)


def cache_folder(configured: str) -> Path:
    """Return the folder of the stores: the configured folder, or lmjax in the user's cache."""
    return Path(configured).expanduser() if configured else files.cache_folder()


def _identity(config: DataConfig | RecordsConfig) -> dict[str, Any]:
    """Identify the content of a store without reading the text."""
    choice: dict[str, Any] = asdict(config.tokenizer)
    if config.tokenizer.kind == "file":
        parts = vocabularies.files(Path(config.tokenizer.path))
        choice = {"kind": "file", "files": [[part.name, file_sha256(part)] for part in parts]}
    content = rows.fingerprint(config) if isinstance(config, RecordsConfig) else _text_identity(config)
    return {"format": FORMAT, "tokenizer": choice, **content}


def _text_identity(config: DataConfig) -> dict[str, Any]:
    check_ranges(config, "data")
    return {
        "sources": [streams.fingerprint(source, config) for source in streams.sources(config)],
        "validation": [config.validation, config.validation_fraction],
    }


def _make(folder: Path, config: DataConfig | RecordsConfig, identity: dict[str, Any], report: Report) -> None:
    """Ingest into FOLDER.partial, which may hold an earlier attempt, and rename it."""
    work = folder.with_name(folder.name + ".partial")
    ingested = _records(work, config, report) if isinstance(config, RecordsConfig) else _text(work, config, report)
    if _identity(config) != identity:
        shutil.rmtree(work)
        raise UserError("a file of the corpus changed while it was read: start again when it is complete")
    report(sum(ingested.text_bytes.values()), ingested.total, "hashing")
    write_text(work / "manifest.json", json.dumps(_manifest(work, ingested, identity), indent=1))
    (work / "progress.json").unlink(missing_ok=True)
    if folder.exists():  # a folder without a manifest is no store
        shutil.rmtree(folder)
    os.replace(work, folder)


@dataclass(frozen=True)
class _Ingested:
    """Complete streams."""

    #: Tokenizer of the text.
    tokenizer: Tokenizer
    #: Bytes of text by stream, in the order of the store.
    text_bytes: dict[str, int]
    #: Entries of the manifest.
    details: dict[str, Any]
    #: Bytes of text to read, if known.
    total: int | None = None


def _text(work: Path, config: DataConfig, report: Report) -> _Ingested:
    parts = streams.sources(config)
    sizes = [streams.size(source) for source in parts]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    texts = [Text(_name(source), lambda source=source: streams.documents(source, config)) for source in parts]
    for _ in range(2):
        work.mkdir(exist_ok=True)
        trained = _tokenizer(work / "tokenizer.json", config, report)
        split = Split(config.validation, config.validation_fraction)
        try:
            progress = ingest(work, texts, tokenizer=trained, split=split, report=report, total=total)
            break
        except StaleProgress:
            shutil.rmtree(work)
    else:
        raise UserError("two reads of the text differ: a file or dataset changes while it is read")
    names = [*(f"train-{i}" for i in range(len(parts))), "validation"]
    read = [{"name": _name(s), **read} for s, read in zip(parts, progress.finished, strict=True)]
    return _Ingested(trained, {name: progress.text_bytes[name] for name in names}, {"sources": read}, total)


def _records(work: Path, config: RecordsConfig, report: Report) -> _Ingested:
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    trained = _tokenizer(work / "tokenizer.json", config, report)
    return _Ingested(trained, *ingest_records.ingest_records(work, config, tokenizer=trained, report=report))


def _tokenizer(path: Path, config: DataConfig | RecordsConfig, report: Report) -> Tokenizer:
    """Return the tokenizer of an earlier attempt, or a new tokenizer."""
    if path.exists():
        return load_tokenizer(path)
    limit = f" (the first {TRAINING_BYTES // 10**6} MB)" if config.tokenizer.kind == "bpe" else ""

    def texts() -> Iterator[str]:
        done = reported = 0
        for piece in ingest_records.texts(config) if isinstance(config, RecordsConfig) else streams.texts(config):
            yield piece
            done += len(piece)
            if done >= reported + 1_000_000:
                report(done, None, f"reading the text for the tokenizer{limit}")
                reported = done

    trained = build_tokenizer(config.tokenizer, texts)
    write_text(path, trained.json)
    return trained


def _manifest(work: Path, ingested: _Ingested, identity: dict[str, Any]) -> dict[str, Any]:
    trained = ingested.tokenizer
    width = dtype(trained.vocab_size).itemsize
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted([work / "tokenizer.json", *work.glob("*.ids"), *work.glob("*.starts")])
    }
    entries = {
        name: {
            "tokens": files[f"{name}.ids"]["bytes"] // width,
            "documents": files[f"{name}.starts"]["bytes"] // 8,
            "bytes": text_bytes,
        }
        for name, text_bytes in ingested.text_bytes.items()
    }
    content = {name: entry["sha256"] for name, entry in files.items()}
    return {
        "format": FORMAT,
        "lmjax": __version__,
        "python": platform.python_version(),
        "fingerprint": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "tokenizer": {
            "kind": identity["tokenizer"]["kind"],
            "vocab_size": trained.vocab_size,
            "end_of_text": trained.end_of_text,
            "sha256": trained.sha256,
        },
        **ingested.details,
        "streams": entries,
        "files": files,
        "made_from": identity,
    }


def _name(source: SourceConfig) -> str:
    return ", ".join(source.files) or source.source
