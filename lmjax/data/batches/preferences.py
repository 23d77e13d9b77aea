"""Batches of preferences: pure functions of a store.

Shapes: B pairs, 2 answers (the preferred one first), T positions.

A store of preferences has the streams `train-prompt`, `train-chosen`, `train-rejected` and `train-margin`, where
document i is of pair i, and the same of `validation`. A row is the prompt and an answer, with the end of the answer.
Both rows of a pair have the same width; padding follows the answer. No row is cut.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.data.batches.chat import fill_id
from lmjax.data.batches.records import spans
from lmjax.data.sources.tables import Side
from lmjax.data.store.ingest_preferences import margins_of
from lmjax.data.store.store import Store

Batch = dict[str, np.ndarray]

ANSWERS = ("chosen", "rejected")


@dataclass(frozen=True, eq=False)
class FittingPairs:
    """The pairs of a side that are used with a context."""

    #: Their numbers in the store.
    records: np.ndarray
    #: Tokens of the longer row of each of them, at most the context.
    lengths: np.ndarray
    #: Number of pairs that were left out because a row is too long.
    too_long: int


def fitting(store: Store, side: Side, *, context: int) -> FittingPairs:
    """Select the pairs of which both rows fit into the context.

    A pair with a row that does not fit is left out: if it were cut, its prompts could differ, or its end would be
    missing.
    """
    length = row_lengths(store, side).max(axis=1)
    fits = length <= context
    return FittingPairs(np.flatnonzero(fits), length[fits], int(np.count_nonzero(~fits)))


def row_lengths(store: Store, side: Side) -> np.ndarray:
    """Return the number of tokens (pairs, 2) of the rows of all pairs of a side."""
    sizes = {name: _all_spans(store, f"{side}-{name}")[1] for name in ("prompt", *ANSWERS)}
    return np.stack([sizes["prompt"] + sizes[answer] for answer in ANSWERS], axis=1)


def answer_lengths(store: Store, side: Side) -> np.ndarray:
    """Return the number of tokens (pairs, 2) of all answers of a side, with their ends."""
    return np.stack([_all_spans(store, f"{side}-{answer}")[1] for answer in ANSWERS], axis=1)


def _all_spans(store: Store, stream: str) -> tuple[np.ndarray, np.ndarray]:
    tokens = store.streams[stream]
    return spans(tokens, np.arange(len(tokens.starts)))


def arrays(store: Store, side: Side, records: np.ndarray, *, width: int) -> Batch:
    """Build the rows of pairs.

    Args:
        store: The store.
        side: Side of the split.
        records: Numbers of the pairs.
        width: Number of positions, at least the tokens of each row.

    Returns:
        `tokens_B2T` int32; `mask_B2T` float32, 1 at the tokens of an answer and at its end; `last_B2` int32, the place
        of that end; `margins_B` float32; `weights_B` float32, 1.
    """
    column_T = np.arange(width)
    tokens = np.full((len(records), 2, width), fill_id(store), np.int32)
    mask, last = np.zeros(tokens.shape, np.float32), np.zeros((len(records), 2), np.int32)
    prompt = store.streams[f"{side}-prompt"]
    prompt_start_B1, prompt_size_B1 = (x[:, None] for x in spans(prompt, records))
    for answer, name in enumerate(ANSWERS):
        stream = store.streams[f"{side}-{name}"]
        start_B1, size_B1 = (x[:, None] for x in spans(stream, records))
        stop_B1 = prompt_size_B1 + size_B1
        assert stop_B1.max(initial=0) <= width, "a row is longer than the batch is wide"
        in_prompt, in_answer = column_T < prompt_size_B1, (column_T >= prompt_size_B1) & (column_T < stop_B1)
        for part, here, first_B1 in (
            (prompt, in_prompt, prompt_start_B1),
            (stream, in_answer, start_B1 - prompt_size_B1),
        ):
            tokens[:, answer][here] = part.checked(part.ids[(first_B1 + column_T)[here]])
        mask[:, answer] = in_answer
        last[:, answer] = stop_B1[:, 0] - 1
    margin = store.streams[f"{side}-margin"]
    return {
        "tokens_B2T": tokens,
        "mask_B2T": mask,
        "last_B2": last,
        "margins_B": margins_of(margin.ids[spans(margin, records)[0][:, None] + np.arange(2)]),
        "weights_B": np.ones(len(records), np.float32),
    }


def blank(rows: int, width: int) -> Batch:
    """Return rows of zeros with the names, shapes and types of `arrays`."""
    return {
        "tokens_B2T": np.zeros((rows, 2, width), np.int32),
        "mask_B2T": np.zeros((rows, 2, width), np.float32),
        "last_B2": np.zeros((rows, 2), np.int32),
        "margins_B": np.zeros(rows, np.float32),
        "weights_B": np.zeros(rows, np.float32),
    }


def text_of(store: Store, side: Side, record: int) -> tuple[str, str, str]:
    """Return the texts of prompt, preferred and other answer of a pair, with control tokens."""
    prompt, chosen, rejected = (store.tokenizer.decode(ids) for ids in ids_of(store, side, record))
    return prompt, chosen, rejected


def ids_of(store: Store, side: Side, record: int) -> list[np.ndarray]:
    """Return the ids of the prompt, of the preferred answer and of the other answer of a pair."""
    parts = []
    for name in ("prompt", *ANSWERS):
        tokens = store.streams[f"{side}-{name}"]
        start_B, size_B = spans(tokens, np.asarray([record]))
        parts.append(np.asarray(tokens.checked(tokens.ids[int(start_B[0]) : int(start_B[0] + size_B[0])])))
    return parts
