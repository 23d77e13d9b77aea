"""Episodes of a run: the step of the loop, the canaries, the reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config import Config, PPOConfig, UserError
from lmjax.config.errors import RunError
from lmjax.config.policies import PolicyConfig
from lmjax.config.rewards import FunctionConfig, LearnedRewardConfig
from lmjax.data.sources.tables import SIDES, Side
from lmjax.inference.language_model import LanguageModel
from lmjax.objectives.policy import Policy
from lmjax.parallel import mesh
from lmjax.rl import measures, rewards, rollouts
from lmjax.rl.episode import Answers, Episode
from lmjax.rl.grpo import GroupEpisode
from lmjax.rl.ppo import CriticEpisode
from lmjax.rl.rewards import Scores
from lmjax.run import reward_model
from lmjax.run.build import Run, on_mesh
from lmjax.system import faults
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError
from lmjax.training.state import State
from lmjax.training.step import Step

_TRIED = 1000  # rows of a side


@dataclass(frozen=True, eq=False)
class Episodes:
    """The compiled parts of the episodes of a run."""

    run: Run

    @cached_property
    def objective(self) -> Policy:
        """The objective of the run."""
        assert isinstance(self.run.objective, Policy)
        return self.run.objective

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        if self.run.store is None:  # a run that is only compiled: which ids end an answer has no effect on sizes
            return ()
        tokenizer = self.run.store.tokenizer
        stops = self.objective.stops(tokenizer)
        return tuple(sorted(LanguageModel(self.run.model, None, tokenizer, stops=stops).ends))

    @cached_property
    def episode(self) -> Episode:
        """The settings of the episodes."""
        run, config = self.run, self.run.config
        assert isinstance(config.objective, PolicyConfig)

        def place(gradients: Any) -> Any:
            return jax.lax.with_sharding_constraint(gradients, run.shardings.params) if run.mesh.size > 1 else gradients

        kind: type[Episode] = CriticEpisode if isinstance(config.objective, PPOConfig) else GroupEpisode
        settings: Any = config.objective  # the type that `kind` has
        return kind(
            model=run.model,
            optimizer=run.optimizer,
            objective=settings,
            guard=config.guard,
            averaging=config.optimizer,
            seed=config.seed,
            ends=self.ends,
            place=place,
        )

    @cached_property
    def sample(self) -> Callable[[Any, Any, Any], Answers]:
        """The compiled `Episode.sample`; every process has all of its results."""

        def sample(params: Any, arrays: Any, update: Any) -> Answers:
            with on_mesh(self.run):
                return self.episode.sample(params, arrays, update)

        return jax.jit(sample, out_shardings=mesh.replicated(self.run.mesh))

    @cached_property
    def learn(self) -> jax.stages.Wrapped:
        """The compiled `Episode.learn`; it donates the state."""

        def learn(state: State, reference: Any, batch: Any, answers: Answers, rewards_R: Any) -> Any:
            with on_mesh(self.run):
                return self.episode.learn(state, reference, batch, answers, rewards_R)

        return jax.jit(learn, donate_argnums=0, out_shardings=(self.run.shardings, None))

    @cached_property
    def reward(self) -> rewards.RewardFunction:
        """The verifiable reward of an answer."""
        config = self.episode.objective.reward
        assert not isinstance(config, LearnedRewardConfig)
        return rewards.build(config)

    @cached_property
    def learned_scores(self) -> Callable[[Answers, int], Any] | None:
        """The scores of the reward model; None: the reward is verifiable."""
        return reward_model.scorer(self.run)

    def texts(self, answers: Answers) -> list[str]:
        """Return the texts of answers, without the end token."""
        tokens_RN, mask_RN = jax.device_get((answers.rollout.tokens_BN, answers.rollout.mask_BN))
        is_text_RN = mask_RN & ~np.isin(tokens_RN, self.ends)
        decode = self.run.store.tokenizer.decode
        return [decode(tokens_N[is_text_N]) for tokens_N, is_text_N in zip(tokens_RN, is_text_RN, strict=True)]

    def scores(self, side: Side, answers: Answers, texts: Sequence[str]) -> Scores:
        """Return the rewards of answers to prompts of a side of the split.

        Raises:
            UserError: A user's function failed for most answers.
        """
        if self.learned_scores is not None:
            rows = self.run.config.batch.microbatch * self.episode.objective.group
            return Scores(np.asarray(self.learned_scores(answers, len(texts) // rows), np.float64))
        records = jax.device_get(answers.record_R).tolist()
        columns = {record: self.objective.samples.columns(side, record) for record in set(records)}
        scores = rewards.score(self.reward, texts, [columns[record] for record in records])
        if scores.failed > measures.POLICY["reward_failures"].possible[1] * len(texts):
            raise UserError(
                f"{scores.failed} of {len(texts)} answers have no reward: {scores.failure}; correct the function, then "
                "resume the run"
            )
        return scores


def check_reward(run: Run) -> None:
    """Check, before a run begins, that its reward can be computed for each of its rows.

    Raises:
        UserError: A setting is invalid, or a row lacks what the reward needs.
    """
    config, objective = run.config.objective, run.objective
    if not isinstance(config, PolicyConfig) or isinstance(config.reward, LearnedRewardConfig):
        return
    assert isinstance(objective, Policy)
    reward, samples = rewards.build(config.reward), objective.samples
    if isinstance(config.reward, FunctionConfig):  # of a user; what it raises is counted
        return
    for side in SIDES:
        for record in samples.fitting[side].records[:_TRIED].tolist():
            try:
                reward("", samples.columns(side, record))
            except UserError as error:
                raise UserError(f"conversation {record + 1} for {side}: {error}") from None


def make_step(run: Run, reference: Any) -> Step:
    """Build the step `(state, batches) -> (state, metrics)` of one episode.

    Args:
        run: The run.
        reference: Parameters of the reference (`reference_of`).
    """
    parts = Episodes(run)

    def step(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, Any]]:
        (batch,) = batches
        number = int(jax.device_get(batch["update"])) + 1
        answers = parts.sample(state.params, batch["arrays"], state.update)
        logprobs_RN = faults.change("logprobs", answers.rollout.logprobs_BN, at=number)
        answers = answers._replace(rollout=answers.rollout._replace(logprobs_BN=logprobs_RN))
        texts, tokens = parts.texts(answers), jax.device_get(answers.rollout[:2])
        faults.reach("episode.sampled", at=number)
        scores = parts.scores("train", answers, texts)
        values_R = faults.change("rewards", scores.values_B.astype(np.float32), at=number)
        faults.reach("episode.rewarded", at=number)
        with jax.transfer_guard("allow"):  # the loop forbids implicit transfers; this one is intended
            rewards_R = mesh.put_tree(values_R, mesh.replicated(run.mesh))
        state, step_metrics = parts.learn(state, reference, batch, answers, rewards_R)
        check_canaries(jax.device_get(step_metrics), run.config, number)
        return state, step_metrics | {
            "distinct": np.float32(len(set(texts)) / len(texts)),
            "reward_failures": np.float32(scores.failed / len(texts)),
            "tokens_sha256": np.asarray(rollouts.tokens_sha256(*tokens)),
        }

    return step


def lower_learning(run: Run) -> Any:
    """Lower `Episodes.learn` of a run without data; the devices may be absent."""
    parts, state, batch = Episodes(run), run.abstract_state, run.abstract_batch
    everywhere = mesh.replicated(run.mesh)

    def sample(params: Any, arrays: Any) -> tuple[Answers, jax.Array]:
        with on_mesh(run):
            answers = parts.episode.sample(params, arrays, 0)
        return answers, jnp.zeros(len(answers.record_R), jnp.float32)

    shapes = jax.eval_shape(sample, state.params, batch["arrays"])
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes)
    return parts.learn.lower(state, state.params, batch, *inputs)


def check_canaries(values: Mapping[str, Any], config: Config, number: int) -> None:
    """Check what cannot be in a correct program; values that are not finite are the guard's.

    Raises:
        RunError: A canary is outside its bounds.
    """
    for name, measure in measures_of(config).items():
        low, high = measure.possible
        value = float(values.get(name, 0.0))
        if np.isfinite(value) and name in values and not low <= value <= high:
            raise RunError(
                f"update {number}: {measure.title} is {value:.3g}, possible is {low:.3g} to {high:.3g}: "
                f"{measure.advice}; the newest checkpoint is a healthy one"
            )


def measures_of(config: Config) -> Mapping[str, measures.Measure]:
    """Return the measures of a policy, with the tolerances of the model's products."""
    exact = measures.is_exact(config.model.dtype, jax.default_backend())
    return measures.POLICY if exact else measures.POLICY_BFLOAT16


def reference_of(run: Run, folder: Path, state: State | None) -> Any:
    """Return the parameters of the reference: those of the policy before its first update.

    Args:
        run: The run.
        folder: Its checkpoints, of which that of update 0 is never deleted.
        state: The current state, if no checkpoint is saved yet; the parameters are copied.

    Raises:
        CheckpointError: The checkpoint of update 0 is missing or damaged.
    """
    if state is not None and int(state.update) == 0:
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=run.shardings.params)(state.params)
    first = folder / "0"
    if not first.is_dir():
        raise CheckpointError(
            f"{first} is missing: its parameters are the reference of the policy; bring it back from a copy of the run"
        )
    if problem := checkpoint.verify(first):
        raise CheckpointError(f"{first}, the reference of the policy: {problem}")
    return checkpoint.restore(checkpoint.read(first), run.abstract_state).params
