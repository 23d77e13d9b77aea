"""Batches of records of similar length: pure functions of a store and sample ids.

Shapes: B rows, S positions of a source, T positions of a target or of a labelled text.

A store of records has the streams `train-0` and `validation-0`, where document i is the first text of record i. If
records have two texts, it also has `train-1` and `validation-1`. If records have labels, it has `train-label` and
`validation-label`, one id per record, which numbers the label names in alphabetical order. The stored texts have no
special tokens; these functions add them. `end_of_text` begins a target, ends every text and pads a row.

Each class of length is a source of the order. A batch therefore has one class and little padding. A class has the
widths of its longest texts, and at least those of the class below. A row thus fits into the widths of its class and of
any class above it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import UserError
from lmjax.data.batches.buckets import Buckets, has_labels, lead_ids, text_streams
from lmjax.data.order.order import Order
from lmjax.data.sources.tables import Side
from lmjax.data.store.facts import notes
from lmjax.data.store.store import Store, Tokens
from lmjax.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


# ---- Arrays -----------------------------------------------------------------------------------------------------


def pairs(store: Store, ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """Build the rows of these samples for sequence to sequence, in the order of `ids`.

    A source is truncated to the context and still ends in end_of_text; a truncated target does not. The widths are
    those of the highest class among the rows, and of at least class `bucket`. Processes that share a batch must agree
    on `bucket`.

    Returns:
        `source_BS`, `inputs_BT`, `targets_BT` int32 and `source_mask_BS`, `weights_BT` float32.
    """
    classes, records = plan.find(ids, order)
    return _pairs(store, "train", records, plan.widths[max(int(classes.max()), bucket)])


def labelled(store: Store, ids: Any, *, order: Order, plan: Buckets, bucket: int = 0) -> Batch:
    """Build the rows of these samples for classification, in the order of `ids`.

    The widths are those of `pairs`. With BERT's tokenizer a row is [CLS] first [SEP] second [SEP] (Devlin et al. 2019,
    figure 2). With other tokenizers it is the texts, each followed by end_of_text. If two texts are too long together,
    the longer text is truncated.

    Returns:
        `inputs_BT`, `kinds_BT` (0: first text, 1: second) and `labels_B` int32; `real_BT` (1 for a token) and
        `weights_B` float32.
    """
    classes, records = plan.find(ids, order)
    return _labelled(store, "train", records, plan.widths[max(int(classes.max()), bucket)], context=plan.context)


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
    """Build the row of a record outside any store as in `labelled`, with label 0.

    Raises:
        UserError: There is no text, or there are more than two.
    """
    if len(texts) not in (1, 2):
        raise UserError(f"a record to classify has {len(texts)} texts; give one text, or two for a pair")
    zero = np.zeros(1, np.int64)
    ids = [np.asarray(encoded) for encoded in tokenizer.encode_batch(texts)]
    streams = {f"train-{column}": Tokens(array, zero, 0, "") for column, array in enumerate(ids)}
    store = Store(Path(), tokenizer, streams | {"train-label": Tokens(zero, zero, 0, "")}, "", {})
    return _labelled(store, "train", zero, (context,), context=context)


def _pairs(store: Store, side: Side, records: np.ndarray, widths: tuple[int, ...]) -> Batch:
    end = _end(store.tokenizer)
    (source, source_size_B), (target, target_size_B) = (spans(tokens, records) for tokens in text_streams(store, side))
    column_S, column_T = (np.arange(width) for width in widths)
    kept_B = np.minimum(source_size_B, widths[0] - 1)[:, None]  # widths[0] holds it, unless the context truncates it
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
    tokenizer, streams, labels_of = store.tokenizer, text_streams(store, side), store.streams[f"{side}-label"]
    end, lead = _end(tokenizer), lead_ids(tokenizer)
    column_T, two = np.arange(*widths), len(streams) == 2
    fill = end if tokenizer.pad is None else tokenizer.pad
    inputs_BT = np.full((len(records), *widths), fill, np.int32)
    inputs_BT[:, : len(lead)] = lead
    places = [spans(tokens, records) for tokens in streams]
    room = context - len(lead) - len(streams)
    sizes = [size_B for _, size_B in places]
    if two:
        second_B = np.minimum(sizes[1], np.maximum(room - sizes[0], room // 2))
        sizes = [np.minimum(sizes[0], room - second_B), second_B]
    else:
        sizes = [np.minimum(sizes[0], room)]
    begin_B, kinds_BT = np.full((len(records), 1), len(lead)), np.zeros_like(inputs_BT)
    for kind, (tokens, (start_B, _), size_B) in enumerate(zip(streams, places, sizes, strict=True)):
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
        "labels_B": labels_of.checked(labels_of.ids[records]).astype(np.int32),
        "weights_B": np.ones(len(records), np.float32),
    }


def spans(tokens: Tokens, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (first token, number of tokens) of each document."""
    start_B = tokens.starts[records]
    last = records + 1 >= len(tokens.starts)
    stop_B = np.where(last, len(tokens.ids), tokens.starts[np.where(last, records, records + 1)])
    return start_B, stop_B - start_B


def _take(tokens: Tokens, place: np.ndarray, real: np.ndarray, fill: int) -> np.ndarray:
    """Return the tokens at these places where `real`, else `fill`."""
    return np.where(real, tokens.checked(tokens.ids[np.where(real, place, 0)]), fill).astype(np.int32)


# ---- Description of a store -------------------------------------------------------------------------------------


def text_of(store: Store, side: Side, record: int) -> tuple[str, ...]:
    """Return the decoded texts of a record."""
    places = [(tokens, *spans(tokens, np.asarray([record]))) for tokens in text_streams(store, side)]
    return tuple(store.tokenizer.decode(tokens.ids[int(a[0]) : int(a[0] + n[0])]) for tokens, a, n in places)


def labels(store: Store) -> tuple[str, ...]:
    """Return the names of the labels in the order of their ids; empty for pairs."""
    return tuple(store.manifest.get("labels", ()))


def describe(store: Store, *, plan: Buckets) -> list[str]:
    """Describe the data, a line each: records, labels, length classes, truncated records."""
    counts, names = store.manifest["records"], labels(store)
    lines = [f"records: {counts['train']:,} for training, {counts['validation']:,} for validation"]
    lines += notes(store)
    if counts["skipped"]:
        lines.append(f"skipped: {counts['skipped']:,} records with an empty text")
    if names:
        lines.append(f"labels: {len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}")
    classes = (
        f"{len(part):,} of {' + '.join(map(str, w))}" for part, w in zip(plan.members, plan.widths, strict=False)
    )
    lines.append(f"classes of length: {'; '.join(classes)} tokens; {plan.padding:.1%} of all places are padding")
    for side, cut in (("training", plan.cut), ("validation", plan.validation_cut)):
        if cut:
            lines.append(f"cut: {cut:,} {side} records are longer than the context of {plan.context} tokens")
    return lines


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise UserError("the tokenizer has no token that ends a text: choose another tokenizer (data.tokenizer)")
    return tokenizer.end_of_text
