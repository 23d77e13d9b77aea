"""What a tokenizer is, and how it divides a text."""

from dataclasses import dataclass

import numpy as np

from lmjax.data.tokenizer import Tokenizer

_LONGEST = 8  # tokens that are shown
_SAMPLES = ("2026", "1234567", "  x = 10\n\treturn", "don't", "Straße 中文 🙂")


@dataclass(frozen=True)
class Row:
    """A token of a text."""

    id: int
    #: The token as its vocabulary writes it.
    token: str
    #: What it decodes to after the tokens before it.
    text: str


def facts(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return (name, value) of what is known without a text."""
    known = tokenizer
    special = [known.token(id) for id in sorted(known.special_ids)]
    roles = {"unknown": known.unknown, "[CLS]": known.cls, "[SEP]": known.sep, "[MASK]": known.mask, "[PAD]": known.pad}
    named = [f"{role}: {known.token(id)} ({id})" for role, id in roles.items() if id is not None]
    return [
        ("model", type(known.backend.model).__name__ + ", of characters" * known.by_character),
        ("entries", f"{known.vocab_size:,}"),
        ("special tokens", f"{len(special)}: {', '.join(special[:12])}{', ...' * (len(special) > 12)}"),
        ("end of a document", known.end_description),
        *([("roles", "; ".join(named))] if named else []),
        ("every text comes back", "yes" if known.lossless else "not by construction; see the text below"),
        ("sha256", known.sha256),
    ]


def measures(tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    """Return (name, value) of how the tokenizer divides a text."""
    refused = tokenizer.refused(text)
    share = len(refused) / max(1, len(text))
    text = _without(text, refused)
    ids = np.asarray(tokenizer.encode(text), np.int64)
    size, count = len(text.encode()), max(1, len(ids))
    unknown = int(np.count_nonzero(ids == tokenizer.unknown)) if tokenizer.unknown is not None else 0
    used = np.unique(ids)
    longest = sorted({tokenizer.token_text(int(id)) for id in used}, key=lambda token: (-len(token), token))
    examples = ", ".join(map(repr, sorted(set(refused))[:_LONGEST]))
    return [
        *([("characters it refuses", f"{len(refused):,} ({share:.2%}), left out: {examples}")] if refused else []),
        ("bytes of text", f"{size:,}"),
        ("tokens", f"{len(ids):,}"),
        ("bytes a token", f"{size / count:.3f}"),
        ("characters a token", f"{len(text) / count:.3f}"),
        ("unknown tokens", f"{unknown:,} ({unknown / count:.2%})"),
        ("the text comes back", "yes" if tokenizer.decode(ids) == text else "NO: decoding gives another text"),
        ("entries that occur", f"{len(used):,} of {tokenizer.vocab_size:,} ({len(used) / tokenizer.vocab_size:.1%})"),
        ("longest tokens", ", ".join(map(repr, longest[:_LONGEST]))),
        *((repr(sample), " ".join(map(repr, _texts(tokenizer, sample)))) for sample in _SAMPLES),
    ]


def rows(tokenizer: Tokenizer, text: str) -> list[Row]:
    """Return the tokens of a text."""
    ids = tokenizer.encode(text)
    parts = _parts(tokenizer, ids)
    return [Row(id, tokenizer.token(id), part) for id, part in zip(ids, parts, strict=True)]


def _without(text: str, refused: str) -> str:
    return text.translate(dict.fromkeys(map(ord, refused)))


def _texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return _parts(tokenizer, tokenizer.encode(_without(text, tokenizer.refused(text))))


def _parts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Return what each token adds to the text; the last of a character adds it."""
    parts, before = [], ""
    for stop in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:stop])
        whole = decoded.rstrip("\ufffd") if stop < len(ids) else decoded
        parts.append(whole[len(before) :] if whole.startswith(before) else "")
        before = whole if whole.startswith(before) else before
    return parts
