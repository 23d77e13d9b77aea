"""Batches of records of similar length: pure functions of a store and sample ids.

Shapes: B rows, S positions of a source, T positions of a target or of a labelled text.

A store of records has the streams `train-0` and `validation-0` (document i is the first text of record i), `train-1`
and `validation-1` where a record has two texts, and `train-label` and `validation-label` (one id a record, counting
the label names in alphabetical order) where it has a label. Texts are stored as they are: what marks their beginning
and end is added here. `end_of_text` begins a target, ends every text and fills what is left of a row.

Each class of length is a source of the order, so that a batch is of one class and little of it is padding. Classes
have the widths of their longest texts, and each class at least those of the class below: the widths of a row's class,
or of any class above it, hold the row.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.batches.buckets import Buckets, has_labels, lead_ids, text_streams
from lmjax.data.order.order import Order
from lmjax.data.sources.rows import Side
from lmjax.data.store.store import Store, Tokens
from lmjax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


# ---- Arrays -----------------------------------------------------------------------------------------------------


def pairs(store: Store, ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """The rows of these samples for sequence to sequence, in the order of `ids`.

    Returns `source_BS`, `inputs_BT`, `targets_BT` int32 and `source_mask_BS`, `weights_BT` float32. A source is cut to
    the context and still ends in end_of_text; a target that the context cuts does not end. The widths are those of the
    highest class among the rows, and of at least class `bucket`: processes that share a batch must agree on it.
    """
    found, records = plan.find(ids, order)
    return _pairs(store, "train", records, plan.widths[max(int(found.max()), bucket)])


def labelled(store: Store, ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """The rows of these samples for classification, in the order of `ids`; widths as in `pairs`.

    Returns `inputs_BT`, `kinds_BT` (0 first text, 1 second), `labels_B` int32 and `real_BT` (1 for a token) and
    `weights_B` float32. With a tokenizer of BERT's a row is [CLS] first [SEP] second [SEP] (Devlin et al. 2019, figure
    2), with others the texts, each with end_of_text. Of two texts that are too long together the longer gives way.
    """
    found, records = plan.find(ids, order)
    return _labelled(store, "train", records, plan.widths[max(int(found.max()), bucket)], context=plan.context)


def validation(store: Store, *, plan: Buckets, microbatch: int) -> Iterator[Batch]:
    """Yield the validation split as batches of `microbatch` rows, as in `pairs` or `labelled`.

    Records are in the order of `np.concatenate(plan.validation)`, class by class; rows after the last record have
    weight 0.
    """
    records = np.concatenate(plan.validation)
    classes = np.repeat(np.arange(len(plan.widths)), list(map(len, plan.validation)))
    for start in range(0, len(records), microbatch):
        here = np.minimum(start + np.arange(microbatch), len(records) - 1)
        width = plan.widths[classes[here[-1]]]
        if has_labels(store):
            batch = _labelled(store, "validation", records[here], width, context=plan.context)
        else:
            batch = _pairs(store, "validation", records[here], width)
        weights = batch["weights_B" if has_labels(store) else "weights_BT"]
        weights[start + np.arange(microbatch) >= len(records)] = 0
        yield batch


def row(tokenizer: Tokenizer, texts: Sequence[str], *, context: int) -> Batch:
    """Build the row of a record outside any store as in `labelled`, with label 0."""
    one = np.zeros(1, np.int64)
    ids = [np.asarray(encoded) for encoded in tokenizer.encode_batch(texts)]
    streams = {f"train-{column}": Tokens(array, one, 0, "") for column, array in enumerate(ids)}
    store = Store(Path(), tokenizer, streams | {"train-label": Tokens(one, one, 0, "")}, "", {})
    return _labelled(store, "train", one, (context,), context=context)


def _pairs(store: Store, side: Side, records: np.ndarray, widths: tuple[int, ...]) -> Batch:
    end = _end(store.tokenizer)
    (source, source_size_B), (target, target_size_B) = (_spans(tokens, records) for tokens in text_streams(store, side))
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


def _labelled(store: Store, side: Side, records: np.ndarray, widths: tuple[int, ...], *, context: int) -> Batch:
    tokenizer, streams = store.tokenizer, text_streams(store, side)
    end, lead = _end(tokenizer), lead_ids(tokenizer)
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


def _spans(tokens: Tokens, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first token, how many) of these documents."""
    start_B = tokens.starts[records]
    last = records + 1 >= len(tokens.starts)
    stop_B = np.where(last, len(tokens.ids), tokens.starts[np.where(last, records, records + 1)])
    return start_B, stop_B - start_B


def _take(tokens: Tokens, place: np.ndarray, real: np.ndarray, fill: int) -> np.ndarray:
    """The tokens at these places where they are real, else `fill`."""
    return np.where(real, tokens.ids[np.where(real, place, 0)], fill).astype(np.int32)


# ---- Of a store -------------------------------------------------------------------------------------------------


def text_of(store: Store, side: Side, record: int) -> tuple[str, ...]:
    """Return the decoded texts of a record."""
    spans = [(tokens, *_spans(tokens, np.asarray([record]))) for tokens in text_streams(store, side)]
    return tuple(store.tokenizer.decode(tokens.ids[int(a[0]) : int(a[0] + n[0])]) for tokens, a, n in spans)


def labels(store: Store) -> tuple[str, ...]:
    """The names of the labels, which are numbered in this order; none for pairs."""
    return tuple(store.manifest.get("labels", ()))


def describe(store: Store, *, plan: Buckets) -> list[str]:
    """Describe the data, a line each: records, labels, length classes, truncated records."""
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


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise UserError("the tokenizer has no token that ends a text: take another one (data.tokenizer)")
    return tokenizer.end_of_text
