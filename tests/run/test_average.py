"""The running average of the parameters, computed again in numpy from the parameters of every checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import Config, OptimizerConfig
from lmjax.config.codec import apply_overrides, to_json
from lmjax.data.store import preparation
from lmjax.run import build, saved
from lmjax.training import checkpoint
from lmjax.training.state import abstract_state
from tests import small
from tests.faults import runs

UPDATES, EMA = 15, 0.6  # the limit of the decay, (1 + n) / (10 + n), is lower up to update 12
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@pytest.fixture
def config(corpus: Path) -> Config:
    """A checkpoint after every update; a batch of 16 rows has two microbatches."""
    changes = [
        f"train.updates={UPDATES}",
        "train.evaluate_every=0",
        "batch.tokens=((0, 256),)",
        "batch.microbatch=8",
        "checkpoint.every=1",
        "checkpoint.keep_every=1",
        "train.sample_tokens=0",
    ]
    changed = apply_overrides(small.config("nnlm", corpus), changes)
    return replace(changed, optimizer=OptimizerConfig(ema=EMA))


def states(folder: Path, config: Config) -> list[Any]:
    """The state of every checkpoint, oldest first."""
    abstract = abstract_state(build.init(build.build(config, preparation.prepare(config.data))))
    paths = checkpoint.folders(folder / "checkpoints")
    assert [int(path.name) for path in paths] == [*range(UPDATES + 1)]
    return [jax.tree.map(np.asarray, checkpoint.restore(checkpoint.read(path), abstract)) for path in paths]


def check_average(folder: Path, config: Config) -> None:
    """Compare each average with a weighted sum of the parameters, in double precision.

    An average has at most one rounding to float32 an update of values below the largest parameter, and the weight of
    the earlier roundings falls: 4 roundings are allowed.
    """
    every = states(folder, config)
    average = jax.tree.map(np.float64, every[0].params)
    for n, state in enumerate(every[1:]):
        decay = min(EMA, (1 + n) / (10 + n)) if config.optimizer.ema_warmup else EMA
        average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.float64(new), average, state.params)
        for expected, actual, leaf in zip(
            *map(jax.tree.leaves, (average, state.ema, every[n + 1].params)), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * 2**-24 * max(np.abs(leaf).max(), 1))
    used = jax.tree.leaves(saved.load(folder).params)  # by evaluation, generation and exports
    for leaf, final in zip(used, jax.tree.leaves(every[-1].ema), strict=True):
        np.testing.assert_array_equal(leaf, final)
    moved = [np.abs(a - p).max() for a, p in zip(*map(jax.tree.leaves, (average, every[-1].params)), strict=True)]
    assert max(moved) > 1e-3  # the average is not the last parameters


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [True, False])
def test_with_accumulated_gradients(config: Config, tmp_path: Path, warmup: bool) -> None:
    config = replace(config, optimizer=replace(config.optimizer, ema_warmup=warmup))
    assert runs.start(config, tmp_path / "run") == 0
    check_average(tmp_path / "run", config)


@pytest.mark.slow
def test_on_a_mesh_of_eight_devices_with_accumulated_gradients(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(config))
    words = [tmp_path / "config.json", "parallel.mesh=(data=1, fsdp=8)", "--run-dir", tmp_path / "run"]
    done = runs.train_py(*words, environment=EIGHT.items())
    assert done.returncode == 0, done.stderr
    assert saved.saved_config(tmp_path / "run").parallel.mesh.fsdp == 8
    check_average(tmp_path / "run", config)


@pytest.mark.slow
def test_after_rollbacks(config: Config, tmp_path: Path) -> None:
    """Two batches that are never finite: the run goes back, replays, goes back again and skips them."""
    folder = tmp_path / "run"
    assert runs.start(config, folder, "data=nan@160-176!") == 0
    rollbacks = runs.records(folder, "rollback")
    assert [record["kind"] for record in rollbacks] == ["replay", "skip"]
    assert checkpoint.quarantined(folder / "checkpoints")
    check_average(folder, config)
