"""Episodes on meshes of eight devices, and of two processes, against one device."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import BatchConfig, Config, GRPOConfig, MeshConfig, PPOConfig
from lmjax.config.codec import to_json
from lmjax.config.rewards import RegexConfig
from lmjax.data.store import preparation
from lmjax.run import build, episodes, feed
from tests import ROOT, small
from tests.parallel.test_multiprocess import finished, losses, processes
from tests.run.test_episodes import tokens_of

HALF = RegexConfig(pattern="[a-mA-M]")


def config(corpus: Path, family: str) -> Config:
    """16 prompts with two answers each, in two microbatches of eight prompts."""
    kind = GRPOConfig if family == "grpo" else PPOConfig
    objective = kind(group=2, answer_tokens=8, reward=HALF, kl_coefficient=0.1, epochs=2, minibatches=2)
    settings = small.policy(small.config("chat", corpus), objective)
    tokens = 16 * 2 * settings.model.context
    return replace(settings, batch=BatchConfig(((0, tokens),), microbatch=8))


def two_episodes(settings: Config) -> list[dict[str, Any]]:
    """The metrics of two episodes."""
    run = build.build(settings, preparation.prepare(settings.data))
    state = build.init(run)
    step = episodes.make_step(run, episodes.reference_of(run, Path("/nowhere"), state))
    results = []
    for fed in feed.device_batches(run, 0, 0):
        state, metrics = step(state, [fed.batch])
        results.append({name: np.asarray(value).item() for name, value in metrics.items()})
        if len(results) == 2:
            return results
    raise AssertionError


@cache
def on_one_device(corpus: Path, family: str) -> list[dict[str, Any]]:
    settings = config(corpus, family)
    return two_episodes(replace(settings, parallel=replace(settings.parallel, devices=1)))


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize(
    ("family", "mesh"),
    [("grpo", MeshConfig(data=8)), ("grpo", MeshConfig(data=2, fsdp=4)), ("ppo", MeshConfig(data=2, fsdp=4))],
)
def test_a_mesh_divides_episodes(corpus: Path, family: str, mesh: MeshConfig) -> None:
    """The same answers; float32 sums in another order: losses within 1e-6, the norm of a gradient within 1e-4.

    Adam divides by the root of small second moments, so that the second episode starts from parameters that differ by
    more than rounding.
    """
    settings = config(corpus, family)
    one = on_one_device(corpus, family)
    divided = two_episodes(replace(settings, parallel=replace(settings.parallel, mesh=mesh)))
    for before, after in zip(one, divided, strict=True):
        assert after["tokens_sha256"] == before["tokens_sha256"]
        assert after["reward"] == before["reward"]
        for name in ("loss", "policy_loss", *["value_loss"] * (family == "ppo")):
            assert after[name] == pytest.approx(before[name], abs=1e-6), name
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-4)
        assert after["kl"] == pytest.approx(before["kl"], abs=1e-5)
    assert one[0]["tokens_sha256"] != one[1]["tokens_sha256"]


@pytest.mark.slow
def test_eight_devices_learn_the_same() -> None:
    """The test above, in a process that has them."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    words = ["-q", "-m", "slow", "-p", "no:cacheprovider", __file__, "-k", "mesh_divides"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | flags
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_sample_and_learn_as_one(corpus: Path, tmp_path: Path) -> None:
    """Every process rewards all answers; parameters and rows are divided among the two."""
    settings = config(corpus, "grpo")
    train = replace(settings.train, updates=3, evaluate_every=0, sample_tokens=0)
    settings = replace(settings, train=train, checkpoint=replace(settings.checkpoint, every=0))
    (tmp_path / "config.json").write_text(to_json(settings))
    for folder, count, mesh in (("one", 1, "(data=1, fsdp=1)"), ("two", 2, "(data=1, fsdp=2)")):
        words = (str(tmp_path / "config.json"), f"parallel.mesh={mesh}", "--run-dir", str(tmp_path / folder))
        with processes(count, *words) as started:
            finished(started)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert tokens_of(tmp_path / "two") == tokens_of(tmp_path / "one")
    summaries = [json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("one", "two")]
    assert summaries[0]["val_reward"] == summaries[1]["val_reward"]
