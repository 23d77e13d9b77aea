"""Rollouts: responses that a policy samples, with their log-probabilities.

A rollout is a pure function of (parameters, prompts, seed, update). The random key of a token is derived from seed,
update, row and the number of the token in its response. So a row gets the same tokens in any order of the rows, in any
chunk of them and behind any amount of padding.

Legend: B rows, P positions of the prompts, N new tokens, T = P + N, V vocabulary. Prompts are flush right: padding
precedes them. Responses are flush left: padding follows them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import GPTConfig, UserError
from lmjax.inference import incremental
from lmjax.inference.sampling import Sampling, choose
from lmjax.objectives import prompt_samples
from lmjax.parallel import axes
from lmjax.rl import estimates
from lmjax.system.seeds import random_key

_STREAM = 0x726F6C6C  # separates the keys of rollouts from those of dropout, which have the same seed and update


class Prompts(NamedTuple):
    """Prompts of one width."""

    #: Token ids, flush right.
    ids_BP: Any
    #: True at tokens, False at padding.
    mask_BP: Any


class Rollout(NamedTuple):
    """Sampled responses."""

    #: Token ids, the end token included; 0 at padding.
    tokens_BN: Array
    #: True at tokens, False at padding.
    mask_BN: Array
    #: log p of each token at the temperature of the rollout, in nats; 0 at padding.
    logprobs_BN: Array
    #: Whether the response has an end token. The others were cut at N tokens.
    finished_B: Array
    #: Whether all logits were finite numbers. Otherwise the response ends before the first token without such logits.
    finite_B: Array


@dataclass(frozen=True)
class RolloutSettings:
    """How responses are sampled."""

    #: The number of new tokens, the temperature and the seed. The other settings have their defaults.
    sampling: Sampling
    #: Ids that end a response.
    ends: tuple[int, ...] = ()
    #: Number of rows that are decoded at a time (0: all). It bounds the memory of the cache.
    rows: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.sampling)
        if self.rows < 0:
            raise UserError(f"rows={self.rows} of a rollout must be at least 1, or 0 for all rows at a time")


#: (parameters, prompts, ids of the rows, update) -> the rollout.
Program = Callable[[Any, Prompts, Array, Array | int], Rollout]


def check_sampling(sampling: Sampling) -> None:
    """Check that tokens are drawn from the complete distribution.

    The trainer's log-probabilities are those of this distribution. A filter or a penalty samples from another one: the
    ratio of the two policies is then not 1 before the first update.

    Raises:
        UserError: A setting changes the distribution, or ends a response in a way that no token shows.
    """
    for name, value in (("top_k", 0), ("top_p", 1), ("min_p", 0), ("repetition_penalty", 1)):
        if getattr(sampling, name) != value:
            raise UserError(
                f"{name}={getattr(sampling, name)}: a rollout must sample from all tokens with their own "
                f"probabilities; set {name}={value}"
            )
    if sampling.temperature == 0:
        raise UserError("temperature=0: a rollout must sample; set a temperature above 0, such as 1")
    if sampling.max_tokens < 1:
        raise UserError("max_tokens=0: a rollout needs at least one new token")
    if sampling.stop or sampling.past_end:
        raise UserError("stop and past_end do not apply to rollouts: only the end tokens end a response")


def flush_right(prompts: Sequence[Sequence[int]], width: int, vocab_size: int) -> Prompts:
    """Align prompts to one width, with padding in front.

    Args:
        prompts: Token ids.
        width: The width P.
        vocab_size: Number of ids of the model.

    Raises:
        UserError: A prompt is empty or too long, or has an id that the model does not know.
    """
    for row, ids in enumerate(prompts):
        if not 0 < len(ids) <= width:
            raise UserError(f"prompt {row} has {len(ids)} tokens; a prompt has at least 1 and at most {width}")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise UserError(f"prompt {row} has an id outside 0 to {vocab_size - 1}, the ids of the model")
    return Prompts(*prompt_samples.flush_right(prompts, width))


def tokens_sha256(tokens_BN: Any, mask_BN: Any) -> str:
    """Return the SHA-256 of sampled tokens; padding has no effect.

    It is that of the length and the ids of each row, as little-endian 32-bit integers.
    """
    digest = hashlib.sha256()
    for tokens_N, mask_N in zip(np.asarray(tokens_BN), np.asarray(mask_BN, bool), strict=True):
        ids = tokens_N[mask_N]
        digest.update(np.concatenate([[len(ids)], ids]).astype("<u4").tobytes())
    return digest.hexdigest()


# ---- The sampler --------------------------------------------------------------------------------------------------


def program(model: Any, settings: RolloutSettings) -> Program:
    """Return the compiled `sample` of a model; it compiles once for each shape of the prompts.

    On a mesh call it inside `axes.on`.
    """
    return jax.jit(partial(sample, model, settings=settings))


def sample(
    model: Any, params: Any, prompts: Prompts, rows_B: Array, update: Array | int, *, settings: RolloutSettings
) -> Rollout:
    """Sample a response to each prompt.

    Args:
        model: The policy, without dropout.
        params: Its parameters.
        prompts: The prompts, at least one token in each.
        rows_B: A number of each row from which its random key is derived, such as 0, 1, ...
        update: Number of the update.
        settings: How responses are sampled.

    Raises:
        UserError: Prompts and responses exceed the context, or the rows are not divisible into chunks.
    """
    sampling, (B, P) = settings.sampling, prompts.ids_BP.shape
    limit = incremental.limit(model.config)
    if limit is not None and P + sampling.max_tokens > limit:
        raise UserError(
            f"prompts of {P} and responses of {sampling.max_tokens} tokens exceed model.context={limit}; shorten one"
        )
    size = settings.rows or B
    if B % size:
        raise UserError(f"rows={size}: {B} rows of a rollout are not divisible into chunks of {size} rows")
    key = jax.random.fold_in(jax.random.fold_in(random_key(sampling.seed), _STREAM), update)
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(rows_B)
    prompts = Prompts(*(axes.constrain(jnp.asarray(x_BP), "batch", None) for x_BP in prompts))
    quick, quick_params = incremental.prepared(model, params, size)

    def of_chunk(chunk: tuple[Prompts, Array]) -> Rollout:
        (ids_RP, mask_RP), keys_R = chunk
        first_R = P - jnp.sum(mask_RP, axis=1, dtype=jnp.int32)
        logits_RV, state = incremental.read(model, params, ids_RP, first_B=first_R, size=P + sampling.max_tokens - 1)
        state = incremental.prepared_state(model.config, state)
        return _decode(quick, quick_params, logits_RV, state, keys_R, settings)

    if size == B:
        return of_chunk((prompts, keys_B))
    # Chunk c has the rows c, c + C, c + 2 C, ...: on a mesh that shards the rows each chunk has rows of all devices.
    chunks = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]).swapaxes(0, 1), (prompts, keys_B))
    rollouts = jax.lax.map(of_chunk, chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, *x.shape[2:]), rollouts)


class _Decoding(NamedTuple):
    """State of the rows that are being decoded."""

    #: Number of tokens that are decoded.
    i: Array
    #: Logits of the next token.
    logits_BV: Array
    #: State of the model.
    state: Any
    #: The rows that have not ended.
    alive_B: Array
    #: The responses so far.
    rollout: Rollout


def _decode(model: Any, params: Any, logits_BV: Array, state: Any, keys_B: Array, settings: RolloutSettings) -> Rollout:
    """Decode up to N tokens of all rows; stops when all have ended."""
    sampling = settings.sampling
    B, N, ends = len(keys_B), sampling.max_tokens, jnp.array(settings.ends, jnp.int32)

    def unfinished(decoding: _Decoding) -> Array:
        return (decoding.i < N) & decoding.alive_B.any()

    def step(decoding: _Decoding) -> _Decoding:
        i, logits_BV, state, alive_B, (tokens_BN, mask_BN, logprobs_BN, finished_B, finite_B) = decoding
        rngs_B = jax.vmap(partial(jax.random.fold_in, data=i))(keys_B)
        tokens_B = choose(logits_BV, rngs_B, kind=sampling.kind, temperature=sampling.temperature)
        finite_B &= (tokens_B >= 0) | ~alive_B
        alive_B &= tokens_B >= 0
        tokens_B = jnp.where(alive_B, tokens_B, 0)
        logprobs_B = estimates.token_logprobs(logits_BV, tokens_B, temperature=sampling.temperature)
        ended_B = alive_B & jnp.isin(tokens_B, ends)
        rollout = Rollout(
            tokens_BN.at[:, i].set(tokens_B),
            mask_BN.at[:, i].set(alive_B),
            logprobs_BN.at[:, i].set(estimates.masked(logprobs_B, alive_B)),
            finished_B | ended_B,
            finite_B,
        )
        logits_BV, state = incremental.extend(model, params, tokens_B, state)
        return _Decoding(i + 1, logits_BV, state, alive_B & ~ended_B, rollout)

    nothing = Rollout(
        jnp.zeros((B, N), jnp.int32),
        jnp.zeros((B, N), bool),
        jnp.zeros((B, N), jnp.float32),
        jnp.zeros(B, bool),
        jnp.ones(B, bool),
    )
    start = _Decoding(jnp.int32(0), logits_BV, state, jnp.ones(B, bool), nothing)
    return jax.lax.while_loop(unfinished, step, start).rollout


# ---- The trainer's forward pass -------------------------------------------------------------------------------------


def sequences(prompts: Prompts, tokens_BN: Array) -> dict[str, Any]:
    """Return the arguments of `GPT.__call__` for [prompt | response], all (B, T).

    The padding of the prompts is a segment of its own, and position 0 is that of the first token of a prompt. A model
    with learned positions would otherwise see other positions with another amount of padding.
    """
    B, N = tokens_BN.shape
    mask_BP = jnp.asarray(prompts.mask_BP, bool)
    segments_BT = jnp.concatenate([mask_BP, jnp.ones((B, N), bool)], axis=1).astype(jnp.int32)
    return {
        "inputs_BT": jnp.concatenate([jnp.asarray(prompts.ids_BP), tokens_BN], axis=1),
        "segments_BT": segments_BT,
        "positions_BT": jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0),
    }


def response_logits(model: Any, params: Any, prompts: Prompts, tokens_BN: Array) -> Array:
    """Return the logits (B, N, V) that predict each response token, without dropout.

    Raises:
        UserError: The model is no GPT.
    """
    if not isinstance(model.config, GPTConfig):
        raise UserError(f"model.family={model.config.family} cannot be trained on rollouts; use model.family=gpt")
    P, N = prompts.ids_BP.shape[1], tokens_BN.shape[1]
    read = {
        name: x_BT[:, :-1] for name, x_BT in sequences(prompts, tokens_BN).items()
    }  # nothing follows the last token
    places_BN = jnp.broadcast_to(jnp.arange(P - 1, P + N - 1), tokens_BN.shape)
    return model.apply({"params": params}, read.pop("inputs_BT"), **read, places_BN=places_BN)


def response_logprobs(model: Any, params: Any, prompts: Prompts, rollout: Rollout, *, temperature: float) -> Array:
    """Return log p (B, N) of the tokens of a rollout, by the trainer's forward pass.

    It is 0 at padding. With the parameters and the temperature of the rollout it equals `rollout.logprobs_BN` up to
    rounding.
    """
    logits_BNV = response_logits(model, params, prompts, rollout.tokens_BN)
    return estimates.masked(
        estimates.token_logprobs(logits_BNV, rollout.tokens_BN, temperature=temperature), rollout.mask_BN
    )
