"""The manifest of a store, and the comparison of the store's files with it."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import open_regular, read_regular
from lmjax.system import faults

FORMAT = 1  # of the store and of how documents become tokens; part of a store's name
LARGE = 4 << 30  # bytes of a store whose ids are not read completely at the start of a run
LARGEST = 1 << 30  # bytes of a manifest, which lists every file of the text
BLOCK = 1 << 24  # bytes that are hashed between two reports

Report = Callable[[int, int | None, str], None]  # bytes done, bytes in all if known, what is being done

_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a file or a stream: no folder, no `..`
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKENIZER = "tokenizer.json"


def silent(done: int, total: int | None, message: str) -> None:
    """Report nothing."""


def dtype(vocab_size: int) -> np.dtype:
    """Return the stored type of ids: two bytes if they fit, else four, little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---- Reading ----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of the manifest of a store, whose values have the right form.

    Raises:
        UserError: The folder has no valid manifest of this version.
    """
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > LARGEST:
            raise damaged(path, f"it has more than {LARGEST} bytes")
        content = read_regular(path, largest=LARGEST)
    except OSError as error:
        raise UserError(f"'{folder}' is not prepared data: cannot read {path.name} ({error.strerror})") from None
    try:
        manifest = parse_json(content, "it", largest=0)
    except UserError as error:
        raise damaged(path, str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise damaged(path, "it is not a manifest of this version")
    if problem := _problem(manifest):
        raise damaged(path, problem)
    return manifest


def content_fingerprint(entries: dict[str, dict[str, Any]]) -> str:
    """Return the sha256 over the names and the hashes of a store's files."""
    content = {name: entry["sha256"] for name, entry in entries.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _problem(manifest: dict[str, Any]) -> str:
    """Return what is wrong with the values of a manifest; empty if nothing is."""
    files, streams, tokenizer = (manifest.get(name) for name in ("files", "streams", "tokenizer"))
    if not isinstance(files, dict) or not all(_is_file(name, entry) for name, entry in files.items()):
        return "'files' is not a list of files with their sizes and hashes"
    if not isinstance(tokenizer, dict) or not _is_count(tokenizer.get("vocab_size"), least=1, most=1 << 32):
        return "'tokenizer' does not have the size of a vocabulary"
    if _TOKENIZER not in files:
        return f"'files' lacks {_TOKENIZER}"
    width = dtype(tokenizer["vocab_size"]).itemsize
    if not isinstance(streams, dict) or not all(
        isinstance(entry, dict) and _is_stream(name, entry, files, width) for name, entry in streams.items()
    ):
        return "'streams' is not a list of streams with the sizes of their files"
    sources, records, labels = (manifest.get(name) for name in ("sources", "records", "labels"))
    if not isinstance(sources, list) or not all(map(_is_source, sources)):
        return "'sources' is not a list of sources with their number of documents"
    if records is not None and not _has_counts(records, ("train", "validation", "skipped")):
        return "'records' does not have the numbers of records"
    if "compared" in manifest and not _has_counts(manifest["compared"], ("pieces", "bytes", "different")):
        return "'compared' does not have the numbers of compared texts"
    if labels is not None and not _has_texts(labels):
        return "'labels' is not a list of names"
    if not _has_texts(manifest.get("repeated", [])):
        return "'repeated' is not a list of lines"
    if manifest.get("fingerprint") != content_fingerprint(files):
        return "'fingerprint' is not the hash of its files"
    return ""


def _is_file(name: str, entry: Any) -> bool:
    form = _NAME.fullmatch(name) and isinstance(entry, dict)
    return bool(form) and _is_count(entry.get("bytes")) and _is_sha256(entry.get("sha256"))


def _is_stream(name: str, entry: dict[str, Any], files: dict[str, Any], width: int) -> bool:
    keys = ("tokens", "documents", "bytes", *(["unknown"] if "unknown" in entry else []))
    if not all(_is_count(entry.get(key)) for key in keys):
        return False
    sizes = [files.get(f"{name}.{kind}", {}).get("bytes") for kind in ("ids", "starts")]
    return sizes == [entry["tokens"] * width, entry["documents"] * 8]


def _is_count(value: Any, *, least: int = 0, most: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _has_counts(value: Any, names: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(_is_count(value.get(name)) for name in names)


def _has_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_source(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    left_out, first = value.get("left_out", []), value.get("first_dropped", "")
    return (
        _has_texts(left_out)
        and isinstance(first, str)
        and _is_count(value.get("dropped", 0))
        and ("first_dropped" in value or not value.get("dropped"))
        and isinstance(value.get("name"), str)
        and _is_count(value.get("documents"))
        and _is_sha256(value.get("documents_sha256"))
    )


# ---- Comparing the files ----------------------------------------------------------------------------------------


def verify_files(folder: Path, manifest: dict[str, Any], *, complete: bool = False, report: Report = silent) -> bool:
    """Compare the files of a store with its manifest.

    Sizes, and the hashes of the tokenizer and of the starts of documents, are always compared. The hashes of the ids
    are compared if `complete`, or if the store has at most `LARGE` bytes.

    Args:
        folder: The store.
        manifest: Its manifest.
        complete: Compare the hashes of all files, also of a large store.
        report: Called with (bytes done, total bytes, current activity).

    Returns:
        Whether the hashes of all files were compared.

    Raises:
        UserError: A file does not match.
    """
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise damaged(path, "it is missing")
        if size != entry["bytes"]:
            raise damaged(path, f"it has {size} bytes, the manifest says {entry['bytes']}")
    complete = complete or sum(entry["bytes"] for entry in files.values()) <= LARGE
    hashed = [name for name in files if complete or not name.endswith(".ids")]
    done, total = 0, sum(files[name]["bytes"] for name in hashed)
    for name in hashed:
        start = done
        faults.reach("verify")

        def progress(count: int, start: int = start) -> None:
            report(start + count, total, "verifying the prepared data")

        if file_sha256(folder / name, progress if total > BLOCK else None) != files[name]["sha256"]:
            raise damaged(folder / name, "its sha256 is not the manifest's")
        done += files[name]["bytes"]
    return complete


def damaged(path: Path, reason: str) -> UserError:
    """Return the error of a file that does not match."""
    return UserError(
        f"prepared data do not match their manifest: '{path}': {reason}; delete the folder to prepare the data again"
    )


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file.

    Args:
        path: The file.
        progress: Called with the number of bytes that were read.
    """
    with open_regular(path) as file:
        if progress is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, done = hashlib.sha256(), 0
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            progress(done)
        return digest.hexdigest()
