"""Records as token ids, in classes of length, and sample ids to the arrays of an objective: pure functions.

Shapes: B rows, S positions of a source, T positions of a target or of a labelled text.

A store of records has the streams `train-0` and `validation-0` (document i is the first text of record i), `train-1`
and `validation-1` where a record has two texts, and `train-label` and `validation-label` (one id a record, counting
the label names in alphabetical order) where it has a label. Texts are stored as they are: what marks their beginning
and end is added here. `end_of_text` begins a target, ends every text and fills what is left of a row.

Each class of length is a source of the order, so that a batch is of one class and little of it is padding. Classes
have the widths of their longest texts, and each class at least those of the class below: the widths of a row's class,
or of any class above it, hold the row.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config import RecordsConfig, UserError
from lmjax.data import rows
from lmjax.data.ingest import BATCH, Report, Stream, dtype
from lmjax.data.order import Order
from lmjax.data.rows import SIDES, Record, Side
from lmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.data.store import Store, Tokens

Batch = dict[str, np.ndarray]

MULTIPLE = 8  # of which widths are, for the sake of the devices' tiles
CELLS = 8  # a class: places where the sorted records can be cut


# ---- Making the streams -----------------------------------------------------------------------------------------


def texts(config: RecordsConfig) -> Iterator[str]:
    """The text that a tokenizer is trained on: of the training records; for a vocabulary of characters, of all."""
    every = config.tokenizer.kind == "characters"
    return (text for side, record in rows.records(config) if every or side == "train" for text in record.texts)


def ingest(
    folder: Path, config: RecordsConfig, *, tokenizer: Tokenizer, report: Report
) -> tuple[dict[str, int], dict[str, Any]]:
    """Writes the streams into the folder, in batches: (bytes of text of each, what the manifest says of them).

    A record with a text that has no tokens is skipped, and counted. UserError: no record on one side of the split, a
    label that only the validation split has, an id outside the vocabulary.
    """
    names = [f"{side}-{column}" for side in SIDES for column in range(len(config.texts))]
    sizes, counts, digest = dict.fromkeys(names, 0), dict.fromkeys(SIDES, 0) | {"skipped": 0}, hashlib.sha256()
    numbers: dict[str, int] = {}  # of the labels, as they come
    labels: dict[Side, array[int]] = {side: array("L") for side in SIDES}
    with ExitStack() as stack:
        streams = {name: stack.enter_context(closing(Stream(folder, name, tokenizer.vocab_size))) for name in names}
        for batch in _batches(rows.records(config)):
            encoded = iter(tokenizer.encode_batch([text for _, record in batch for text in record.texts]))
            for side, record in batch:
                digest.update("\0".join(("", *record.texts, record.label)).encode())
                ids = [next(encoded) for _ in record.texts]
                if not all(ids):
                    counts["skipped"] += 1
                    continue
                counts[side] += 1
                labels[side].append(numbers.setdefault(record.label, len(numbers)))
                for column, text in enumerate(record.texts):
                    streams[f"{side}-{column}"].begin()
                    streams[f"{side}-{column}"].add(ids[column])
                    sizes[f"{side}-{column}"] += len(text.encode())
            for stream in streams.values():
                stream.write()
            report(sum(sizes.values()), None, "encoding")
        for stream in streams.values():
            stream.sync()
    _check(counts, config)
    read = {"documents": sum(counts.values()), "documents_sha256": digest.hexdigest()}
    details: dict[str, Any] = {"sources": [{"name": rows.name(config), **read}], "records": counts}
    if config.label:
        details["labels"] = _write_labels(folder, labels, list(numbers), dtype(tokenizer.vocab_size))
        sizes |= {f"{side}-label": 0 for side in SIDES}
    return sizes, details


def _batches(records: Iterable[tuple[Side, Record]]) -> Iterator[list[tuple[Side, Record]]]:
    batch: list[tuple[Side, Record]] = []
    size = 0
    for item in records:
        batch.append(item)
        size += sum(map(len, item[1].texts))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(counts: dict[str, int], config: RecordsConfig) -> None:
    name, skipped = rows.name(config), f" ({counts['skipped']} were skipped: a text is empty)" * (counts["skipped"] > 0)
    if not counts["train"] + counts["validation"]:
        raise UserError(f"{name}: no record in it{skipped}")
    for side, cure, files in (("train", "lower", "files"), ("validation", "raise", "validation_files")):
        if not counts[side]:
            change = f"{cure} data.validation_fraction, now {config.validation_fraction}, or give more records"
            change = f"give more in data.{files}" if config.validation_files else change
            raise UserError(f"{name}: no record for {side}{skipped}: {change}")


def _write_labels(folder: Path, labels: dict[Side, array], names: list[str], kind: np.dtype) -> list[str]:
    """Writes each record's label as a number in the sorted names, which are returned."""
    unseen = set(labels["validation"]) - set(labels["train"])
    if unseen:
        raise UserError(f"the label '{names[min(unseen)]}' of validation records is that of no training record")
    if not 1 < len(names) < np.iinfo(kind).max:
        raise UserError(f"data.label must name a column with several values, but not too many: it has {len(names)}")
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


