"""Prepared data: memory-mapped token ids, a tokenizer and a manifest of hashes.

`prepare` returns the store of a configuration from the cache, after creating it if necessary. A store is a folder:
`manifest.json`, `tokenizer.json`, and for each stream `NAME.ids` and `NAME.starts`. A complete store never changes.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.store.ingest import dtype
from lmjax.data.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1  # of the store and of how documents become tokens; part of a store's name


@dataclass(frozen=True)
class Tokens:
    """One stream of token ids."""

    #: uint16 or uint32, memory-mapped.
    ids: np.ndarray
    #: int64 offset of each document.
    starts: np.ndarray
    #: UTF-8 bytes of the text.
    bytes: int
    #: Hash of the file of ids.
    sha256: str


@dataclass(frozen=True)
class Store:
    """Prepared text, or records (see `records` for the names of their streams)."""

    #: The store's folder.
    folder: Path
    #: Tokenizer of all text.
    tokenizer: Tokenizer
    #: Streams by name.
    streams: dict[str, Tokens]
    #: sha256 over the tokenizer and every stream; it does not depend on the machine or on the text's files.
    fingerprint: str
    #: Content of manifest.json.
    manifest: dict[str, Any]

    @property
    def sources(self) -> tuple[Tokens, ...]:
        """The training stream of each source of text."""
        return tuple(tokens for name, tokens in self.streams.items() if name.startswith("train-"))

    @property
    def validation(self) -> Tokens:
        """The validation stream of text, shared by all sources."""
        return self.streams["validation"]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "Store":
        """Open the store in a folder.

        Args:
            folder: The folder.
            verify: Check the hash of every file; otherwise of the tokenizer only.

        Raises:
            UserError: A file does not match the manifest.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, entry in manifest["files"].items():
            _check_file(folder / name, entry, by_hash=verify or name == "tokenizer.json")
        loaded = load_tokenizer(folder / "tokenizer.json")
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
    if by_hash and file_sha256(path) != entry["sha256"]:
        raise _damaged(path, "its sha256 is not the manifest's")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"prepared data do not match their manifest: '{path}': {reason}; delete the folder to prepare the data again"
    )


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
