"""The log-probability of continuations, with every beginning that several requests share computed once.

Requests are laid out as trees: a row holds the tokens of many, depth first, and each token sees only those that it
continues (a token's `end` is where the part of the tree that continues it ends). So the options of a question share its
context, questions share their examples, and options of one token need no place of their own.

Legend: B rows of a batch, L places of a row, P places with a prediction, Q predicted tokens.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax import parallel
from lmjax.config import GPTConfig, UserError
from lmjax.generate import LanguageModel, power_of_two
from lmjax.models import flops, incremental

SHORTEST = 512  # requests up to so many places are laid out together: one compiled shape serves them
LEAST, LONGEST = 128, 2048  # places of a row of trees that are tried
ALONE = 32  # places of a row of one request, at least
PLACES = 4096  # of a batch
LOGITS = 2**27  # values of logits in a batch, at most (unless a single row has more)


class Request(NamedTuple):
    """Ids: a context of at least one, and what may continue it, at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Found(NamedTuple):
    """The log-probability of a continuation in nats, and whether each of its tokens is the likeliest."""

    logprob: float
    greedy: bool


def encode(lm: LanguageModel, context: str, continuation: str) -> Request:
    """The request for a text and its continuation: blanks at the end of the context belong to the continuation.

    The continuation's ids are what encoding both together has more than the context alone (as lm-evaluation-harness).
    UserError: an empty continuation.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not continuation:
        raise UserError("there is nothing to score: the continuation is empty")
    if not kept:
        return Request(tuple(lm.ids("")), tuple(lm.tokenizer.encode(continuation)))
    start, whole = lm.ids(kept), lm.ids(kept + continuation)
    if len(whole) <= len(start):  # both together have fewer tokens
        return Request(tuple(whole[:-1]) or tuple(lm.ids("")), tuple(whole[-1:]))
    return Request(tuple(start), tuple(whole[len(start) :]))


def rolling(lm: LanguageModel, text: str, *, context: int | None = None) -> list[Request]:
    """Requests that predict each token of a text once, in windows of `context` tokens that do not overlap.

    The first window predicts from what a document begins behind; every further one is filled up with the tokens before
    it, so that its last token is the window's last (as lm-evaluation-harness makes them).
    """
    limit = context or incremental.limit(lm.model.config)
    ids = lm.tokenizer.encode(text)
    before = lm.ids("")[:1]
    limit = limit or len(ids)
    requests = [Request(tuple(before), tuple(ids[:limit]))] if ids else []
    for start in range(limit, len(ids), limit):
        stop = min(start + limit, len(ids))
        requests.append(Request(tuple(ids[stop - limit - 1 : start]), tuple(ids[start:stop])))
    return requests


def score(
    lm: LanguageModel,
    requests: Sequence[Request],
    *,
    share: bool = True,
    take: Callable[[dict[int, Found]], None] = lambda found: None,
) -> list[Found]:
    """What the model says of each request, in their order; a context too long loses its beginning.

    share: lay requests out as trees (GPT); otherwise each has a row of its own. The results are those of one forward
    pass for each request, up to rounding. take: is called with the answers of each batch, by the number of the
    request, as they come. Rows are shared out over the devices of this process.
    """
    limit = incremental.limit(lm.model.config)
    whole = [_sequence(request, limit) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: whole[i][0])
    share = share and isinstance(lm.model.config, GPTConfig)
    found: dict[int, Found] = {}
    mesh = parallel.local_mesh()
    params = jax.device_put(lm.params, parallel.replicated(mesh))
    config, least = lm.model.config, SHORTEST if share else ALONE
    groups = [max(least, power_of_two(len(read))) for read, _ in whole]
    for group in sorted(set(groups)):
        chosen = [i for i in order if groups[i] == group]
        length, rows = _layout(chosen, whole, config) if share else (group, list(_rows(chosen, whole, group, False)))
        P, Q = _up(max(len(row.places) for row in rows)), _up(max(len(row.targets) for row in rows))
        places = P if isinstance(config, GPTConfig) else length  # with logits
        most = max(1, min(PLACES // length, LOGITS // (places * config.vocab_size)))
        size = -(-len(rows) // -(-len(rows) // most))  # all batches alike, and full but for the last one's last rows
        size = -(-size // mesh.size) * mesh.size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            arrays = jax.device_put(_arrays(batch, (size, length, P, Q), share), parallel.rows(mesh))
            logprob_BQ, greedy_BQ = jax.device_get(_forward(lm.model, params, arrays))
            answered = {
                i: Found(float(np.sum(logprob_BQ[b, at], dtype=np.float64)), bool(greedy_BQ[b, at].all()))
                for b, row in enumerate(batch)
                for i, at in row.requests
            }
            found |= answered
            take(answered)
    return [found[i] for i in range(len(requests))]


def _sequence(request: Request, limit: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is read, and the ids that are predicted behind its last places."""
    whole = request.context + request.continuation
    read = whole[-limit - 1 if limit else 0 :][:-1]
    return read, request.continuation[-len(read) :]


