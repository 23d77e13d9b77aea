"""Preparation of the store of a configuration, or its reuse from the cache."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lmjax import __version__
from lmjax.config import (
    AnyDataConfig,
    ChatConfig,
    DataConfig,
    PreferenceConfig,
    RecordsConfig,
    SourceConfig,
    TokenizerConfig,
    UserError,
)
from lmjax.config.ranges import check_ranges
from lmjax.data import chat_template
from lmjax.data.chat_tokens import completed
from lmjax.data.order.mixture import check_weights
from lmjax.data.sources import chat, preferences, rows, streams
from lmjax.data.store import ingest_chat, ingest_preferences, ingest_records
from lmjax.data.store.ingest import Split, StaleProgress, Text, ingest
from lmjax.data.store.manifest import FORMAT, Report, content_fingerprint, dtype, file_sha256, read_manifest, silent
from lmjax.data.store.store import Store, count, holds_text, mapped
from lmjax.data.tokenizer import Tokenizer, build_tokenizer, file_identity, load_tokenizer
from lmjax.data.tokenizer_training import TRAINING_BYTES
from lmjax.system import files, paths
from lmjax.system.files import sync_folder, write_text

WAITING = "waiting for another process that prepares the same data"


def prepare(config: AnyDataConfig, *, report: Report = silent, verify: bool = False, known: str = "") -> Store:
    """Return the store of a configuration from the cache, after ingestion if necessary.

    An interrupted ingestion of text resumes; an ingestion of records restarts. If several processes need the same
    store, one process prepares it and the others wait. A store that was prepared earlier is compared with its manifest.

    Args:
        config: The data.
        report: Called with (bytes done, total bytes or None, current activity).
        verify: Check the hash of every file, also of a large store.
        known: Fingerprint of the store that the configuration had earlier. If the text or the tokenizer is missing
            now, a store in the cache with this fingerprint is used.

    Raises:
        UserError: The input is invalid, the cache is not writable, or the store does not match its manifest.
    """
    if isinstance(config, DataConfig):
        check_weights(config)
    cache = cache_folder(config.cache)
    try:
        identity = _identity(config)
    except UserError as error:
        folder = find_store(cache, known)
        if folder is None:
            raise UserError(_ways_out(config, cache, str(error)) if known else str(error)) from None
        report(0, None, f"using the prepared tokens in '{folder}', as the text cannot be read ({error})")
        return Store.open(folder, verify=True, report=report)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
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
    return Store.open(folder, verify=verify, report=report)


def prepare_to_read(config: AnyDataConfig, fingerprint: str, *, report: Report = silent) -> Store:
    """Return the store of a run that is only read, with the hash of every file checked.

    It is the store with this fingerprint in the cache that the configuration names or in the user's cache. If neither
    has it, the data are prepared in the user's cache, and nothing is written elsewhere.

    Raises:
        UserError: As `prepare`.
    """
    for cache in (cache_folder(config.cache), files.cache_folder()):
        if folder := find_store(cache, fingerprint):
            return Store.open(folder, verify=True, report=report)
    return prepare(replace(config, cache=""), report=report, verify=True, known=fingerprint)


def find_store(cache: Path, fingerprint: str) -> Path | None:
    """Return the folder of the store with this fingerprint in a cache, or None.

    Only its manifest is read.
    """
    for path in sorted(cache.glob("*/manifest.json")) if fingerprint else ():
        try:
            if path.parent.suffix != ".partial" and read_manifest(path.parent)["fingerprint"] == fingerprint:
                return path.parent
        except UserError:  # of another version, or damaged
            continue
    return None


def _ways_out(config: AnyDataConfig, cache: Path, problem: str) -> str:
    """Say how to resume a run whose text and prepared tokens are missing."""
    key = "data.mixture" if isinstance(config, DataConfig) and config.mixture else "data.files"
    return (
        f"{problem.rstrip('?')}; '{cache}' does not have the prepared tokens of the run either: name the new place of "
        f"the text with {key}=[NEW PLACE] --allow-change {key}, or the cache with data.cache=FOLDER --allow-change "
        "data.cache"
    )


def cache_folder(configured: str) -> Path:
    """Return the folder of the stores: the configured folder, or lmjax in the user's cache."""
    return paths.local(configured, key="data.cache") if configured else files.cache_folder()


def _identity(config: AnyDataConfig) -> dict[str, Any]:
    """Identify the content of a store without reading the text."""
    defaults = asdict(TokenizerConfig())
    choice: dict[str, Any] = {
        name: value  # a field that is newer than the format counts if it is set
        for name, value in asdict(config.tokenizer).items()
        if name in ("kind", "vocab_size", "path") or value != defaults[name]
    }
    if config.tokenizer.kind == "file":
        choice = {"kind": "file", "files": file_identity(Path(config.tokenizer.path))}
    match config:
        case RecordsConfig():
            content = rows.fingerprint(config)
        case ChatConfig():
            content = chat.fingerprint(config) | _template_identity(config.template)
        case PreferenceConfig():
            content = preferences.fingerprint(config) | _template_identity(config.template)
        case _:
            content = _text_identity(config)
    return {"format": FORMAT, "tokenizer": choice, **content}


def _template_identity(choice: str) -> dict[str, Any]:
    """Identify the chat template that a configuration names, if it names one."""
    if choice in ("", chat_template.IDS):
        return {"template": choice} if choice else {}
    return {"template": hashlib.sha256(chat_template.read(choice, {}).source.encode()).hexdigest()}


