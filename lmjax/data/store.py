"""Prepared text and records: memory-mapped token ids with boundaries, a tokenizer, and a manifest of hashes.

`prepare` gives the store of a configuration from the cache, making it first if it is not there. A store is a folder:
`manifest.json`, `tokenizer.json`, and for each stream `NAME.ids` and `NAME.starts`. It never changes once it stands.
"""

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

import numpy as np

from lmjax import __version__, files
from lmjax.config import DataConfig, RecordsConfig, SourceConfig, UserError
from lmjax.data import records, rows, sources, tokenizer, vocabularies
from lmjax.data.ingest import Report, Split, StaleProgress, Text, dtype, ingest
from lmjax.data.tokenizer import Tokenizer
from lmjax.files import write_text

FORMAT = 1  # of the store and of how documents become tokens; part of a store's name


@dataclass(frozen=True)
class Tokens:
    """One stream. ids: uint16 or uint32, memory-mapped. starts: int64 offset of each document. bytes: of its text."""

    ids: np.ndarray
    starts: np.ndarray
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Store:
    """Prepared text, or records (see `records` for the names of their streams).

    fingerprint: sha256 over the tokenizer and every stream, the same wherever and from whatever file it was made.
    """

    folder: Path
    tokenizer: Tokenizer
    streams: dict[str, Tokens]
    fingerprint: str
    manifest: dict[str, Any]

    @property
    def sources(self) -> tuple[Tokens, ...]:
        """Of text: the training stream of each source."""
        return tuple(tokens for name, tokens in self.streams.items() if name.startswith("train-"))

    @property
    def validation(self) -> Tokens:
        """Of text: the validation stream, one for all sources."""
        return self.streams["validation"]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "Store":
        """The store in a folder. UserError: a file is not what the manifest says, by its size or, with `verify`, hash.

        The tokenizer's hash is always checked.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, entry in manifest["files"].items():
            _check_file(folder / name, entry, by_hash=verify or name == "tokenizer.json")
        loaded = tokenizer.load(folder / "tokenizer.json")
        kind = dtype(manifest["tokenizer"]["vocab_size"])
        streams = {
            name: Tokens(
                ids=np.memmap(folder / f"{name}.ids", kind, "r"),
                starts=np.memmap(folder / f"{name}.starts", "<i8", "r"),
                bytes=entry["bytes"],
                sha256=manifest["files"][f"{name}.ids"]["sha256"],
            )
            for name, entry in manifest["streams"].items()
        }
        return cls(folder, loaded, streams, manifest["fingerprint"], manifest)


WAITING = "waiting for another process that prepares the same data"


def silent(done: int, total: int | None, message: str) -> None:
    """Reports nothing."""


def prepare(config: DataConfig | RecordsConfig, *, report: Report = silent, verify: bool = False) -> Store:
    """The store of a configuration: from the cache if nothing changed, else ingested into it.

    report(bytes done, bytes in all or None, what) is called along the way. An interrupted ingestion of text goes on
    where it was, one of records starts again; of several processes one works and the others wait for it. UserError:
    anything wrong with the input, a cache that cannot be written, a store that does not match its manifest.
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
                f"cannot keep prepared data in '{cache}' ({error.strerror or error}): set data.cache=FOLDER"
            ) from None
    return Store.open(folder, verify=verify)


def cache_folder(configured: str) -> Path:
    """Where stores are kept: the configured folder, or lmjax in the user's cache."""
    return Path(configured).expanduser() if configured else files.cache_folder()


def _identity(config: DataConfig | RecordsConfig) -> dict[str, Any]:
    """All that the content of a store depends on, found without reading the text."""
    choice: dict[str, Any] = asdict(config.tokenizer)
    if config.tokenizer.kind == "file":
        parts = vocabularies.files(Path(config.tokenizer.path))
        choice = {"kind": "file", "files": [[part.name, _sha256(part)] for part in parts]}
    content = rows.fingerprint(config) if isinstance(config, RecordsConfig) else _text_identity(config)
    return {"format": FORMAT, "tokenizer": choice, **content}


