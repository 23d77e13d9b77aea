"""An episode: the answers that a policy samples in an update, and learning from them.

An update of a run has three parts: `Episode.sample`, rewards on the host, `Episode.learn`. Each is a pure function of
the state, the seed and the number of the update, so that a run that is killed in any of them repeats the same answers.

Shapes: K microbatches of m prompts, G answers of each prompt; R = K m G rows of an episode, of which m G are computed
at a time; P, N as in `rollouts`; E epochs of M minibatches, each of C = K / M parts. Rows of a group are adjacent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from lmjax.config import GuardConfig, OptimizerConfig
from lmjax.config.policies import PolicyConfig
from lmjax.inference.sampling import Sampling
from lmjax.parallel import axes
from lmjax.rl import advantages, estimates, rollouts
from lmjax.rl.rollouts import Prompts, Rollout, RolloutSettings
from lmjax.system.seeds import random_key
from lmjax.training.state import State
from lmjax.training.step import Proposal, accept, accumulate, decay_of

_STREAM = 0x6C726E00  # separates the keys of the minibatches from those of the rollouts

Metrics = dict[str, Array]


class Answers(NamedTuple):
    """The answers of an episode, with their prompts."""

    #: The prompt of each row.
    prompts: Prompts
    rollout: Rollout
    #: Number of the conversation that the prompt is from.
    record_R: Array


class Measured(NamedTuple):
    """Estimates of the policy that sampled, by the trainer's forward pass; (R, N)."""

    #: log p of the tokens.
    logprobs: Array
    #: log p of the tokens of the reference.
    reference: Array
    #: Exact KL divergence to the reference.
    kl: Array
    #: Entropy.
    entropy: Array


