"""Ingestion of preferences: streams of prompts, of both answers and of margins.

The ids of a prompt are stored once, so that both answers follow the same ids. A prompt ends with the tokens that begin
an answer, an answer with the token that ends it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import PreferenceConfig, UserError
from lmjax.data.chat_form import ChatForm
from lmjax.data.chat_tokens import ChatTokens, chat_form
from lmjax.data.sources import preferences
from lmjax.data.sources.preferences import REASONS, Pair, Reason
from lmjax.data.sources.streams import Dropped
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.ingest import Stream, accepted, encode
from lmjax.data.store.ingest_records import batches
from lmjax.data.store.manifest import Report
from lmjax.data.tokenizer import Tokenizer

PARTS = ("prompt", "chosen", "rejected")  # streams of ids of each side
_HALVES = 1 << 16  # values of a half of a margin's bits

_NAMES = {"empty": "with an empty answer", "tie": "with equal answers", "duplicate": "that occurred before"}


def texts(config: PreferenceConfig, *, dropped: Dropped | None = None) -> Iterator[str]:
    """Yield the tokenizer's training text: training pairs, or all (`characters`).

    `dropped` counts the bad rows that are left out.
    """
    every = config.tokenizer.kind == "characters"
    for side, pair in preferences.pairs(config, dropped=dropped):
        if every or side == "train":
            yield from _texts(pair)


def ingest_preferences(
    folder: Path, config: PreferenceConfig, *, tokenizer: Tokenizer, report: Report
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write the streams of pairs into a folder.

    Returns:
        Bytes of text of each stream, and the details for the manifest.

    Raises:
        UserError: A side of the split has no pair, or an id is outside the vocabulary.
    """
    form, digest = chat_form(tokenizer), hashlib.sha256()
    skip = config.on_bad_record == "skip"
    counts: dict[Side, int] = dict.fromkeys(SIDES, 0)
    sizes = {f"{side}-{part}": 0 for side in SIDES for part in (*PARTS, "margin")}
    compared: dict[str, int] = {}  # as in `encode`
    dropped, left_out = Dropped(), Counter[Reason]()
    found = preferences.pairs(config, dropped=dropped, left_out=left_out)
    with ExitStack() as stack:
        streams = {
            name: stack.enter_context(closing(Stream(folder, name, _values(name, tokenizer.vocab_size))))
            for name in sizes
        }
        for batch in batches(found, lambda item: sum(map(len, _texts(item[1])))):
            every = [text for _, pair in batch for text in _texts(pair)]
            ids_of_texts = iter(encode(tokenizer, every, compared))
            for side, pair in batch:
                ids = [next(ids_of_texts) for _ in _texts(pair)]
                parts = _rendered(form, pair, ids, dropped if skip else None)
                if parts is None:
                    continue
                digest.update(preferences.content(pair))
                counts[side] += 1
                _write(streams, side, parts, margin=pair.margin)
                for part, text in zip(
                    PARTS, ("".join(turn.text for turn in pair.prompt), *_texts(pair)[-2:]), strict=True
                ):
                    sizes[f"{side}-{part}"] += len(text.encode())
            for stream in streams.values():
                stream.write()
            report(sum(sizes.values()), None, "encoding")
        for stream in streams.values():
            stream.sync()
    _check(counts, left_out, dropped, config)
    reasons = {reason: left_out[reason] for reason in REASONS}
    records = {**counts} | {"skipped": sum(reasons.values())} | reasons
    read = {"documents": sum(counts.values()), "documents_sha256": digest.hexdigest(), **dropped.entry()}
    details: dict[str, Any] = {"sources": [{"name": preferences.name(config), **read}], "records": records}
    return sizes, details | ({"compared": compared} if compared else {})


def _texts(pair: Pair) -> list[str]:
    return [*(turn.text for turn in pair.prompt), pair.chosen, pair.rejected]


def _rendered(form: ChatForm, pair: Pair, ids: list[list[int]], dropped: Dropped | None) -> list[list[int]] | None:
    """Return the ids of prompt and answers; None if their form refuses them.

    Args:
        form: The form of conversations.
        pair: The pair.
        ids: Ids of its texts.
        dropped: Counts the pairs that are left out; None: raise.

    Raises:
        UserError: The form refuses the pair.
    """
    if not isinstance(form, ChatTokens):
        return accepted(lambda: form.answered(pair.prompt, (pair.chosen, pair.rejected)), pair.where, dropped)
    prompt = form.render(pair.prompt, ids[:-2]).ids + form.before("assistant")  # texts are encoded in batches
    return [prompt, *([*answer, form.end] for answer in ids[-2:])]


def _write(streams: dict[str, Stream], side: Side, parts: list[list[int]], *, margin: float) -> None:
    for name, ids in zip((*PARTS, "margin"), (*parts, margin_ids(margin)), strict=True):
        streams[f"{side}-{name}"].begin()
        streams[f"{side}-{name}"].add(ids)


def margin_ids(margin: float) -> list[int]:
    """Return the bits of a margin (float32) as two values of 16 bits, the lower one first."""
    return np.asarray([margin], "<f4").view("<u2").tolist()


def margins_of(ids: np.ndarray) -> np.ndarray:
    """Return the margins (float32) of values (pairs, 2), the inverse of `margin_ids`."""
    return np.ascontiguousarray(ids, "<u2").view("<f4")[..., 0].astype(np.float32)


def _values(name: str, vocab_size: int) -> int:
    """Return the number of values of a stream; all streams of a store have the same type."""
    return max(vocab_size, _HALVES) if name.endswith("-margin") else vocab_size


def _check(counts: dict[Side, int], left_out: Counter[Reason], dropped: Dropped, config: PreferenceConfig) -> None:
    name, skipped = preferences.name(config), ""
    if left_out:
        skipped = f" (left out: {', '.join(f'{left_out[reason]} {_NAMES[reason]}' for reason in left_out)})"
    skipped += f" ({dropped.note()})" * (dropped.count > 0)
    if not sum(counts.values()):
        raise UserError(f"{name}: it has no pair{skipped}; add pairs whose answers differ")
    for side, cure, files in zip(SIDES, ("lower", "raise"), ("files", "validation_files"), strict=True):
        if not counts[side]:
            change = f"{cure} data.validation_fraction, now {config.validation_fraction}, or provide more prompts"
            change = f"add pairs to data.{files}" if config.validation_files else change
            raise UserError(f"{name}: no pair for {side}{skipped}: {change}")
