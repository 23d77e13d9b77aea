"""Log-probabilities of continuations; prefixes that requests share are computed once.

Requests are laid out as trees. A row holds the tokens of many requests, depth first, and each token attends only to its
ancestors: the `end` of a token is the position after its subtree. The options of a question share its context,
questions share their examples, and options of a single token need no additional position.

Legend: B rows of a batch, L positions of a row, P positions with a prediction, Q predicted tokens.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isnan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import CustomModelConfig, GPTConfig, UserError
from lmjax.inference import incremental
from lmjax.inference.generate import power_of_two
from lmjax.inference.language_model import LanguageModel
from lmjax.models import costs
from lmjax.parallel.mesh import local_mesh, replicated, row_sharding

SHORTEST = 512  # requests of at most this number of tokens share one compiled shape
LEAST, LONGEST = 128, 2048  # minimum and maximum number of positions of a row of trees
ALONE = 32  # minimum number of positions of a row with a single request
PLACES = 4096  # maximum number of positions of a batch
LOGITS = 2**27  # maximum number of logits of a batch (unless a single row has more)


class Request(NamedTuple):
    """A context and its continuation as token ids, both non-empty."""

    #: Ids of the context.
    context: tuple[int, ...]
    #: Ids of the continuation.
    continuation: tuple[int, ...]


class NoScore(UserError):
    """A log-probability that is not a number, and the index of its request."""

    def __init__(self, index: int, where: str = "") -> None:
        super().__init__(
            f"{where and where + ': '}the model gives a log-probability that is not a number, which has no rank; its "
            "weights or logits are not finite"
        )
        self.index = index

    def at(self, where: str) -> "NoScore":
        """Return the error with the place of the request in front of its message."""
        return NoScore(self.index, where)


class Found(NamedTuple):
    """The score of a continuation."""

    #: Log-probability of the continuation in nats.
    logprob: float
    #: Whether each token is the most likely one.
    greedy: bool


def encode(lm: LanguageModel, context: str, continuation: str) -> Request:
    """Encode a text and its continuation.

    Trailing blanks of the context move to the continuation. The ids of the continuation are those that encoding both
    texts together adds to the context (as in lm-evaluation-harness).

    Raises:
        UserError: The continuation is empty, or nothing precedes its only token.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not continuation:
        raise UserError("there is nothing to score: the continuation is empty")
    if not stripped:
        return _alone(lm, lm.encode(continuation))
    start, complete = lm.ids(stripped), lm.ids(stripped + continuation)
    if len(complete) <= len(start):  # the complete text has fewer tokens
        return Request(tuple(complete[:-1]), tuple(complete[-1:])) if complete[:-1] else _alone(lm, complete)
    return Request(tuple(start), tuple(complete[len(start) :]))


def _alone(lm: LanguageModel, ids: Sequence[int]) -> Request:
    """The request for a text without context: after the model's or its own first token."""
    complete = (*lm.before(), *ids)
    if len(complete) < 2:
        raise UserError(
            f"nothing precedes the only token of {lm.tokenizer.decode(ids)!r}, so it has no probability; choose "
            "another first token (bos or end), or give a context"
        )
    return Request(complete[:1], complete[1:])


def rolling(lm: LanguageModel, text: str, *, context: int | None = None) -> list[Request]:
    """Build requests that predict each token of a text once, in windows without overlap.

    The context of the first window is the model's first token (`LanguageModel.before`); without one, the first token of
    the text is not predicted. The context of every other window is the last token of the preceding one. The last
    window is filled on the left up to the limit. All of this is as in lm-evaluation-harness.

    Args:
        lm: The model.
        text: The text.
        context: Tokens of a window; default: the context of the model.
    """
    ids = (*lm.before(), *lm.encode(text))
    limit = context or incremental.limit(lm.model.config) or max(1, len(ids))
    requests = []
    for start in range(1, len(ids), limit):
        stop = min(start + limit, len(ids))
        requests.append(Request(ids[max(0, stop - limit - 1) : start], ids[start:stop]))
    return requests


def cut(request: Request, limit: int | None) -> tuple[int, int]:
    """Return how many tokens of context and continuation do not fit, and are left out."""
    if not limit:
        return 0, 0
    continuation = max(0, len(request.continuation) - limit)
    return max(0, len(request.context) + len(request.continuation) - limit - 1 - continuation), continuation


