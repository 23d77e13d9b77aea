"""What is read from a run directory: the configuration, checkpoints, the trained model."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from lmjax.config import Config, GPTConfig, UserError, codec
from lmjax.data.tokenizer import Tokenizer, load_tokenizer
from lmjax.objectives import registry
from lmjax.objectives.objective import Objective
from lmjax.optim import optimizer
from lmjax.run.build import averaged, initial
from lmjax.training import checkpoint, metrics


@dataclass(frozen=True)
class LoadedRun:
    """A model to use: `model.apply({"params": params}, ids)`."""

    config: Config
    task: Objective
    params: Any
    tokenizer: Tokenizer
    update: int

    @property
    def model(self) -> Any:
        """The Linen module."""
        return self.task.model


def load(run_dir: Path, update: int | None = None) -> LoadedRun:
    """The newest whole checkpoint of a run, or that of update `update`.

    UserError: not a run, or no such checkpoint. CheckpointError: none can be read.
    """
    config = saved_config(run_dir)
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    if update is not None and update not in saved:
        raise UserError(f"{run_dir} has no checkpoint of update {update}, but of {', '.join(map(str, sorted(saved)))}")
    model: Any = config.model
    if isinstance(model, GPTConfig):  # a kernel of other devices than these
        model = dataclasses.replace(model, attention="auto")
    task = registry.objective_without_data(dataclasses.replace(config, model=model))
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(partial(initial, config, task, optimizer.make_optimizer(config.optimizer))),
    )
    found, state, _ = checkpoint.load(run_dir / "checkpoints", abstract, update=update)
    known = load_tokenizer(run_dir / "tokenizer.json")
    return LoadedRun(config, task, averaged(state), known, found.meta["update"])


def saved_config(run_dir: Path) -> Config:
    """The configuration of a run. UserError: it is not a run."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    return codec.from_json((run_dir / "config.json").read_text(), Config)


def best(run_dir: Path) -> tuple[int, float] | None:
    """The checkpoint with the lowest validation loss, of those that are kept and evaluated: (update, loss)."""
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    records = metrics.read(run_dir / "metrics.jsonl")
    scores = {r["update"]: r["val_loss"] for r in records if r.get("val_loss") and r["update"] in saved}
    update = min(scores, key=lambda update: scores[update], default=None)
    return None if update is None else (update, scores[update])
