"""From streams of text to files of token ids: in parallel, in bounded memory, resumable.

Files only grow. Every COMMIT bytes of text they are flushed to the disk and `progress.json` is replaced, which records
their sizes. To resume, they are truncated to these sizes, and earlier pieces are read but not encoded again.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lmjax.config import UserError
from lmjax.config.json_text import parse_json
from lmjax.data.sources.streams import Dropped
from lmjax.data.store.manifest import Report, dtype
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.tokenizer_bytes import BEFORE
from lmjax.system import readers
from lmjax.system.files import write_text

T = TypeVar("T")

COMPARED = 4 << 20  # bytes of text of a source whose decoded tokens are compared with it
BATCH = 2 << 20  # bytes of text per call of the tokenizer; a token needs about 150 bytes of memory meanwhile
COPIED = 1 << 22  # ids of a tail that are copied at a time
COMMIT = 64 << 20  # bytes of text between two commits


@dataclasses.dataclass(frozen=True)
class Text:
    """A source to ingest."""

    #: Name of the source in error messages.
    name: str
    #: Starts to read: yields (text, whether a document begins with it).
    pieces: Callable[[], Iterable[tuple[str, bool]]]
    #: Returns what was left out up to now, for the manifest.
    dropped: Callable[[], dict[str, Any]] = dict
    #: Returns the same as a line; empty if nothing was left out.
    note: Callable[[], str] = str


@dataclasses.dataclass(frozen=True)
class Split:
    """Selection of the validation data."""

    #: By a hash of each document, or the tail of each stream.
    kind: Literal["hash", "tail"]
    #: Share of the data.
    fraction: float

    def takes(self, piece: str) -> bool:
        """Whether the document that begins with this piece belongs to validation."""
        number = int.from_bytes(hashlib.sha256(piece.encode()).digest()[:8], "big")
        return self.kind == "hash" and number < self.fraction * 2**64


@dataclasses.dataclass
class Progress:
    """The committed state on the disk."""

    #: Number and hash of the documents of each finished source.
    finished: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    #: Ingested pieces of the current source (the source after the finished ones).
    pieces: int = 0
    #: Ingested documents of the current source.
    documents: int = 0
    #: Hash of these pieces.
    sha256: str = hashlib.sha256().hexdigest()
    #: The stream whose last document has not ended; empty if there is none.
    stream: str = ""
    #: Bytes of each file.
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    #: UTF-8 bytes of the text of each stream.
    text_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Sample of the text that was compared with its decoded tokens, see `compare`.
    compared: dict[str, int] = dataclasses.field(default_factory=dict)
    #: The tails of the training streams have been moved to the validation stream.
    tails_cut: bool = False


class StaleProgress(Exception):
    """The text changed after the ingestion began; it must restart."""


def ingest(
    folder: Path, texts: list[Text], *, tokenizer: Tokenizer, split: Split, report: Report, total: int | None
) -> Progress:
    """Write the streams `train-0`, ... and `validation`, each an `.ids` and a `.starts` file.

    Every document ends in end_of_text, except the training part of a document that the cut of a tail divides. Starts
    are int64 offsets into the ids.

    Raises:
        UserError: A source or a side of the split has no text, or an id is outside the vocabulary.
        StaleProgress: The folder holds the partial ingestion of another text.
    """
    progress = _restore(folder)
    for number in range(len(progress.finished), len(texts)):
        with closing(_Ingestion(folder, tokenizer, split, progress, number)) as ingestion:
            ingestion.run(texts[number], report, total)
    if split.kind == "tail" and not progress.tails_cut:
        _cut_tails(folder, progress, tokenizer, split.fraction)
    if not progress.sizes["validation.ids"]:
        documents = sum(source["documents"] for source in progress.finished)
        raise UserError(
            f"no document (of {documents}) fell into the validation split: raise data.validation_fraction, now "
            f"{split.fraction}, or set data.validation=tail, or provide more or smaller documents "
            "(data.document=paragraph, for example)"
        )
    for number, text in enumerate(texts):
        if not progress.sizes[f"train-{number}.ids"]:
            raise UserError(
                f"{text.name}: all documents fell into the validation split: lower data.validation_fraction"
            )
    return progress


class _Ingestion:
    """Ingestion of one source into its training stream and the validation stream."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, split: Split, progress: Progress, number: int) -> None:
        self.folder, self.tokenizer, self.split, self.progress = folder, tokenizer, split, progress
        self.train = Stream(folder, f"train-{number}", tokenizer.vocab_size)
        self.validation = Stream(folder, "validation", tokenizer.vocab_size)
        self.current = {s.name: s for s in (self.train, self.validation)}.get(progress.stream)
        self.compared = 0  # bytes of this source
        self.end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]

    def run(self, text: Text, report: Report, total: int | None) -> None:
        progress, uncommitted = self.progress, 0
        with closing(_read_ahead(_batches(text.pieces(), progress.pieces, progress.sha256))) as batches:
            for batch in batches:
                self._add(batch.texts)
                progress.pieces, progress.sha256 = batch.pieces, batch.sha256
                uncommitted += batch.size
                if uncommitted >= COMMIT:
                    self._commit()
                    uncommitted = 0
                report(sum(progress.text_bytes.values()), total, "encoding")
        if self.current is None:
            note = text.note()
            raise UserError(f"{text.name}: the corpus is empty{note and f' ({note})'}; add text")
        self.current.add(self.end)
        read = {"documents": progress.documents, "documents_sha256": progress.sha256}
        progress.finished.append(read | text.dropped())
        progress.pieces, progress.documents, progress.sha256, self.current = 0, 0, Progress().sha256, None
        self._commit()

    def close(self) -> None:
        for stream in (self.train, self.validation):
            stream.close()

    def _add(self, texts: list[tuple[str, bool]]) -> None:
        progress, encoded = self.progress, self.tokenizer.encode_batch([text for text, _ in texts])
        if not self.tokenizer.lossless and self.compared < COMPARED:
            self.compared += compare(progress.compared, self.tokenizer, [text for text, _ in texts], encoded)
        for (text, begins), ids in zip(texts, encoded, strict=True):
            if begins or self.current is None:
                if self.current is not None:
                    self.current.add(self.end)
                self.current = self.validation if self.split.takes(text) else self.train
                self.current.begin()
                progress.documents += 1
            self.current.add(ids)
            name = self.current.name
            progress.text_bytes[name] = progress.text_bytes.get(name, 0) + len(text.encode())
        self.train.write()
        self.validation.write()

    def _commit(self) -> None:
        self.progress.stream = self.current.name if self.current else ""
        for stream in (self.train, self.validation):
            self.progress.sizes |= stream.sync()
        _save(self.folder, self.progress)