def _text_identity(config: DataConfig) -> dict[str, Any]:
    check_ranges(config, "data")
    return {
        "sources": [streams.fingerprint(source, config) for source in streams.sources(config)],
        "validation": [config.validation, config.validation_fraction],
    }


def _make(folder: Path, config: AnyDataConfig, identity: dict[str, Any], report: Report) -> None:
    """Ingest into FOLDER.partial, which may hold an earlier attempt, and rename it."""
    work = folder.with_name(folder.name + ".partial")
    ingested = _text(work, config, report) if isinstance(config, DataConfig) else _records(work, config, report)
    if _identity(config) != identity:
        shutil.rmtree(work)
        raise UserError("a file of the corpus changed while it was read: start again when it is complete")
    report(sum(ingested.text_bytes.values()), ingested.total, "hashing")
    write_text(work / "manifest.json", json.dumps(_manifest(work, ingested, identity), indent=1))
    (work / "progress.json").unlink(missing_ok=True)
    if folder.exists():  # a folder without a manifest is no store
        shutil.rmtree(folder)
    os.replace(work, folder)
    sync_folder(folder.parent)


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
    sizes = [streams.size(source, config) for source in parts]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    texts = [_source_text(source, config) for source in parts]
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
    read = [
        {"name": _name(s), **read, **_left_out(streams.notes(s))}
        for s, read in zip(parts, progress.finished, strict=True)
    ]
    details = {"sources": read} | ({"compared": progress.compared} if progress.compared else {})
    details |= _repeated(streams.repeated(config))
    return _Ingested(trained, {name: progress.text_bytes[name] for name in names}, details, total)


def _source_text(source: SourceConfig, config: DataConfig) -> Text:
    dropped = streams.Dropped()

    def pieces() -> Iterator[tuple[str, bool]]:
        dropped.reset()
        return streams.documents(source, config, dropped=dropped)

    return Text(_name(source), pieces, dropped.entry, dropped.note)


def _left_out(notes: list[str]) -> dict[str, list[str]]:
    return {"left_out": notes} if notes else {}


def _repeated(lines: list[str]) -> dict[str, list[str]]:
    return {"repeated": lines} if lines else {}


def _records(work: Path, config: RecordsConfig | ChatConfig | PreferenceConfig, report: Report) -> _Ingested:
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    trained = _tokenizer(work / "tokenizer.json", config, report)
    match config:
        case RecordsConfig():
            sizes, details = ingest_records.ingest_records(work, config, tokenizer=trained, report=report)
            repeated = rows.repeated(config)
        case ChatConfig():
            sizes, details = ingest_chat.ingest_chat(work, config, tokenizer=trained, report=report)
            repeated = chat.repeated(config)
        case PreferenceConfig():
            sizes, details = ingest_preferences.ingest_preferences(work, config, tokenizer=trained, report=report)
            repeated = preferences.repeated(config)
    details["sources"][0] |= _left_out(file_notes(config))
    return _Ingested(trained, sizes, details | _repeated(repeated))


def _tokenizer(path: Path, config: AnyDataConfig, report: Report) -> Tokenizer:
    """Return the tokenizer of an earlier attempt, or a new tokenizer."""
    if path.exists():
        return load_tokenizer(path)
    limit = f" (the first {TRAINING_BYTES // 10**6} MB)" if config.tokenizer.kind == "bpe" else ""

    def texts() -> Iterator[str]:
        done = reported = 0
        pieces = tokenizer_texts(config)
        try:
            for piece in pieces:
                yield piece
                done += len(piece)
                if done >= reported + 1_000_000:
                    report(done, None, f"reading the text for the tokenizer{limit}")
                    reported = done
        finally:  # of a long text only the beginning is read
            report(done, None, "training the tokenizer")

    trained = build_tokenizer(config.tokenizer, texts)
    if isinstance(config, ChatConfig | PreferenceConfig):
        trained = completed(chat_template.chosen(trained, config.template))
    write_text(path, trained.json)
    return trained


def tokenizer_texts(config: AnyDataConfig, *, dropped: streams.Dropped | None = None) -> Iterator[str]:
    """Return the text on which the tokenizer of a configuration is trained.

    `dropped` counts the bad records that are left out.
    """
    match config:
        case RecordsConfig():
            return ingest_records.texts(config, dropped=dropped)
        case ChatConfig():
            return ingest_chat.texts(config, dropped=dropped)
        case PreferenceConfig():
            return ingest_preferences.texts(config, dropped=dropped)
        case _:
            return streams.texts(config, dropped=dropped)


def file_notes(config: AnyDataConfig) -> list[str]:
    """Return what the names of the files leave out, a line for each reason."""
    match config:
        case RecordsConfig():
            return rows.notes(config)
        case ChatConfig():
            return chat.notes(config)
        case PreferenceConfig():
            return preferences.notes(config)
        case _:
            return [note for source in streams.sources(config) for note in streams.notes(source)]


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
            **_unknown(work / f"{name}.ids", trained),
        }
        for name, text_bytes in ingested.text_bytes.items()
    }
    return {
        "format": FORMAT,
        "lmjax": __version__,
        "python": platform.python_version(),
        "fingerprint": content_fingerprint(files),
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


def _unknown(path: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the number of unknown tokens of a stream, if the tokenizer has one."""
    if tokenizer.unknown is None or not holds_text(path.stem):
        return {}
    return {"unknown": count(mapped(path, dtype(tokenizer.vocab_size)), tokenizer.unknown)}


def _name(source: SourceConfig) -> str:
    return ", ".join(source.files) or source.source
