"""Pseudo-log-likelihood of a masked language model (Salazar et al. 2020).

Shapes: B rows, T positions, P positions that are predicted.
"""

from collections.abc import Sequence
from math import isfinite, log
from typing import Any

import jax
import numpy as np

from lmjax.config import UserError
from lmjax.data.batches import masking
from lmjax.data.tokenizer import Tokenizer
from lmjax.data.vocabularies import CONTINUES
from lmjax.objectives.objective import Objective


def pseudo_bits_per_byte(
    objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str], *, context: int, limit: int = 0
) -> float:
    """Return the pseudo-log-likelihood of texts in bits per predicted byte.

    It is defined by Salazar et al. 2020, equation 1. Every token is masked in turn and predicted from all other tokens
    of its passage. Unknown tokens are not predicted; bytes are those of the text that the predicted tokens decode to.
    The result is not a measure of compression.

    Args:
        objective: The objective of masked tokens.
        params: The parameters of its model.
        tokenizer: The tokenizer of its model.
        texts: The passages; a text that is longer than a row is cut into several passages.
        context: Tokens of a row.
        limit: Number of passages to measure, evenly spread (0: all).

    Raises:
        UserError: The texts have no token to predict, or the loss is not finite.
    """
    facts, room = masking.facts(tokenizer), context - 2
    passages = [ids[at : at + room] for ids in tokenizer.encode_batch(texts) for at in range(0, len(ids), room)]
    if 0 < limit < len(passages):
        passages = [passages[i] for i in sorted({int(i) for i in np.linspace(0, len(passages) - 1, limit)})]
    measure = jax.jit(lambda params, batch: objective.by_row(params, batch)[0].sum())
    nats, size = 0.0, 0
    for passage in map(np.asarray, passages):
        places = np.flatnonzero(np.isin(passage, facts.plain_V))
        nats += float(measure(params, mask_in_turn(passage, places, facts=facts, context=context)))
        if not isfinite(nats):
            raise UserError("the model gives a loss that is not finite; its weights or logits are not finite")
        size += _bytes(tokenizer, passage[places])
    if not size:
        raise UserError("the texts have no token that BERT can predict; use texts of its vocabulary")
    return nats / log(2) / size


def _bytes(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    """Count the bytes of the text of ids, without the mark of a passage inside a word."""
    text = tokenizer.decode(ids)
    inside = len(ids) > 0 and bool(tokenizer.continues[ids[0]])
    return len((text.removeprefix(CONTINUES) if inside else text).encode())


def mask_in_turn(passage: np.ndarray, places: np.ndarray, *, facts: masking.Facts, context: int) -> dict[str, Any]:
    """Return a batch of `context` rows, each with the token of one of `places` masked.

    A row is [CLS] passage [SEP]. Unused rows have weight 0.
    """
    T, count, length = context, len(places), len(passage) + 2
    row_T = np.full(T, facts.pad, np.int32)
    row_T[:length] = [facts.cls, *passage, facts.sep]
    inputs_BT, places_B = np.tile(row_T, (T, 1)), np.ones(T, np.int32)
    places_B[:count] = places + 1
    inputs_BT[np.arange(count), places_B[:count]] = facts.mask
    return {
        "inputs_BT": inputs_BT,
        "kinds_BT": np.zeros((T, T), np.int32),
        "real_BT": np.tile((np.arange(T) < length).astype(np.int32), (T, 1)),
        "places_BP": places_B[:, None],
        "targets_BP": row_T[places_B][:, None],
        "weights_BP": (np.arange(T) < count).astype(np.float32)[:, None],
    }