def _text_identity(config: DataConfig) -> dict[str, Any]:
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={config.validation_fraction}: it must lie between 0 and 1")
    return {
        "sources": [sources.fingerprint(source, config) for source in sources.sources(config)],
        "validation": [config.validation, config.validation_fraction],
    }


# ---- Making a store ---------------------------------------------------------------------------------------------


def _make(folder: Path, config: DataConfig | RecordsConfig, identity: dict[str, Any], report: Report) -> None:
    """Ingests into a folder beside `folder` (where an earlier attempt may lie) and moves it into place."""
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
    """Streams that are complete. text_bytes: of each, by name, in the store's order. details: for the manifest."""

    tokenizer: Tokenizer
    text_bytes: dict[str, int]
    details: dict[str, Any]
    total: int | None = None  # bytes of text to read, if that was known


def _text(work: Path, config: DataConfig, report: Report) -> _Ingested:
    parts = sources.sources(config)
    sizes = [sources.size(source) for source in parts]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    texts = [Text(_name(source), lambda source=source: sources.documents(source, config)) for source in parts]
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
        raise UserError("the text is never twice the same: a file or dataset changes while it is read")
    names = [*(f"train-{i}" for i in range(len(parts))), "validation"]
    read = [{"name": _name(s), **read} for s, read in zip(parts, progress.finished, strict=True)]
    return _Ingested(trained, {name: progress.text_bytes[name] for name in names}, {"sources": read}, total)


def _records(work: Path, config: RecordsConfig, report: Report) -> _Ingested:
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    trained = _tokenizer(work / "tokenizer.json", config, report)
    return _Ingested(trained, *records.ingest(work, config, tokenizer=trained, report=report))


def _tokenizer(path: Path, config: DataConfig | RecordsConfig, report: Report) -> Tokenizer:
    """The tokenizer of an earlier attempt, or a new one."""
    if path.exists():
        return tokenizer.load(path)
    limit = f" (the first {tokenizer.TRAINING_BYTES // 10**6} MB)" if config.tokenizer.kind == "bpe" else ""

    def texts() -> Iterator[str]:
        done = reported = 0
        for piece in records.texts(config) if isinstance(config, RecordsConfig) else sources.texts(config):
            yield piece
            done += len(piece)
            if done >= reported + 1_000_000:
                report(done, None, f"reading the text for the tokenizer{limit}")
                reported = done

    trained = tokenizer.build(config.tokenizer, texts)
    write_text(path, trained.json)
    return trained


def _manifest(work: Path, ingested: _Ingested, identity: dict[str, Any]) -> dict[str, Any]:
    trained = ingested.tokenizer
    width = dtype(trained.vocab_size).itemsize
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted([work / "tokenizer.json", *work.glob("*.ids"), *work.glob("*.starts")])
    }
    streams = {
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
        "streams": streams,
        "files": files,
        "made_from": identity,
    }


def _name(source: SourceConfig) -> str:
    return ", ".join(source.files) or source.source


# ---- Checking a store -------------------------------------------------------------------------------------------


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        known = manifest["format"] == FORMAT and {"files", "streams", "tokenizer", "fingerprint"} <= set(manifest)
    except OSError as error:
        raise UserError(f"'{folder}' is not prepared data: cannot read {path.name} ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        known, manifest = False, {}
    if not known:
        raise _damaged(path, "it is not a manifest of this version")
    return manifest


def _check_file(path: Path, entry: dict[str, Any], *, by_hash: bool) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise _damaged(path, "it is missing")
    if size != entry["bytes"]:
        raise _damaged(path, f"it has {size} bytes, the manifest says {entry['bytes']}")
    if by_hash and _sha256(path) != entry["sha256"]:
        raise _damaged(path, "its sha256 is not the manifest's")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"prepared data do not match their manifest: '{path}': {reason}; delete the folder to have it made again"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
