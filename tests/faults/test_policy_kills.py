"""A PPO run that is killed again and again repeats the same answers and ends with the same bits."""

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from lmjax.config import Config, PPOConfig
from lmjax.config.rewards import RegexConfig
from tests import small
from tests.faults import runs

KILLS, UPDATES = 12, 28  # a session commits at most one save, of two updates
POINTS = ("update", "episode.sampled", "episode.rewarded", "save.arrays", "save.rename", "journal.torn")


def policy(corpus: Path) -> Config:
    """Updates of eight prompts with two answers each, two epochs of two minibatches; a save at every other update."""
    objective = PPOConfig(group=2, answer_tokens=8, reward=RegexConfig(pattern="[a-mA-M]"), kl_target=1.0)
    base = small.policy(small.config("chat", corpus), objective)
    return replace(
        base,
        train=replace(base.train, updates=UPDATES, evaluate_every=6),
        checkpoint=replace(base.checkpoint, every=2),
    )


def answers(folder: Path) -> dict[int, str]:
    """The hash of the sampled tokens of each update, as often as it was repeated."""
    hashes: dict[int, str] = {}
    for record in runs.records(folder):
        columns = record.get("applied", {"first": 0, "tokens": []})
        for update, tokens in enumerate(columns["tokens"], columns["first"]):
            assert hashes.setdefault(update, tokens) == tokens
    return hashes


def fault(rng: random.Random, folder: Path) -> str:
    """A kill within three updates, or in the first two saves or records of a session."""
    point = rng.choice(POINTS)
    if point in ("update", "episode.sampled", "episode.rewarded"):
        done = runs.updates(folder)[-1:] or [0]
        return f"{point}=kill@{done[0] + rng.randint(1, 3)}"
    return f"{point}=kill@{rng.randint(1, 2)}"


@pytest.mark.exhaustive
def test_twelve_kills_change_no_answer_and_no_bit(corpus: Path, tmp_path: Path) -> None:
    settings, rng = policy(corpus), random.Random(0)
    assert runs.start(settings, tmp_path / "whole") == 0
    for _ in range(KILLS):
        process = runs.forked(settings, tmp_path / "run", fault(rng, tmp_path / "run"))
        process.join(240)
        assert process.exitcode == -signal.SIGKILL
    assert runs.resume(tmp_path / "run") == 0
    assert runs.digest(tmp_path / "run") == runs.digest(tmp_path / "whole")
    assert list(answers(tmp_path / "run")) == list(range(1, UPDATES + 1))
    assert answers(tmp_path / "run") == answers(tmp_path / "whole")
