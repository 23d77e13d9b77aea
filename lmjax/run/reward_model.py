"""The reward model of a policy: a run, pinned by the digest of its parameters."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
from jax import Array, lax

from lmjax.config import UserError
from lmjax.config.policies import PolicyConfig
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.data.chat_tokens import chat_form
from lmjax.inference import incremental
from lmjax.models import registry
from lmjax.models.scalar import Scalar
from lmjax.objectives.reward import RewardModel
from lmjax.parallel import axes, mesh
from lmjax.pytrees import digest
from lmjax.rl import learned
from lmjax.rl.episode import Answers, divide, flat
from lmjax.run import saved
from lmjax.run.build import Run, on_mesh, plan_batches
from lmjax.run.saved import LoadedRun
from lmjax.training import checkpoint


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained reward model."""

    loaded: LoadedRun
    #: Digest of its parameters.
    sha256: str

    @property
    def model(self) -> Scalar:
        """The Linen module."""
        assert isinstance(self.loaded.model, Scalar)
        return self.loaded.model


def judge_of(run: Run) -> Judge | None:
    """Return the reward model of a run; None if its reward is not learned.

    Raises:
        UserError: There is no such reward model, its scores have no scale, or it has another tokenizer or too
            short a context.
        CheckpointError: Its checkpoint cannot be read.
    """
    objective = run.config.objective
    if not isinstance(objective, PolicyConfig) or not isinstance(objective.reward, LearnedRewardConfig):
        return None
    path, key = Path(objective.reward.run), f"objective.reward.run={objective.reward.run}"
    if not (path / "config.json").is_file():
        hint = saved.earlier_stage(path, otherwise="objective.reward.run=RUN")
        raise UserError(f"{key} is not a run: it has no config.json{hint}")
    judge = _load(path, _version(path))
    if not isinstance(judge.loaded.objective, RewardModel):
        family = judge.loaded.config.objective.family
        raise UserError(f"{key} has objective.family={family}; give the run of a reward model")
    scale, updates = judge.loaded.params["calibration"], plan_batches(judge.loaded.config).updates
    if judge.loaded.update < updates or (float(scale["gain"]) == 1 and float(scale["bias"]) == 0):
        raise UserError(
            f"{key} has scores without a scale at update {judge.loaded.update}: the last update of its run, {updates}, "
            f"sets gain and bias; complete it with `python train.py --resume {objective.reward.run}`, or bring its "
            "last checkpoint back"
        )
    if judge.loaded.tokenizer.sha256 != run.store.tokenizer.sha256:
        raise UserError(
            f"{key} has another tokenizer than the policy, whose tokens it would misread; train both from the same "
            "model"
        )
    limit, context = incremental.limit(judge.model.config), getattr(run.config.model, "context", 0)
    if limit is not None and limit < context:
        raise UserError(f"{key} reads at most {limit} tokens, and model.context={context}; lower model.context")
    return judge


@lru_cache(1)  # start, resume and audit ask several times
def _load(run_dir: Path, version: str) -> Judge:
    """Load the newest checkpoint of a run."""
    loaded = saved.load(run_dir)
    return Judge(loaded, digest(loaded.params))


def _version(run_dir: Path) -> str:
    """Return a hash that changes with the checkpoints of a run."""
    manifests = [folder / "manifest.json" for folder in checkpoint.folders(run_dir / "checkpoints")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in manifests if path.is_file())).hexdigest()


def fingerprint(run: Run) -> dict[str, str]:
    """Return the field of the journal that pins the reward model; empty without one."""
    judge = judge_of(run)
    return {} if judge is None else {"reward_sha256": judge.sha256}


def scorer(run: Run) -> Callable[[Answers, int], Array] | None:
    """Return a function (answers, chunks) to the scores (R), or None without a reward model.

    Every process has all scores. `chunks` is the number of parts in which the rows are computed.
    """
    judge = judge_of(run)
    if judge is None:
        return None
    model, end = judge.model, chat_form(run.store.tokenizer).end
    host = jax.device_get(judge.loaded.params)
    shardings = axes.shardings(host, host, mesh=run.mesh, table=registry.logical_axes(model.config))
    params = jax.tree.map(mesh.put_tree, host, shardings)

    def of_chunk(params: Any, part: tuple[Any, Array, Array]) -> Array:
        return learned.scores(model, params, *part, end=end)

    def score(params: Any, answers: Answers, chunks: int) -> Array:
        with on_mesh(run):
            parts = divide((answers.prompts, answers.rollout.tokens_BN, answers.rollout.mask_BN), chunks)
            return flat(lax.map(partial(of_chunk, params), parts))

    compiled = jax.jit(score, static_argnums=2, out_shardings=mesh.replicated(run.mesh))
    return partial(compiled, params)
