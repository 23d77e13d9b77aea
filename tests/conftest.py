"""What several tests share: a small corpus and a configuration that trains on it in a second."""

import atexit
import gc
import os
import random
import shutil
import tempfile
from pathlib import Path

# Tests compile the same small programs over and over, also in other processes: once each is enough.
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has the folder of the process that started it
    _COMPILED = tempfile.mkdtemp(prefix="lmjax-tests-")
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
os.environ["HF_HUB_OFFLINE"] = "1"  # datasets of the hub are stood in for by local ones
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest
from hypothesis import HealthCheck, settings

from lmjax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    GPTConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "red", "barn", "while", "rain", "fell"]

# The same examples every time, however slow the machine is.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


# Traced programs are many small objects that stay alive; the collector would visit them over and over.
gc.set_threshold(50_000, 50, 1000)


def pytest_configure(config: pytest.Config) -> None:
    """The rest of the fault matrix is in no tier, though some of it is slow: `-m slow` leaves it out."""
    chosen = config.option.markexpr
    if chosen and "exhaustive" not in chosen:
        config.option.markexpr = f"({chosen}) and not exhaustive"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first, so that several processes end together."""
    longest = (
        *("test_notebooks.py", "test_multiprocess.py", "test_meshes.py", "test_kills.py", "test_rollback.py"),
        *("test_launch.py", "test_audit.py", "test_transformer.py", "test_gpt.py", "test_detector.py"),
    )
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 paragraphs of random words, the same every time."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    paragraphs = (" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 40))) + "." for _ in range(200))
    path.write_text("\n\n".join(paragraphs) + "\n")
    return path


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> Config:
    """A run of twelve updates whose batch doubles on the way."""
    return Config(
        name="tiny",
        data=DataConfig(
            files=(str(corpus),),
            tokenizer=TokenizerConfig(kind="bytes"),
            validation_fraction=0.1,
            cache=str(corpus.parent / "cache"),
        ),
        model=GPTConfig(layers=2, width=16, heads=2, context=16, dropout=0.1),
        schedule=ScheduleConfig(peak=1e-2, warmup=0.1),
        batch=BatchConfig(tokens=((0, 64), (6 * 64, 128)), microbatch=4),
        train=TrainConfig(updates=12, evaluate_every=4, evaluate_batches=2, sample_tokens=8),
        checkpoint=CheckpointConfig(every=4),
    )
