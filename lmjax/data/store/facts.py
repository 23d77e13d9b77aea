"""What a user has to know about prepared data before training on them."""

from typing import Any

from lmjax.data.store.store import Store, holds_text
from lmjax.display.format import quantity

WARN = 0.005  # share of unknown tokens above which a line is a warning


def store_facts(store: Store) -> dict[str, Any]:
    """Return the fields of summary.json about the data: what is unknown or left out."""
    unknown = {"training": 0, "validation": 0}
    for name in store.streams:
        unknown["validation" if name.startswith("validation") else "training"] += store.unknown_tokens(name)
    records = store.manifest.get("records") or {}
    names = ("dropped", "empty", "duplicates")
    dropped, empty, duplicates = (
        sum(source.get(name, 0) for source in store.manifest.get("sources", ())) for name in names
    )
    skipped = records.get("skipped", empty or None)
    return (
        {"unknown_tokens": unknown}
        | ({} if skipped is None else {"skipped_records": skipped})
        | ({"dropped_records": dropped} if dropped else {})
        | ({"duplicate_documents": duplicates} if duplicates else {})
    )


def notes(store: Store) -> list[str]:
    """Describe what is lost, joined or unchecked in prepared data, one line per fact."""
    repeated = [f"WARNING: {line}" for line in store.manifest.get("repeated", ())]
    lines = [*_left_out(store), *repeated, _unknown(store), _changed(store), _joined(store)]
    if not store.verified:
        size = sum(entry["bytes"] for entry in store.manifest["files"].values())
        lines.append(
            f"prepared data: {size / 1e9:.0f} GB, of which the contents are not read now; `lmjax audit` compares them "
            "with their hashes"
        )
    return [line for line in lines if line]


def _left_out(store: Store) -> list[str]:
    lines = []
    for source in store.manifest.get("sources", ()):
        if dropped := source.get("dropped"):
            lines.append(
                f"WARNING: {source['name']}: left out {dropped:,} bad records, first {source['first_dropped']}"
            )
        if empty := source.get("empty"):
            lines.append(f"{source['name']}: left out {empty:,} rows whose text is empty or null")
        if again := source.get("duplicates"):
            share = again / (again + source["documents"])
            lines.append(f"{source['name']}: left out {again:,} documents ({share:.1%}) that occurred before")
        lines += [f"{source['name']}: {note}" for note in source.get("left_out", ())]
    return lines


def _unknown(store: Store) -> str:
    unknown = sum(map(store.unknown_tokens, store.streams))
    if not unknown:
        return ""
    share = unknown / sum(len(tokens.ids) for name, tokens in store.streams.items() if holds_text(name))
    name = store.tokenizer.token_text(store.tokenizer.unknown or 0)
    line = f"unknown tokens: {unknown:,} ({share:.2%}) are {name}, which stands for text that the vocabulary lacks"
    if share <= WARN:
        return line
    return f"WARNING: {line}: raise data.tokenizer.vocab_size, or set data.tokenizer.kind=bpe"


def _changed(store: Store) -> str:
    compared = store.manifest.get("compared")
    if store.tokenizer.lossless or not compared or not compared["different"]:
        return ""
    return (
        f"text: the tokenizer changes {compared['different']:,} of {compared['pieces']:,} texts that were compared "
        f"(the first {quantity(compared['bytes'], 'B')}): decoding does not return them"
    )


def _joined(store: Store) -> str:
    end, described = store.tokenizer.end_of_text, store.manifest.get("tokenizer", {})
    if "validation" not in store.streams:  # records, which do not share a stream
        return ""
    if end is not None:  # named where it could be another than the author of the tokenizer means
        return f"documents: each ends in {store.tokenizer.token_text(end)}" * (described.get("kind") == "file")
    documents = sum(len(tokens.starts) for tokens in (*store.sources, store.validation))
    if documents < 2:
        return ""
    return (
        f"WARNING: documents: the tokenizer has no token that ends a text, so nothing separates the {documents:,} "
        "documents; choose another tokenizer (data.tokenizer) if the model has to see where they end"
    )