@dataclass(frozen=True)
class Episode(ABC):
    """Settings of all episodes of a run. A subclass has the targets and the loss of a method.

    The optimizer steps change a dict of trees of parameters: `policy`, and others that the method adds.
    """

    #: Linen module of the policy.
    model: Any
    optimizer: optax.GradientTransformation
    objective: PolicyConfig
    guard: GuardConfig
    averaging: OptimizerConfig
    #: Seed of the run.
    seed: int
    #: Ids that end an answer.
    ends: tuple[int, ...]
    #: Lays out the gradients on the devices that hold the parameters of the same shape.
    place: Callable[[Any], Any] = lambda gradients: gradients

    # ---- Sampling --------------------------------------------------------------------------------------------------

    def sample(self, params: Any, arrays: Mapping[str, Array], update: Array | int) -> Answers:
        """Sample the answers of an episode.

        Args:
            params: Parameters of the policy.
            arrays: `ids_BP`, `mask_BP` and `record_B` of the prompts, (K, m, ...).
            update: Number of the update.
        """
        group = self.objective.group
        ids_RP, mask_RP, record_R = (
            flat(jnp.repeat(jnp.asarray(arrays[name]), group, axis=1)) for name in ("ids_BP", "mask_BP", "record_B")
        )
        rows = arrays["record_B"].shape[1] * group
        settings = RolloutSettings(
            Sampling(max_tokens=self.objective.answer_tokens, temperature=self.objective.temperature, seed=self.seed),
            self.ends,
            rows,
        )
        prompts = Prompts(ids_RP, mask_RP)
        rollout = rollouts.sample(self.model, params, prompts, jnp.arange(len(record_R)), update, settings=settings)
        return Answers(prompts, rollout, record_R)

    # ---- Learning --------------------------------------------------------------------------------------------------

    def learn(
        self, state: State, reference: Any, batch: dict[str, Any], answers: Answers, rewards_R: Array
    ) -> tuple[State, Metrics]:
        """Apply the optimizer steps of an episode; jit it with `donate_argnums=0`.

        Unless the guard's policy is `off`, a suspect episode leaves every leaf of the state unchanged. Its loss, as the
        guard and the journal have it, is minus the mean score, which is suspect if it falls or leaps up; its gradient
        norm is the mean over the steps.

        Args:
            state: The training state.
            reference: Parameters of the reference.
            batch: The scheduled batch (`lmjax.training.step`).
            answers: The answers of `sample` with the parameters of the state.
            rewards_R: Their rewards.
        """
        config, rollout = self.objective, answers.rollout
        chunks = batch["arrays"]["record_B"].shape[0]
        measured = self.measure(state.params, reference, answers, chunks)
        scores_R = advantages.penalize_unfinished(rewards_R, rollout.finished_B, penalty=config.unfinished_penalty)
        targets, own_metrics = self._targets(state, answers, measured, scores_R, chunks)
        rows = targets | {
            "ids_BP": answers.prompts.ids_BP,
            "mask_BP": answers.prompts.mask_BP,
            "tokens_BN": rollout.tokens_BN,
            "real_BN": rollout.mask_BN,
            "old_BN": measured.logprobs,
        }
        trees, moments, steps = self._steps(state, rows, chunks, batch["learning_rate"])
        params = trees["policy"]
        change = jax.tree.map(jnp.subtract, params, state.params)
        average = state.ema
        if average is not None:
            decay = decay_of(self.averaging.ema, state.update, warmup=self.averaging.ema_warmup)
            average = optax.incremental_update(params, average, 1 - decay)
        proposal = Proposal(change, params, optax.tree.norm(trees), moments["policy"], average)
        loss, norm = jnp.where(jnp.all(rollout.finite_B), 0 - jnp.mean(scores_R), jnp.nan), jnp.mean(steps["grad_norm"])
        with jax.named_scope("guard"):
            carry = self._carry(state, trees, moments, measured)
            next_state, applied, verdict = accept(
                state, batch, proposal, self.guard, loss=loss, norm=norm, carry=carry, two_sided=True
            )
        metrics = {
            "loss": loss,
            **_of_answers(rollout, measured, rewards_R),
            **own_metrics,
            **_of_steps(steps),
            "grad_norm": norm,
            "update_norm": optax.tree.norm(change),
            "param_norm": proposal.param_norm,
            **verdict,
            "skipped": 1 - applied.astype(jnp.int32),
        }
        return next_state, metrics | ({"vote": jnp.max(batch["votes"])} if "votes" in batch else {})

    def measure(self, params: Any, reference: Any, answers: Answers, chunks: int) -> Measured:
        """Compute the forward passes of policy and reference, m G rows at a time."""
        temperature = self.objective.temperature

        def of_chunk(part: tuple[Prompts, Array, Array]) -> Measured:
            prompts, tokens_BN, mask_BN = part
            logits, reference_logits = (
                rollouts.response_logits(self.model, tree, prompts, tokens_BN) for tree in (params, reference)
            )
            logprobs, reference_logprobs = (
                estimates.token_logprobs(x, tokens_BN, temperature=temperature) for x in (logits, reference_logits)
            )
            kl = estimates.exact_kl(logits, reference_logits, temperature=temperature)
            entropy = estimates.entropy(logits, temperature=temperature)
            return Measured(*(estimates.masked(x_BN, mask_BN) for x_BN in (logprobs, reference_logprobs, kl, entropy)))

        rollout = answers.rollout
        parts = divide((answers.prompts, rollout.tokens_BN, rollout.mask_BN), chunks)
        return jax.tree.map(flat, lax.map(of_chunk, parts))

    def _steps(
        self, state: State, rows: Mapping[str, Array], chunks: int, learning_rate: Array
    ) -> tuple[dict[str, Any], dict[str, Any], Metrics]:
        """Apply the optimizer steps: trees and optimizer states after them, and sums of each step."""
        minibatches = self._minibatches(rows, chunks, state.update)
        parts, rates = jnp.int32(chunks // self.objective.minibatches), self._rates()

        def place(gradients: dict[str, Any]) -> dict[str, Any]:
            return gradients | {"policy": self.place(gradients["policy"])}

        def step(before: Any, minibatch: Mapping[str, Array]) -> tuple[Any, Metrics]:
            trees, moments = dict(before[0]), dict(before[1])
            batch = {"arrays": dict(minibatch), "microbatches": parts}
            total, _ = accumulate(self._loss, trees, batch, random_key(self.seed), None, place)
            gradients, (_, weight, sums) = total
            scale = 1 / jnp.where(weight > 0, weight, 1)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
            for name, rate in rates.items():
                step_size = -learning_rate * rate
                direction, moments[name] = self.optimizer.update(gradients[name], moments[name], trees[name])
                change = jax.tree.map(lambda d, by=step_size: by * d, direction)
                trees[name] = optax.apply_updates(trees[name], change)
            of_loss = {name: sums.pop(name) * scale for name in tuple(sums) if name.endswith("_loss")}
            return (trees, moments), sums | of_loss | {"grad_norm": optax.tree.norm(gradients["policy"])}

        (trees, moments), steps = lax.scan(step, self._trees(state), minibatches)
        return trees, moments, steps

    # ---- Of a method -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _targets(
        self, state: State, answers: Answers, measured: Measured, scores_R: Array, chunks: int
    ) -> tuple[dict[str, Array], Metrics]:
        """Return arrays (R, ...) for the loss, and metrics.

        The loss also has the tokens and the old log-probabilities.

        `chunks`: number of parts in which the rows are computed.
        """

    @abstractmethod
    def _loss(self, trees: Mapping[str, Any], rows: Mapping[str, Array], rng: Array) -> tuple[Array, Array, Metrics]:
        """Return the sums of a part of a minibatch: loss, weight, and further sums.

        These are `tokens`, `clipped`, `ratio` and `approximate_kl`, perhaps `value_clipped`, and losses, named
        `..._loss`.
        """

    def _trees(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the trees of parameters that the steps change, and their optimizer states."""
        return {"policy": state.params}, {"policy": state.opt_state}

    def _rates(self) -> dict[str, float]:
        """Return the learning rate of each tree as a multiple of the batch's."""
        return {"policy": 1.0}

    def _carry(self, state: State, trees: Mapping[str, Any], moments: Mapping[str, Any], measured: Measured) -> Any:
        """Return the carry of the next state."""
        return state.carry

    def _logprobs(self, params: Any, rows: Mapping[str, Array]) -> Array:
        """Return log p of the tokens of rows, 0 at padding."""
        prompts, tokens_BN = Prompts(rows["ids_BP"], rows["mask_BP"]), rows["tokens_BN"]
        logits_BNV = rollouts.response_logits(self.model, params, prompts, tokens_BN)
        logprobs_BN = estimates.token_logprobs(logits_BNV, tokens_BN, temperature=self.objective.temperature)
        return estimates.masked(logprobs_BN, rows["real_BN"])

    def _minibatches(self, rows: Mapping[str, Array], chunks: int, update: Array) -> dict[str, Array]:
        """Divide the rows of each epoch, in a random order, into minibatches: (E M, C, m G, ...)."""
        epochs, count = self.objective.epochs, self.objective.minibatches
        parts = chunks // count
        if epochs * count == 1:  # the order of the rows has no effect on a sum
            return {name: _rows_last(x_R.reshape(1, chunks, -1, *x_R.shape[1:])) for name, x_R in rows.items()}
        key = jax.random.fold_in(jax.random.fold_in(random_key(self.seed), _STREAM), update)
        keys_E = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(epochs))
        order_ER = jax.vmap(lambda key: jax.random.permutation(key, len(rows["old_BN"])))(keys_E)
        return {
            name: _rows_last(x_R[order_ER].reshape(epochs * count, parts, -1, *x_R.shape[1:]))
            for name, x_R in rows.items()
        }