def score(
    lm: LanguageModel,
    requests: Sequence[Request],
    *,
    share: bool = True,
    take: Callable[[dict[int, Found]], None] = lambda scores: None,
) -> list[Found]:
    """Score requests, in their order; a context that is too long is truncated on the left.

    The results equal those of one forward pass for each request, up to rounding. Rows are sharded over the devices of
    this process.

    Args:
        lm: The model.
        requests: The requests.
        share: Lay requests out as trees (GPT only); otherwise each request has its own row.
        take: Called after each batch with its scores, by the index of the request.

    Raises:
        NoScore: A log-probability is not a number.
    """
    limit = incremental.limit(lm.model.config)
    sequences = [_sequence(request, limit) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: sequences[i][0])
    share = share and isinstance(lm.model.config, GPTConfig)
    scores: dict[int, Found] = {}
    mesh = local_mesh()
    params = jax.device_put(lm.params, replicated(mesh))
    config, least = lm.model.config, SHORTEST if share else ALONE
    groups = [max(least, power_of_two(len(read))) for read, _ in sequences]
    if isinstance(config, CustomModelConfig):  # its positions may end at the context
        groups = [min(size, config.context) for size in groups]
    for group in sorted(set(groups)):
        chosen = [i for i in order if groups[i] == group]
        length, rows = (
            _layout(chosen, sequences, config) if share else (group, list(_rows(chosen, sequences, group, False)))
        )
        P, Q = _up(max(len(row.places) for row in rows)), _up(max(len(row.targets) for row in rows))
        places = P if isinstance(config, GPTConfig) else length  # with logits
        most = max(1, min(PLACES // length, LOGITS // (places * config.vocab_size)))
        size = -(-len(rows) // -(-len(rows) // most))  # equal batches; only the last has empty rows
        size = -(-size // mesh.size) * mesh.size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            arrays = jax.device_put(_arrays(batch, (size, length, P, Q), share), row_sharding(mesh))
            logprob_BQ, greedy_BQ = jax.device_get(_forward(lm.model, params, arrays))
            batch_scores = {
                i: Found(float(np.sum(logprob_BQ[b, at], dtype=np.float64)), bool(greedy_BQ[b, at].all()))
                for b, row in enumerate(batch)
                for i, at in row.requests
            }
            for i, found in batch_scores.items():
                if isnan(found.logprob):
                    raise NoScore(i)
            scores |= batch_scores
            take(batch_scores)
    return [scores[i] for i in range(len(requests))]


def _sequence(request: Request, limit: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input ids, and the ids that are predicted after its last positions."""
    ids = request.context + request.continuation
    read = ids[-limit - 1 if limit else 0 :][:-1]
    return read, request.continuation[-len(read) :]


def _up(count: int) -> int:
    return -(-count // 8) * 8 if count <= 32 else -(-count // 32) * 32


# ---- Rows -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Sequences as a tree of tokens, depth first."""

    #: Token at each position.
    tokens: list[int] = field(default_factory=list)
    #: Depth of each position in the tree.
    depths: list[int] = field(default_factory=list)
    #: End of each position's subtree.
    ends: list[int] = field(default_factory=list)
    #: Positions of the last added sequence.
    path: list[int] = field(default_factory=list)
    #: Positions with a prediction, each with its index.
    places: dict[int, int] = field(default_factory=dict)
    #: Predicted tokens, (index in `places`, id).
    targets: list[tuple[int, int]] = field(default_factory=list)
    #: Number of each request with the slice of its targets.
    requests: list[tuple[int, slice]] = field(default_factory=list)

    def shared(self, read: Sequence[int]) -> int:
        """The length of the common prefix of a sequence and the last added sequence."""
        same = itertools.takewhile(lambda pair: self.tokens[pair[0]] == pair[1], zip(self.path, read, strict=False))
        return sum(1 for _ in same)

    def add(self, number: int, read: Sequence[int], predicted: Sequence[int], shared: int) -> None:
        """Append a sequence after its shared prefix; sequences must be sorted by their ids."""
        self.close(shared)
        new = read[shared:]
        self.path += range(len(self.tokens), len(self.tokens) + len(new))
        self.tokens += new
        self.depths += range(shared, len(read))
        self.ends += [0] * len(new)
        first = len(self.targets)
        for place, target in zip(self.path[len(read) - len(predicted) :], predicted, strict=True):
            self.targets.append((self.places.setdefault(place, len(self.places)), target))
        self.requests.append((number, slice(first, len(self.targets))))

    def close(self, shared: int = 0) -> None:
        """End the subtrees of the path's positions from depth `shared`."""
        for place in self.path[shared:]:
            self.ends[place] = len(self.tokens)
        del self.path[shared:]


def _layout(order: Sequence[int], sequences: Sequence[Any], config: Any) -> tuple[int, list[Row]]:
    """The cheapest row length, and its rows.

    Short rows leave more positions empty, long rows attend to more keys. The cost of a position is its number of
    multiplications: the products with weights, and attention to L / 2 keys on average, 2 H K for each key in every
    layer. A multiplication of attention takes about three times as long (measured on CPU).
    """
    c, counts = costs.resolve_gpt(config), costs.parameters(config)
    weights, keys = counts["attention"] + counts["mlp"], 3 * c.layers * c.heads * c.head_dim
    lengths = _lengths(max(len(sequences[i][0]) for i in order))
    layouts = {length: list(_rows(order, sequences, length, True)) for length in lengths}
    best = min(layouts, key=lambda length: len(layouts[length]) * length * (weights + keys * length))
    return best, layouts[best]


def _lengths(longest: int) -> list[int]:
    """The candidate lengths of rows of trees: LEAST and 3/2 LEAST, times powers of two."""
    lengths = [size << n for n in range(32) for size in (LEAST, 3 * LEAST // 2) if size << n >= longest]
    return lengths[:1] + [length for length in lengths[1:] if length <= LONGEST]


def _rows(order: Sequence[int], sequences: Sequence[Any], length: int, share: bool) -> Iterator[Row]:
    """Pack the sequences into rows of at most `length` positions."""
    row = Row()
    for i in order:
        read, predicted = sequences[i]
        shared = row.shared(read)
        if row.requests and (not share or len(row.tokens) + len(read) - shared > length):
            row.close()
            yield row
            row, shared = Row(), 0
        row.add(i, read, predicted, shared)
    row.close()
    yield row


def _arrays(rows: Sequence[Row], shape: tuple[int, int, int, int], share: bool) -> dict[str, np.ndarray]:
    """The rows as padded arrays."""
    B, L, P, Q = shape
    names = ("tokens_BL", "depths_BL", "ends_BL") if share else ("tokens_BL",)
    arrays = {name: np.zeros((B, L), np.int32) for name in names}
    arrays |= {"places_BP": np.zeros((B, P), np.int32), "targets_BQ2": np.zeros((B, Q, 2), np.int32)}
    if share:
        arrays["ends_BL"][:] = L  # padding attends to itself, which avoids a division by zero
    for b, row in enumerate(rows):
        for name in names:
            values = getattr(row, name.split("_")[0])
            arrays[name][b, : len(values)] = values
        arrays["places_BP"][b, : len(row.places)] = list(row.places)
        arrays["targets_BQ2"][b, : len(row.targets)] = row.targets
    return arrays


# ---- On the devices ---------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def _forward(model: Any, params: Any, arrays: dict[str, Array]) -> tuple[Array, Array]:
    """For each target its log-probability and whether it is the most likely token, (B, Q)."""
    named: dict[str, Array] = {}
    if isinstance(model.config, GPTConfig):
        named = {"places_BN": arrays["places_BP"]}
    if "ends_BL" in arrays:
        named |= {"positions_BT": arrays["depths_BL"], "ends_BT": arrays["ends_BL"]}
    logits_BPV = model.apply({"params": params}, arrays["tokens_BL"], **named)
    if not named:
        logits_BPV = jnp.take_along_axis(logits_BPV, arrays["places_BP"][..., None], axis=1)
    place_BQ, id_BQ = arrays["targets_BQ2"][..., 0], arrays["targets_BQ2"][..., 1]
    log_z_BP, best_BP = jax.nn.logsumexp(logits_BPV, axis=-1), jnp.argmax(logits_BPV, axis=-1)
    of_row = jax.vmap(lambda logits_PV, place_Q, id_Q: logits_PV[place_Q, id_Q])
    at = partial(jnp.take_along_axis, indices=place_BQ, axis=1)
    log_z_BQ = at(log_z_BP)
    logprob_BQ = jnp.where(jnp.isfinite(log_z_BQ), of_row(logits_BPV, place_BQ, id_BQ) - log_z_BQ, jnp.nan)
    return logprob_BQ, at(best_BP) == id_BQ