def _up(count: int) -> int:
    return -(-count // 8) * 8 if count <= 32 else -(-count // 32) * 32


# ---- Rows -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Sequences as a tree: for each place its token, depth and end; which places predict, and what is predicted.

    path: the places of the sequence that was added last. targets: (index in `places`, id). requests: the number of
    each with the slice of its targets.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    targets: list[tuple[int, int]] = field(default_factory=list)
    requests: list[tuple[int, slice]] = field(default_factory=list)

    def shared(self, read: Sequence[int]) -> int:
        """How many tokens a sequence has in common with the one added last."""
        same = itertools.takewhile(lambda pair: self.tokens[pair[0]] == pair[1], zip(self.path, read, strict=False))
        return sum(1 for _ in same)

    def add(self, number: int, read: Sequence[int], predicted: Sequence[int], shared: int) -> None:
        """Puts a sequence behind what it shares with the one before; they must come in the order of their ids."""
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
        """Ends the places that nothing further continues."""
        for place in self.path[shared:]:
            self.ends[place] = len(self.tokens)
        del self.path[shared:]


def _layout(order: Sequence[int], whole: Sequence[Any], config: Any) -> tuple[int, list[Row]]:
    """The length of rows that costs least, and the rows: short ones leave more places empty, long ones attend to more.

    By multiplications a place: products with weights, and attention, to L / 2 keys on average, 2 H K each in every
    layer, which take about three times as long (measured on CPU).
    """
    c, counts = flops.resolve(config), flops.parameters(config)
    weights, keys = counts["attention"] + counts["mlp"], 3 * c.layers * c.heads * c.head_dim
    lengths = _lengths(max(len(whole[i][0]) for i in order))
    laid = {length: list(_rows(order, whole, length, True)) for length in lengths}
    best = min(laid, key=lambda length: len(laid[length]) * length * (weights + keys * length))
    return best, laid[best]


def _lengths(longest: int) -> list[int]:
    """The lengths that are tried for rows of trees: LEAST, 3/2 of it, and so on by powers of two."""
    lengths = [size << n for n in range(32) for size in (LEAST, 3 * LEAST // 2) if size << n >= longest]
    return lengths[:1] + [length for length in lengths[1:] if length <= LONGEST]


def _rows(order: Sequence[int], whole: Sequence[Any], length: int, share: bool) -> Iterator[Row]:
    """The sequences in rows of at most `length` places."""
    row = Row()
    for i in order:
        read, predicted = whole[i]
        shared = row.shared(read)
        if row.requests and (not share or len(row.tokens) + len(read) - shared > length):
            row.close()
            yield row
            row, shared = Row(), 0
        row.add(i, read, predicted, shared)
    row.close()
    yield row


def _arrays(rows: Sequence[Row], shape: tuple[int, int, int, int], share: bool) -> dict[str, np.ndarray]:
    """The rows as arrays; what is beyond their ends is not looked at."""
    B, L, P, Q = shape
    names = ("tokens_BL", "depths_BL", "ends_BL") if share else ("tokens_BL",)
    arrays = {name: np.zeros((B, L), np.int32) for name in names}
    arrays |= {"places_BP": np.zeros((B, P), np.int32), "targets_BQ2": np.zeros((B, Q, 2), np.int32)}
    if share:
        arrays["ends_BL"][:] = L  # padding sees itself, so that nothing is divided by zero
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
    """For each target its log-probability and whether it is the likeliest, (B, Q)."""
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
    return of_row(logits_BPV, place_BQ, id_BQ) - at(log_z_BP), at(best_BP) == id_BQ