# ---- Layout -------------------------------------------------------------------------------------------------------


def flat(x: Array) -> Array:
    """Join the first two axes."""
    return x.reshape(-1, *x.shape[2:])


def divide(tree: Any, chunks: int) -> Any:
    """Divide rows (R, ...) into (K, m G, ...), each sharded over the devices."""
    return jax.tree.map(
        lambda x: axes.constrain(
            jnp.asarray(x).reshape(chunks, -1, *x.shape[1:]), None, "batch", *[None] * (x.ndim - 1)
        ),
        tree,
    )


def _rows_last(x: Array) -> Array:
    """Shard the rows of minibatches (E M, C, m G, ...)."""
    return axes.constrain(x, None, None, "batch", *[None] * (x.ndim - 3))


# ---- Metrics ------------------------------------------------------------------------------------------------------


def _of_answers(rollout: Rollout, measured: Measured, rewards_R: Array) -> Metrics:
    """Return the metrics of the policy that sampled, named as in `measures.POLICY`."""
    mask_RN, rows = rollout.mask_BN, len(rewards_R)
    tokens = jnp.sum(mask_RN).astype(jnp.float32)
    difference_RN = jnp.abs(rollout.logprobs_BN - measured.logprobs)
    return {
        "weight": tokens,
        "reward": jnp.mean(rewards_R),
        "kl": estimates.masked_sum(measured.kl, mask_RN) / rows,
        "exact_kl": jnp.min(jnp.where(mask_RN, measured.kl, jnp.inf)),
        "entropy": estimates.masked_mean(measured.entropy, mask_RN, tokens),
        "length": tokens / rows,
        "finished": jnp.mean(rollout.finished_B.astype(jnp.float32)),
        "sampler_difference": jnp.max(estimates.masked(difference_RN, mask_RN)),
    }


def _of_steps(steps: Metrics) -> Metrics:
    """Return the metrics of the optimizer steps of an episode.

    In the first step the policy is the one that sampled: with one step, only the canaries say something.
    """
    tokens = jnp.maximum(steps["tokens"], 1)
    total = jnp.sum(tokens)
    sums = {"approximate_kl": "approximate_kl", "clip_fraction": "clipped", "mean_ratio": "ratio"}
    sums |= {"value_clip_fraction": "value_clipped"} if "value_clipped" in steps else {}
    return {
        **{name: jnp.mean(values) for name, values in steps.items() if name.endswith("_loss")},
        **{name: jnp.sum(steps[key]) / total for name, key in sums.items() if len(tokens) > 1},
        "ratio_error": jnp.abs(steps["ratio"][0] / tokens[0] - 1),
        "first_clip_fraction": steps["clipped"][0] / tokens[0],
        "first_approximate_kl": steps["approximate_kl"][0] / tokens[0],
    }