def compare(sample: dict[str, int], tokenizer: Tokenizer, texts: list[str], encoded: list[list[int]]) -> int:
    """Add texts to the sample whose decoded tokens are compared with them.

    Args:
        sample: Number of `pieces` of text, their `bytes`, and how many are `different`.
        tokenizer: The tokenizer.
        texts: Texts.
        encoded: Their tokens.

    Returns:
        The bytes of the texts.
    """
    size = sum(len(text.encode()) for text in texts)
    different = sum(text != tokenizer.decode(ids) for text, ids in zip(texts, encoded, strict=True))
    for name, value in (("pieces", len(texts)), ("bytes", size), ("different", different)):
        sample[name] = sample.get(name, 0) + value
    return size


def encode(tokenizer: Tokenizer, texts: list[str], compared: dict[str, int]) -> list[list[int]]:
    """Return the tokens of texts, and compare the first texts (`COMPARED` bytes)."""
    encoded = tokenizer.encode_batch(texts)
    if not tokenizer.lossless and compared.get("bytes", 0) < COMPARED:
        compare(compared, tokenizer, texts, encoded)
    return encoded


def accepted(write: Callable[[], T], where: str, dropped: Dropped | None) -> T | None:
    """Return a record in the form of the store; None if it is refused and left out.

    Args:
        write: Returns the record in that form.
        where: Location, for error messages.
        dropped: Counts the records that are left out; None: raise.

    Raises:
        UserError: The form refuses the record.
    """
    try:
        return write()
    except UserError as error:
        refusal = readers.BadRow(f"{where}: {error}")
    if dropped is None:
        raise refusal
    dropped(refusal)
    return None


# ---- Reading ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Batch:
    #: (text, whether a document begins with it).
    texts: list[tuple[str, bool]]
    #: Bytes of text.
    size: int
    #: Pieces of the source up to the end of this batch.
    pieces: int
    #: Hash of these pieces.
    sha256: str


def _batches(pieces: Iterable[tuple[str, bool]], done: int, sha256: str) -> Iterator[_Batch]:
    """Yield the source in batches after the first `done` pieces, whose hash must be `sha256`."""
    digest, count = hashlib.sha256(), 0
    texts: list[tuple[str, bool]] = []
    size = 0
    for text, begins in pieces:
        encoded = text.encode()
        digest.update(b"\0" + encoded if begins else encoded)
        count += 1
        if count > done:
            texts.append((text, begins))
            size += len(encoded)
        elif count == done and digest.hexdigest() != sha256:
            raise StaleProgress
        if size >= BATCH:
            yield _Batch(texts, size, count, digest.hexdigest())
            texts, size = [], 0
    if count < done:
        raise StaleProgress
    if texts:
        yield _Batch(texts, size, count, digest.hexdigest())


def _read_ahead(batches: Iterator[_Batch]) -> Generator[_Batch, None, None]:
    """Yield the same batches; read the next batch while the current batch is encoded."""
    with ThreadPoolExecutor(1, "reader") as reader:
        ahead = reader.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)
            yield batch


# ---- Writing ----------------------------------------------------------------------------------------------------


