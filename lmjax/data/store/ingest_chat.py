"""Ingestion of conversations: a stream of ids, and one that marks the targets."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lmjax.config import ChatConfig, UserError
from lmjax.data.chat_form import ChatForm, Rendered
from lmjax.data.chat_tokens import ChatTokens, chat_form
from lmjax.data.sources import chat
from lmjax.data.sources.chat import Conversation, Reason
from lmjax.data.sources.streams import Dropped
from lmjax.data.sources.tables import SIDES, Side
from lmjax.data.store.ingest import Stream, accepted, encode
from lmjax.data.store.ingest_records import batches
from lmjax.data.store.manifest import Report
from lmjax.data.tokenizer import Tokenizer


def texts(config: ChatConfig, *, dropped: Dropped | None = None) -> Iterator[str]:
    """Yield the tokenizer's training text: training conversations, or all (`characters`).

    `dropped` counts the bad rows that are left out.
    """
    every = config.tokenizer.kind == "characters"
    for side, conversation in chat.conversations(config, dropped=dropped):
        if every or side == "train":
            yield from (turn.text for turn in conversation.turns)


def ingest_chat(
    folder: Path, config: ChatConfig, *, tokenizer: Tokenizer, report: Report
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write the streams of conversations into a folder.

    Returns:
        Bytes of text of each stream, and the details for the manifest.

    Raises:
        UserError: A side of the split has no conversation, or an id is outside the vocabulary.
    """
    form, digest = chat_form(tokenizer), hashlib.sha256()
    skip = config.on_bad_record == "skip"
    counts: dict[Side, int] = dict.fromkeys(SIDES, 0)
    names = [name for side in SIDES for name in (f"{side}-0", f"{side}-mask")]
    sizes = dict.fromkeys(names, 0)
    compared: dict[str, int] = {}  # as in `encode`
    dropped, left_out = Dropped(), Counter[Reason]()
    found = chat.conversations(config, dropped=dropped, left_out=left_out)
    with ExitStack() as stack:
        streams = {name: stack.enter_context(closing(Stream(folder, name, tokenizer.vocab_size))) for name in names}
        for batch in batches(found, _size):
            every = [turn.text for _, conversation in batch for turn in conversation.turns]
            ids_of_texts = iter(encode(tokenizer, every, compared))
            for side, conversation in batch:
                texts_of_turns = [next(ids_of_texts) for _ in conversation.turns]
                rendered = _rendered(form, conversation, texts_of_turns, dropped if skip else None)
                if rendered is None:
                    continue
                digest.update(_content(conversation))
                counts[side] += 1
                for name, values in ((f"{side}-0", rendered.ids), (f"{side}-mask", rendered.mask)):
                    streams[name].begin()
                    streams[name].add(values)
                sizes[f"{side}-0"] += sum(len(turn.text.encode()) for turn in conversation.turns)
            for stream in streams.values():
                stream.write()
            report(sum(sizes.values()), None, "encoding")
        for stream in streams.values():
            stream.sync()
    _check(counts, left_out, dropped, config)
    reasons = {"empty": left_out["empty"], "no_target": left_out["no_target"]}
    records = {**counts} | {"skipped": sum(reasons.values())} | reasons
    read = {"documents": sum(counts.values()), "documents_sha256": digest.hexdigest(), **dropped.entry()}
    details: dict[str, Any] = {"sources": [{"name": chat.name(config), **read}], "records": records}
    return sizes, details | ({"compared": compared} if compared else {})


def _rendered(
    form: ChatForm, conversation: Conversation, ids_of_texts: list[list[int]], dropped: Dropped | None
) -> Rendered | None:
    """Return a conversation as ids; None if its form refuses it and bad records are left out.

    Raises:
        UserError: The form refuses it.
    """
    if isinstance(form, ChatTokens):  # texts are encoded in batches
        return form.render(conversation.turns, ids_of_texts)
    return accepted(lambda: form.rendered(conversation.turns), conversation.where, dropped)


def _size(item: tuple[Side, Conversation]) -> int:
    return sum(len(turn.text) for turn in item[1].turns)


def _content(conversation: Conversation) -> bytes:
    return "\0".join(part for turn in conversation.turns for part in (turn.role, turn.text, str(turn.learn))).encode()


def _check(counts: dict[Side, int], left_out: Counter[Reason], dropped: Dropped, config: ChatConfig) -> None:
    name, skipped = chat.name(config), ""
    if left_out:
        reasons = {"empty": "without text", "no_target": "without an answer"}
        skipped = f" (left out: {', '.join(f'{left_out[key]} {reasons[key]}' for key in left_out)})"
    skipped += f" ({dropped.note()})" * (dropped.count > 0)
    if not sum(counts.values()):
        raise UserError(f"{name}: it has no conversation{skipped}; add conversations with answers")
    for side, cure, files in zip(SIDES, ("lower", "raise"), ("files", "validation_files"), strict=True):
        if not counts[side]:
            change = f"{cure} data.validation_fraction, now {config.validation_fraction}, or provide more conversations"
            change = f"add conversations to data.{files}" if config.validation_files else change
            raise UserError(f"{name}: no conversation for {side}{skipped}: {change}")
