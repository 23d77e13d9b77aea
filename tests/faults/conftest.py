"""Runs small enough to be faulted hundreds of times."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    GuardConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.run import curves
from lmjax.run.spikes import report
from tests.faults import runs


@pytest.fixture(scope="session")
def guarded(corpus: Path) -> Config:
    """A run of 200 updates of 8 sequences, one and a half epochs: long enough for the guard to arm (at 64)."""
    return Config(
        name="guarded",
        data=DataConfig(
            files=(str(corpus),),
            tokenizer=TokenizerConfig(kind="bytes"),
            validation_fraction=0.1,
            cache=str(corpus.parent / "cache"),
        ),
        model=GPTConfig(layers=2, width=16, heads=2, context=16),
        schedule=ScheduleConfig(peak=1e-2, warmup=0.1),
        batch=BatchConfig(tokens=((0, 128),), microbatch=8),
        train=TrainConfig(updates=200, evaluate_every=50, evaluate_batches=2, sample_tokens=0, baselines=False),
        checkpoint=CheckpointConfig(every=20),
    )


@pytest.fixture(scope="session")
def short(guarded: Config) -> Config:
    """The same for 60 updates, with a save every 10, of which some are soon deleted: for faults that need no armed
    guard."""
    train = replace(guarded.train, updates=60, evaluate_every=20)
    guard = GuardConfig(margin=8, divergence_window=8)
    return replace(guarded, name="short", train=train, checkpoint=CheckpointConfig(every=10), guard=guard)


@pytest.fixture(scope="module")
def stopped(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, stopped by a signal after update 45."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert runs.start(short, folder, "update=SIGTERM@45") == 0
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run to damage."""
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and reports are tested elsewhere, and take as long as the rest of such a run."""
    monkeypatch.setattr(curves, "draw", lambda *_: [])
    monkeypatch.setattr(report, "write_report", lambda *_: None)