class Stream:
    """A growing stream: token ids in `NAME.ids`, offsets of documents in `NAME.starts`."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self.name, self.vocab_size, self.dtype = name, vocab_size, dtype(vocab_size)
        self.files = {kind: (folder / f"{name}.{kind}").open("ab") for kind in ("ids", "starts")}
        self.length = self.files["ids"].tell() // self.dtype.itemsize
        self.ids: list[list[int]] = []
        self.starts: list[int] = []

    def begin(self) -> None:
        """Start a document."""
        self.starts.append(self.length)

    def add(self, ids: list[int]) -> None:
        """Append ids to the document."""
        self.ids.append(ids)
        self.length += len(ids)

    def write(self) -> None:
        """Write the buffered ids and starts to the files."""
        ids = np.fromiter(chain.from_iterable(self.ids), np.int64)
        if len(ids) and ids.max() >= self.vocab_size:
            raise UserError(f"token id {ids.max()} is outside the tokenizer's vocabulary of {self.vocab_size}")
        self.files["ids"].write(ids.astype(self.dtype).tobytes())
        self.files["starts"].write(np.asarray(self.starts, "<i8").tobytes())
        self.ids, self.starts = [], []

    def sync(self) -> dict[str, int]:
        """Flush everything to the disk and return the sizes of the files."""
        self.write()
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {f"{self.name}.{kind}": file.tell() for kind, file in self.files.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()


def _save(folder: Path, progress: Progress) -> None:
    write_text(folder / "progress.json", json.dumps(dataclasses.asdict(progress)))


def _restore(folder: Path) -> Progress:
    """Restore the committed progress and truncate the files to it.

    If a file is too short, there is no progress.
    """
    try:
        progress = Progress(**parse_json((folder / "progress.json").read_bytes(), "it"))
        complete = _is_valid(progress) and all(
            (folder / name).stat().st_size >= size for name, size in progress.sizes.items()
        )
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):  # a UserError is a ValueError
        progress, complete = Progress(), False
    progress = progress if complete else Progress()
    for path in [*folder.glob("*.ids"), *folder.glob("*.starts")]:
        if path.name in progress.sizes:
            os.truncate(path, progress.sizes[path.name])
        else:
            path.unlink()
    return progress


def _is_valid(progress: Progress) -> bool:
    """Whether the values that were read have the types of the fields."""
    counts = [progress.pieces, progress.documents, *(source["documents"] for source in progress.finished)]
    counts += [*progress.sizes.values(), *progress.text_bytes.values(), *progress.compared.values()]
    hashes = [progress.sha256, *(source["documents_sha256"] for source in progress.finished)]
    files = {*progress.sizes} >= {"validation.ids", *(f"train-{i}.ids" for i in range(len(progress.finished)))}
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(text, str) for text in [progress.stream, *hashes])
        and (type(progress.finished), type(progress.tails_cut)) == (list, bool)
        and (files or not progress.finished)
    )


def _cut_tails(folder: Path, progress: Progress, tokenizer: Tokenizer, fraction: float) -> None:
    """Move the last tokens of each training stream to the validation stream, as nanoGPT does.

    A stream of n tokens, without its last end_of_text, retains the first int(n (1 - fraction)). The training streams
    are truncated only after the validation stream is complete and recorded. An interruption therefore loses nothing.
    """
    sizes, text_bytes, length = {}, {"validation": 0}, 0
    kind = dtype(tokenizer.vocab_size)
    with (folder / "validation.ids").open("wb") as ids_file, (folder / "validation.starts").open("wb") as starts_file:
        for number in range(len(progress.finished)):
            name = f"train-{number}"
            ids = np.memmap(folder / f"{name}.ids", kind, "r")
            starts = np.memmap(folder / f"{name}.starts", "<i8", "r")
            cut = int((len(ids) - (tokenizer.end_of_text is not None)) * (1 - fraction))
            tail, first = ids[cut:], int(np.searchsorted(starts, cut))
            within = [] if first < len(starts) and starts[first] == cut else [cut]  # the cut splits a document
            for begin in range(0, len(tail), COPIED):
                ids_file.write(tail[begin : begin + COPIED].tobytes())
            starts_file.write((np.concatenate([within, starts[first:]]) - cut + length).astype("<i8").tobytes())
            length += len(tail)
            moved = tokenizer.nbytes(tail, before=ids[max(0, cut - BEFORE) : cut])
            text_bytes["validation"] += moved
            text_bytes[name] = progress.text_bytes[name] - moved
            sizes |= {f"{name}.ids": cut * kind.itemsize, f"{name}.starts": first * 8}
        for file in (ids_file, starts_file):
            file.flush()
            os.fsync(file.fileno())
            sizes[Path(file.name).name] = file.tell()
    progress.sizes, progress.text_bytes, progress.tails_cut = sizes, text_bytes, True
    _save(folder, progress)
    for name, size in sizes.items():
        os.truncate(folder / name, size)