# ---- Classes of length ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Buckets:
    """Classes of length, from the shortest to the longest.

    widths: (S, T) of each class for pairs, (T,) for labelled texts; at most the context, rising in every place.
    members: the training records of each class. validation: those of the validation split; where some are longer than
        all training records, there is one more class than in `members`.
    padding: the share of all places of an epoch that holds no token. cut: how many training records the context cuts.
    """

    widths: tuple[tuple[int, ...], ...]
    members: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    context: int
    padding: float
    cut: int

    def find(self, ids: Any, order: Order) -> tuple[np.ndarray, np.ndarray]:
        """(class, number of the training record) of each sample id."""
        bucket, _, index = order.split_id(ids)
        record = np.zeros_like(bucket)
        for i, members in enumerate(self.members):
            record[bucket == i] = members[index[bucket == i]]
        return bucket, record


def buckets(store: "Store", *, classes: int, context: int) -> Buckets:
    """Sorts the records by their longest text and cuts them into at most `classes` classes with the least padding.

    A class holds at least one of 8 * `classes` equal parts of the records, so that none is too rare to fill a batch.
    UserError: no class, or a context without room for a token.
    """
    if classes < 1:
        raise UserError(f"data.buckets={classes}: there is at least one class of length")
    if context < 2 + 2 * len(_texts(store, "train")):
        raise UserError(f"model.context={context} has no room for a text and its ends: raise it")
    whole, held = _lengths(store, "train"), _lengths(store, "validation")
    lengths, held = np.minimum(whole, context), np.minimum(held, context)
    cells = np.array_split(np.argsort(lengths.max(1), kind="stable"), min(CELLS * classes, len(lengths)))
    longest = np.maximum.accumulate([lengths[cell].max(0) for cell in cells])
    width = np.minimum(-(-longest // MULTIPLE) * MULTIPLE, context)
    stretches = _cut(np.asarray([len(cell) for cell in cells]), width.sum(1), classes)
    members = [np.sort(np.concatenate(cells[start:stop])) for start, stop in stretches]
    widths = [tuple(width[stop - 1].tolist()) for _, stop in stretches]
    places = sum(len(part) * sum(width) for part, width in zip(members, widths, strict=True))
    if (held > widths[-1]).any():
        above = np.minimum(-(-held.max(0) // MULTIPLE) * MULTIPLE, context)
        widths.append(tuple(np.maximum(above, widths[-1]).tolist()))
    fits = (held[:, None] <= np.asarray(widths)).all(2).argmax(1)
    return Buckets(
        widths=tuple(widths),
        members=tuple(members),
        validation=tuple(np.flatnonzero(fits == i) for i in range(len(widths))),
        context=context,
        padding=float(1 - lengths.sum() / places),
        cut=int((whole > context).any(1).sum()),
    )


def order(plan: Buckets, config: RecordsConfig, *, seed: int, group: int) -> Order:
    """The order of all records: blocks of `group` samples of one class, each class as often as it has records.

    Every span of as many samples as there are records has each of them about once; `Buckets.find` says which record a
    sample is.
    """
    sizes = tuple(map(len, plan.members))
    return Order(sizes, seed, weights=((0, sizes),), exclude=config.exclude, shuffle=config.shuffle, group=group)


def _cut(counts: np.ndarray, prices: np.ndarray, classes: int) -> list[tuple[int, int]]:
    """Cuts cells in a row into at most `classes` stretches (start, stop) that cost the least together.

    All records of a stretch pay the price of its last cell. Dynamic programming over the number of stretches.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.where(np.tri(len(counts), dtype=bool).T, (before[1:] - before[:-1, None]) * prices, np.inf)
    total, begins = np.full(len(counts), np.inf), []  # of the cells up to each one; where its stretch begins
    for _ in range(classes):
        ways = np.concatenate([[0], total[:-1]])[:, None] + cost
        total = ways.min(0)
        begins.append(ways.argmin(0))
    stretches, stop = [], len(counts)
    while stop:
        start = int(begins.pop()[stop - 1])
        stretches.append((start, stop))
        stop = start
    return stretches[::-1]


def _lengths(store: "Store", side: Side) -> np.ndarray:
    """The places that each record takes, with all that is added to it: (records, 2) for pairs, else (records, 1)."""
    sizes = np.stack([np.diff(tokens.starts, append=len(tokens.ids)) for tokens in _texts(store, side)], axis=1) + 1
    return sizes.sum(1, keepdims=True) + len(_lead(store.tokenizer)) if _has_labels(store) else sizes


# ---- Arrays -----------------------------------------------------------------------------------------------------


def pairs(store: "Store", ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """The rows of these samples for sequence to sequence, in the order of `ids`.

    Returns `source_BS`, `inputs_BT`, `targets_BT` int32 and `source_mask_BS`, `weights_BT` float32. A source is cut to
    the context and still ends in end_of_text; a target that the context cuts does not end. The widths are those of the
    highest class among the rows, and of at least class `bucket`: processes that share a batch must agree on it.
    """
    found, records = plan.find(ids, order)
    return _pairs(store, "train", records, plan.widths[max(int(found.max()), bucket)])


def labelled(store: "Store", ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """The rows of these samples for classification, in the order of `ids`; widths as in `pairs`.

    Returns `inputs_BT`, `kinds_BT` (0 first text, 1 second), `labels_B` int32 and `real_BT` (1 for a token) and
    `weights_B` float32. With a tokenizer of BERT's a row is [CLS] first [SEP] second [SEP] (Devlin et al. 2019, figure
    2), with others the texts, each with end_of_text. Of two texts that are too long together the longer gives way.
    """
    found, records = plan.find(ids, order)
    return _labelled(store, "train", records, plan.widths[max(int(found.max()), bucket)], context=plan.context)


def validation(store: "Store", *, plan: Buckets, microbatch: int) -> Iterator[Batch]:
    """The whole validation split as batches of `microbatch` rows like `pairs`' or `labelled`'s.

    Records come class by class, in the order of `np.concatenate(plan.validation)`; behind the last one rows have
    weight 0.
    """
    records = np.concatenate(plan.validation)
    classes = np.repeat(np.arange(len(plan.widths)), list(map(len, plan.validation)))
    for start in range(0, len(records), microbatch):
        here = np.minimum(start + np.arange(microbatch), len(records) - 1)
        width = plan.widths[classes[here[-1]]]
        if _has_labels(store):
            batch = _labelled(store, "validation", records[here], width, context=plan.context)
        else:
            batch = _pairs(store, "validation", records[here], width)
        weights = batch["weights_B" if _has_labels(store) else "weights_BT"]
        weights[start + np.arange(microbatch) >= len(records)] = 0
        yield batch


def row(tokenizer: Tokenizer, texts: Sequence[str], *, context: int) -> Batch:
    """One record that no store holds, as `labelled` gives it, its label 0."""
    from lmjax.data.store import Store, Tokens  # which itself reads records through this file

    one = np.zeros(1, np.int64)
    ids = [np.asarray(encoded) for encoded in tokenizer.encode_batch(texts)]
    streams = {f"train-{column}": Tokens(array, one, 0, "") for column, array in enumerate(ids)}
    store = Store(Path(), tokenizer, streams | {"train-label": Tokens(one, one, 0, "")}, "", {})
    return _labelled(store, "train", one, (context,), context=context)


def _pairs(store: "Store", side: Side, records: np.ndarray, widths: tuple[int, ...]) -> Batch:
    end = _end(store.tokenizer)
    (source, source_size_B), (target, target_size_B) = (_spans(tokens, records) for tokens in _texts(store, side))
    column_S, column_T = (np.arange(width) for width in widths)
    kept_B = np.minimum(source_size_B, widths[0] - 1)[:, None]  # widths[0] holds it, unless the context has cut it
    source_BS = _take(store.streams[f"{side}-0"], source[:, None] + column_S, column_S < kept_B, end)
    targets_BT = _take(store.streams[f"{side}-1"], target[:, None] + column_T, column_T < target_size_B[:, None], end)
    return {
        "source_BS": source_BS,
        "source_mask_BS": (column_S <= kept_B).astype(np.float32),
        "inputs_BT": np.concatenate([np.full_like(targets_BT[:, :1], end), targets_BT[:, :-1]], axis=1),
        "targets_BT": targets_BT,
        "weights_BT": (column_T <= target_size_B[:, None]).astype(np.float32),
    }


def _labelled(store: "Store", side: Side, records: np.ndarray, widths: tuple[int, ...], *, context: int) -> Batch:
    tokenizer, streams = store.tokenizer, _texts(store, side)
    end, lead = _end(tokenizer), _lead(tokenizer)
    column_T, two = np.arange(*widths), len(streams) == 2
    fill = end if tokenizer.pad is None else tokenizer.pad
    inputs_BT = np.full((len(records), *widths), fill, np.int32)
    inputs_BT[:, : len(lead)] = lead
    spans = [_spans(tokens, records) for tokens in streams]
    room = context - len(lead) - len(streams)
    sizes = [size_B for _, size_B in spans]
    if two:
        second_B = np.minimum(sizes[1], np.maximum(room - sizes[0], room // 2))
        sizes = [np.minimum(sizes[0], room - second_B), second_B]
    else:
        sizes = [np.minimum(sizes[0], room)]
    begin_B, kinds_BT = np.full((len(records), 1), len(lead)), np.zeros_like(inputs_BT)
    for kind, (tokens, (start_B, _), size_B) in enumerate(zip(streams, spans, sizes, strict=True)):
        place_BT, stop_B = column_T - begin_B, begin_B + size_B[:, None]
        here_BT = (place_BT >= 0) & (column_T < stop_B)
        inputs_BT = np.where(here_BT, _take(tokens, start_B[:, None] + place_BT, here_BT, end), inputs_BT)
        inputs_BT = np.where(column_T == stop_B, end, inputs_BT)
        kinds_BT[(place_BT >= 0) & (column_T <= stop_B)] = kind
        begin_B = stop_B + 1
    return {
        "inputs_BT": inputs_BT.astype(np.int32),
        "kinds_BT": kinds_BT,
        "real_BT": (column_T < begin_B).astype(np.float32),
        "labels_B": store.streams[f"{side}-label"].ids[records].astype(np.int32),
        "weights_B": np.ones(len(records), np.float32),
    }


def _spans(tokens: "Tokens", records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first token, how many) of these documents."""
    start_B = tokens.starts[records]
    last = records + 1 >= len(tokens.starts)
    stop_B = np.where(last, len(tokens.ids), tokens.starts[np.where(last, records, records + 1)])
    return start_B, stop_B - start_B


def _take(tokens: "Tokens", place: np.ndarray, real: np.ndarray, fill: int) -> np.ndarray:
    """The tokens at these places where they are real, else `fill`."""
    return np.where(real, tokens.ids[np.where(real, place, 0)], fill).astype(np.int32)


# ---- Of a store -------------------------------------------------------------------------------------------------


def text_of(store: "Store", side: Side, record: int) -> tuple[str, ...]:
    """The texts of a record, as the tokenizer gives them back."""
    spans = [(tokens, *_spans(tokens, np.asarray([record]))) for tokens in _texts(store, side)]
    return tuple(store.tokenizer.decode(tokens.ids[int(a[0]) : int(a[0] + n[0])]) for tokens, a, n in spans)


def labels(store: "Store") -> tuple[str, ...]:
    """The names of the labels, which are numbered in this order; none for pairs."""
    return tuple(store.manifest.get("labels", ()))


def describe(store: "Store", *, plan: Buckets) -> list[str]:
    """What there is to learn from, a line each: records, labels, classes of length, what the context cuts."""
    counts, names = store.manifest["records"], labels(store)
    lines = [f"records: {counts['train']:,} for training, {counts['validation']:,} for validation"]
    if counts["skipped"]:
        lines.append(f"skipped: {counts['skipped']:,} records with an empty text")
    if names:
        lines.append(f"labels: {len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}")
    classes = (
        f"{len(part):,} of {' + '.join(map(str, w))}" for part, w in zip(plan.members, plan.widths, strict=False)
    )
    lines.append(f"classes of length: {'; '.join(classes)} tokens; {plan.padding:.1%} of all places are padding")
    if plan.cut:
        lines.append(f"cut: {plan.cut:,} training records are longer than the context of {plan.context} tokens")
    return lines


def _texts(store: "Store", side: Side) -> list["Tokens"]:
    return [store.streams[name] for name in (f"{side}-0", f"{side}-1") if name in store.streams]


def _has_labels(store: "Store") -> bool:
    return "train-label" in store.streams


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise UserError("the tokenizer has no token that ends a text: take another one (data.tokenizer)")
    return tokenizer.end_of_text


def _lead(tokenizer: Tokenizer) -> list[int]:
    """What stands in front of a labelled text."""
    return [] if tokenizer.cls is None else [tokenizer.cls]
