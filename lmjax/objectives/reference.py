"""Files of what an objective takes from its reference, the model that a run starts as.

The content is computed once, before the first update. The file is in the directory of the run, and is verified by its
hash.

    direct preference optimization   reference_logprobs.bin: float32 (pairs, 2) of all pairs of the training split, then
                                     of the validation split; pairs that are not used have 0
    reward model                     reference_samples.jsonl: {"prompt": ids, "answer": ids}, one answer per line
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.config.json_text import parse_json
from lmjax.data.sources.tables import SIDES, Side

LOGPROBS, SAMPLES = "reference_logprobs.bin", "reference_samples.jsonl"

Table = Mapping[Side, np.ndarray]


@dataclass(frozen=True)
class ReferenceSamples:
    """Answers of the reference policy to training prompts."""

    #: Ids of each prompt and its answer, with the end.
    rows: Sequence[np.ndarray]
    #: Tokens of each prompt.
    prompt_sizes: Sequence[int]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer."""
        return np.asarray([len(row) - size for row, size in zip(self.rows, self.prompt_sizes, strict=True)])


# ---- Log-probabilities ----------------------------------------------------------------------------------------------


def from_table(table: Table) -> bytes:
    """Return the content of the file of log-probabilities (pairs, 2) of each side."""
    return b"".join(np.ascontiguousarray(table[side], "<f4").tobytes() for side in SIDES)


def to_table(content: bytes, counts: Mapping[Side, int]) -> dict[Side, np.ndarray]:
    """Return the log-probabilities in the content of a file.

    Args:
        content: The content.
        counts: Number of pairs of each side.

    Raises:
        ValueError: The file has another number of pairs.
    """
    if len(content) != sum(8 * counts[side] for side in SIDES):
        raise ValueError(f"it has {len(content) / 8:,g} pairs, the data have {sum(counts.values()):,}")
    values = np.frombuffer(content, "<f4").reshape(-1, 2)
    return {"train": values[: counts["train"]], "validation": values[counts["train"] :]}


# ---- Answers --------------------------------------------------------------------------------------------------------


def from_samples(samples: ReferenceSamples) -> bytes:
    """Return the content of the file of answers."""
    lines = (
        {"prompt": row[:size].tolist(), "answer": row[size:].tolist()}
        for row, size in zip(samples.rows, samples.prompt_sizes, strict=True)
    )
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def to_samples(content: bytes, *, context: int, vocab_size: int) -> ReferenceSamples:
    """Return the answers in the content of a file.

    Raises:
        ValueError: A line is not an answer of at most `context` ids below `vocab_size`.
    """
    rows, sizes = list[np.ndarray](), list[int]()
    for number, line in enumerate(content.splitlines(), 1):
        parts: Any = parse_json(line, f"line {number}")
        prompt, answer = (_ids(parts, name, vocab_size) for name in ("prompt", "answer"))
        if not prompt or not answer or len(prompt + answer) > context:
            raise ValueError(f"line {number} is not an answer of the model")
        rows.append(np.asarray(prompt + answer, np.int32))
        sizes.append(len(prompt))
    if not rows:
        raise ValueError("it has no answer")
    return ReferenceSamples(rows, sizes)


def _ids(parts: Any, name: str, vocab_size: int) -> list[int]:
    """Return the ids of a part of a line; empty if it has anything else."""
    ids: Any = parts.get(name) if isinstance(parts, dict) else None
    are_ids = isinstance(ids, list) and all(type(x) is int and 0 <= x < vocab_size for x in ids)
    return ids if are_ids else []
