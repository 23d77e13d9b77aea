"""Prepared data: memory-mapped token ids, a tokenizer and a manifest of hashes.

`prepare` returns the store of a configuration from the cache, after creating it if necessary. A store is a folder:
`manifest.json`, `tokenizer.json`, and for each stream `NAME.ids` and `NAME.starts`. A complete store never changes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.store.manifest import Report, damaged, dtype, read_manifest, silent, verify_files
from lmjax.data.tokenizer import Tokenizer, load_tokenizer

BLOCK = 1 << 22  # ids that are counted at a time


@dataclass(frozen=True)
class Tokens:
    """One stream of token ids."""

    #: uint16 or uint32, memory-mapped.
    ids: np.ndarray
    #: int64 offset of each document.
    starts: np.ndarray
    #: UTF-8 bytes of the text.
    bytes: int = 0
    #: Hash of the file of ids.
    sha256: str = ""
    #: Number of ids of the vocabulary (0: ids are not checked).
    vocab_size: int = 0

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """Return ids that were read from this stream.

        Raises:
            UserError: An id is outside the vocabulary: the file was damaged after it was verified, or is too large to
                be verified at the start of a run.
        """
        if self.vocab_size and ids.size and (largest := int(ids.max())) >= self.vocab_size:
            place = getattr(self.ids, "filename", None) or "the prepared data"
            raise UserError(
                f"'{place}' has the token id {largest}, outside the vocabulary of {self.vocab_size}: the file is "
                "damaged; delete its folder to prepare the data again"
            )
        return ids


@dataclass(frozen=True)
class Store:
    """Prepared text, or records (see `records` for the names of their streams).

    `unknown_tokens(stream)` and `lossless` say what the tokenizer lost.
    """

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
    #: Whether the hashes of all files were compared with the manifest.
    verified: bool = True

    @property
    def sources(self) -> tuple[Tokens, ...]:
        """The training stream of each source of text."""
        return tuple(tokens for name, tokens in self.streams.items() if name.startswith("train-"))

    @property
    def validation(self) -> Tokens:
        """The validation stream of text, shared by all sources."""
        return self.streams["validation"]

    @cached_property
    def validation_sources(self) -> tuple[int, ...] | None:
        """Offset of each source's first token in the validation stream; None if it is not known.

        The stream holds the documents of one source after those of another. How many they are follows from the numbers
        of documents in the manifest. A source whose training stream ends within a document has the rest of it here.
        """
        counts = [source["documents"] for source in self.manifest["sources"]]
        parts = [total - len(tokens.starts) for total, tokens in zip(counts, self.sources, strict=True)]
        end = self.tokenizer.end_of_text
        if sum(parts) != len(self.validation.starts) and end is not None:  # split by the tail of each source
            parts = [n + (int(tokens.ids[-1]) != end) for n, tokens in zip(parts, self.sources, strict=True)]
        elif sum(parts) + len(parts) == len(self.validation.starts):
            parts = [n + 1 for n in parts]
        if sum(parts) != len(self.validation.starts) or min(parts) < 0:
            return None
        first = np.cumsum([0, *parts[:-1]])
        bounds = np.append(np.asarray(self.validation.starts), len(self.validation.ids))
        return tuple(bounds[first].tolist())

    @cached_property
    def _unknown(self) -> dict[str, int]:
        unknown, counts = self.tokenizer.unknown, {}
        for name, tokens in self.streams.items():
            recorded = self.manifest.get("streams", {}).get(name, {}).get("unknown")
            if unknown is None or not holds_text(name):
                counts[name] = 0
            else:
                counts[name] = count(tokens.ids, unknown) if recorded is None else recorded
        return counts

    def unknown_tokens(self, stream: str) -> int:
        """Return the number of unknown tokens ([UNK]) of a stream, 0 if the tokenizer has none."""
        return self._unknown[stream]

    @property
    def lossless(self) -> bool | None:
        """Whether decoding returns the text.

        True or False where the tokenizer or the unknown tokens decide it; otherwise as in the sample of the text that
        was compared during the preparation. None for a store of an older version, which has no sample.
        """
        if self.tokenizer.lossless:
            return True
        if any(self._unknown.values()):
            return False
        compared = self.manifest.get("compared")
        return None if compared is None else compared["different"] == 0

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False, report: Report = silent) -> "Store":
        """Open the store in a folder and compare its files with its manifest.

        See `verify_files` for what is compared.

        Args:
            folder: The folder.
            verify: Check the hash of every file, also of a large store.
            report: Called with (bytes done, total bytes, current activity).

        Raises:
            UserError: A file does not match the manifest.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        verified = verify_files(folder, manifest, complete=verify, report=report)
        loaded = load_tokenizer(folder / "tokenizer.json")
        vocab_size: int = manifest["tokenizer"]["vocab_size"]
        labels = len(manifest.get("labels") or ())
        sizes: dict[str, int] = {"label": labels, "mask": 2, "margin": 0}  # of streams without text
        streams = {
            name: Tokens(
                ids=mapped(folder / f"{name}.ids", dtype(vocab_size)),
                starts=mapped(folder / f"{name}.starts", np.dtype("<i8")),
                bytes=entry["bytes"],
                sha256=manifest["files"][f"{name}.ids"]["sha256"],
                vocab_size=sizes.get(name.rpartition("-")[2], vocab_size),
            )
            for name, entry in manifest["streams"].items()
        }
        for name, tokens in streams.items():
            if not _are_offsets(tokens.starts, len(tokens.ids)):
                raise damaged(folder / f"{name}.starts", "its offsets decrease, or are outside the ids")
        return cls(folder, loaded, streams, manifest["fingerprint"], manifest, verified)


def holds_text(stream: str) -> bool:
    """Whether a stream holds token ids, not labels, marks of targets or numbers."""
    return not stream.endswith(("-label", "-mask", "-margin"))


def count(ids: np.ndarray, id: int) -> int:
    """Return how often an id occurs, in bounded memory."""
    return sum(int(np.count_nonzero(ids[start : start + BLOCK] == id)) for start in range(0, len(ids), BLOCK))


def _are_offsets(starts: np.ndarray, size: int) -> bool:
    """Whether the offsets of documents never decrease and are inside a stream of `size` ids."""
    last = 0
    for begin in range(0, len(starts), BLOCK):
        block = np.asarray(starts[begin : begin + BLOCK])
        if block[0] < last or (block[1:] < block[:-1]).any():
            return False
        last = int(block[-1])
    return last <= size


def mapped(path: Path, kind: np.dtype) -> np.ndarray:
    """Map a file; an empty file, which cannot be mapped, is an empty array."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)
