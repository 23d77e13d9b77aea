"""Read a run directory: its configuration, its checkpoints and its trained model."""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from lmjax.config import Config, GPTConfig, UserError, presets
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.data.tokenizer import Tokenizer, load_tokenizer
from lmjax.models import registry
from lmjax.objectives.objective import Objective
from lmjax.objectives.registry import objective_without_data
from lmjax.optim import optimizer
from lmjax.run import config_hash
from lmjax.run.build import averaged, initial
from lmjax.training import checkpoint, metrics

_LARGEST = 1 << 24  # bytes of a summary


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, to use as `model.apply({"params": params}, ids)`."""

    config: Config
    objective: Objective
    params: Any
    tokenizer: Tokenizer
    update: int

    @property
    def model(self) -> Any:
        """The Linen module."""
        return self.objective.model


def load(run_dir: Path, update: int | None = None) -> LoadedRun:
    """Load the newest checkpoint of a run, or that of update `update`.

    A resume may take an older checkpoint, because training repeats the updates between them. Here nothing would, so a
    damaged newest checkpoint is refused.

    Raises:
        UserError: There is no run, or no such checkpoint, or config.json or tokenizer.json was damaged or edited, or
            the newest checkpoint is damaged and an older one is not.
        CheckpointError: No checkpoint can be read.
    """
    config = saved_config(run_dir)
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    if update is not None and update not in saved:
        raise UserError(f"{run_dir} has no checkpoint of update {update}, but of {', '.join(map(str, sorted(saved)))}")
    model: Any = config.model
    if isinstance(model, GPTConfig):  # the run may have used a kernel that this machine lacks
        model = dataclasses.replace(model, attention="auto")
    registry.check(model)
    objective = objective_without_data(dataclasses.replace(config, model=model))
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(partial(initial, config, objective, optimizer.make_optimizer(config.optimizer))),
    )
    restored, state, problems = checkpoint.load(run_dir / "checkpoints", abstract, update=update)
    if problems:
        newest = run_dir / "checkpoints" / str(max(saved))
        raise UserError(
            f"{run_dir}: {problems[0]}; bring {newest} back, or remove it to use the checkpoint of update "
            f"{restored.meta['update']}"
        )
    tokenizer = _tokenizer(run_dir / "tokenizer.json", restored.meta.get("tokenizer_sha256"))
    return LoadedRun(config, objective, averaged(state), tokenizer, restored.meta["update"])


def _tokenizer(path: Path, sha256: Any) -> Tokenizer:
    """Load the tokenizer of a run, whose hash is that of its checkpoint (None: unknown).

    Raises:
        UserError: It is another one.
    """
    tokenizer = load_tokenizer(path)
    # Another version of the library may write the same tokenizer in another way: then the file itself is compared.
    if sha256 not in (None, tokenizer.sha256, hashlib.sha256(read_regular(path)).hexdigest()):
        raise UserError(
            f"{path} was damaged or edited: it is not the tokenizer of the checkpoint; bring it back as it was (a "
            "resume of an unfinished run writes it again)"
        )
    return tokenizer


def saved_config(run_dir: Path) -> Config:
    """Return the configuration of a run.

    Raises:
        UserError: There is no run, or its configuration was damaged or edited.
    """
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    config_hash.check(run_dir)
    return presets.read(run_dir / "config.json")


def earlier_stage(run_dir: Path, *, otherwise: str) -> str:
    """Return the command that trains a missing run, if its name is that of a preset.

    Args:
        run_dir: Directory of the run.
        otherwise: Setting that names another one.
    """
    if run_dir.exists() or run_dir.parent.name != "runs" or run_dir.name not in presets.names():
        return ""
    return f"; train this stage first with `python train.py {run_dir.name}`, or give {otherwise}"


def best(run_dir: Path) -> tuple[int, float] | None:
    """Return (update, loss) of the checkpoint with the lowest validation loss, or None."""
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    scores = metrics.scores(metrics.read(run_dir / "metrics.jsonl"))
    update = min(saved & scores.keys(), key=lambda update: (scores[update], update), default=None)
    return None if update is None else (update, scores[update])


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return summary.json of a run; empty if it is missing or damaged."""
    try:
        summary = parse_json(read_regular(run_dir / "summary.json", largest=_LARGEST), "summary.json", largest=_LARGEST)
    except (OSError, UserError):
        return {}
    return summary if isinstance(summary, dict) else {}
