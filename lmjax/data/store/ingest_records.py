"""Ingestion of records: one stream per text column, and one for the labels."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmjax.config import RecordsConfig, UserError
from lmjax.data.sources import rows
from lmjax.data.sources.labels import Labels
from lmjax.data.sources.streams import Dropped
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.ingest import BATCH, Stream, encode
from lmjax.data.store.manifest import Report, dtype
from lmjax.data.tokenizer import Tokenizer

T = TypeVar("T")


def texts(config: RecordsConfig, *, dropped: Dropped | None = None) -> Iterator[str]:
    """Yield the tokenizer's training text: training records; for `characters`, all records.

    `dropped` counts the bad records that are left out.
    """
    every, records = config.tokenizer.kind == "characters", rows.records(config, dropped=dropped)
    return (text for side, record in records if every or side == "train" for text in record.texts)


def ingest_records(
    folder: Path, config: RecordsConfig, *, tokenizer: Tokenizer, report: Report
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write the streams of records into a folder.

    A record with a text that has no tokens is skipped and counted.

    Returns:
        Bytes of text of each stream, and the details for the manifest.

    Raises:
        UserError: A side of the split has no record, only the validation split has a label, or an id is outside the
            vocabulary.
    """
    names = [f"{side}-{column}" for side in SIDES for column in range(len(config.texts))]
    sizes, counts, digest = dict.fromkeys(names, 0), dict.fromkeys(SIDES, 0) | {"skipped": 0}, hashlib.sha256()
    compared: dict[str, int] = {}  # as in `encode`
    distinct, dropped = Labels(), Dropped()
    labels: dict[Side, array[int]] = {side: array("L") for side in SIDES}
    with ExitStack() as stack:
        streams = {name: stack.enter_context(closing(Stream(folder, name, tokenizer.vocab_size))) for name in names}
        for batch in batches(rows.records(config, dropped=dropped), lambda item: sum(map(len, item[1].texts))):
            every = [text for _, record in batch for text in record.texts]
            encoded = iter(encode(tokenizer, every, compared))
            for side, record in batch:
                digest.update("\0".join(("", *record.texts, str(record.label))).encode())
                ids = [next(encoded) for _ in record.texts]
                if not all(ids):
                    counts["skipped"] += 1
                    continue
                counts[side] += 1
                labels[side].append(distinct.number(record.label, record.where))
                for column, text in enumerate(record.texts):
                    streams[f"{side}-{column}"].begin()
                    streams[f"{side}-{column}"].add(ids[column])
                    sizes[f"{side}-{column}"] += len(text.encode())
            for stream in streams.values():
                stream.write()
            report(sum(sizes.values()), None, "encoding")
        for stream in streams.values():
            stream.sync()
    _check(counts, config, dropped)
    read = {"documents": sum(counts.values()), "documents_sha256": digest.hexdigest(), **dropped.entry()}
    details: dict[str, Any] = {"sources": [{"name": rows.name(config), **read}], "records": counts}
    if compared:
        details["compared"] = compared
    if config.label:
        details["labels"] = _write_labels(folder, labels, distinct.names(), dtype(tokenizer.vocab_size))
        sizes |= {f"{side}-label": 0 for side in SIDES}
    return sizes, details


def batches(items: Iterable[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of items with about as many characters as the tokenizer takes at a time."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += length(item)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(counts: dict[str, int], config: RecordsConfig, dropped: Dropped) -> None:
    name, skipped = rows.name(config), f" ({counts['skipped']} were skipped: a text is empty)" * (counts["skipped"] > 0)
    skipped += f" ({dropped.note()})" * (dropped.count > 0)
    if not counts["train"] + counts["validation"]:
        raise UserError(f"{name}: it has no record{skipped}; add records with text")
    for side, cure, files in (("train", "lower", "files"), ("validation", "raise", "validation_files")):
        if not counts[side]:
            change = f"{cure} data.validation_fraction, now {config.validation_fraction}, or provide more records"
            change = f"add records to data.{files}" if config.validation_files else change
            raise UserError(f"{name}: no record for {side}{skipped}: {change}")


def _write_labels(folder: Path, labels: dict[Side, array], names: list[str], kind: np.dtype) -> list[str]:
    """Write each record's label as an index into the sorted names, and return the names."""
    unseen = set(labels["validation"]) - set(labels["train"])
    if unseen:
        raise UserError(
            f"the label '{names[min(unseen)]}' occurs in validation records but in no training record; add records"
        )
    if not 1 < len(names) < np.iinfo(kind).max:
        raise UserError(
            f"data.label: the column has {len(names)} distinct values; name a column with 2 to "
            f"{np.iinfo(kind).max - 1} values"
        )
    rank = {name: i for i, name in enumerate(sorted(names))}
    final = np.asarray([rank[name] for name in names], kind)
    for side, provisional in labels.items():
        ids = final[np.asarray(provisional)]
        for suffix, content in (("ids", ids), ("starts", np.arange(len(ids), dtype="<i8"))):
            with (folder / f"{side}-label.{suffix}").open("wb") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
    return sorted(names)
