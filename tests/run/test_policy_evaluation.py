"""Evaluation of a policy: a function of its parameters, with a verdict from the metrics of the run."""

from pathlib import Path

import numpy as np
import pytest

from lmjax.config import GRPOConfig
from lmjax.config.rewards import RegexConfig
from lmjax.data.store import preparation
from lmjax.run import build, policy_evaluation
from tests import small


def test_series_are_those_of_the_updates() -> None:
    records = [
        {"update": 1, "reward": 0.5, "grad_norm": 2.0, "kl": 0.0},
        {"update": 1, "val_loss": 3.0},
        {"update": 2, "reward": None, "grad_norm": 1.0, "kl": 0.25},
    ]
    series = policy_evaluation.series_of(records)
    assert series["update"] == [1, 2]
    assert series["gradient_norm"] == [2.0, 1.0]
    assert series["kl"] == [0.0, 0.25]
    assert np.isnan(series["reward"][1])
    assert policy_evaluation.series_of(records[1:2]) == {}


def test_probes_are_those_of_the_evaluations_with_a_known_truth() -> None:
    records = [
        {"update": 1, "reward": 0.5},
        {"update": 1, "val_reward": 1.0, "val_true_reward": -2.0},
        {"update": 2, "val_reward": 1.5, "val_true_reward": None},
        {"update": 3, "val_reward": 2.0, "val_true_reward": -3.0},
    ]
    assert policy_evaluation.probes_of(records) == {"update": [1, 3], "reward": [1, 2], "probe": [-2, -3]}
    assert policy_evaluation.probes_of(records[:1]) == {"update": [], "reward": [], "probe": []}


@pytest.mark.slow
def test_evaluation_repeats_its_answers(corpus: Path, tmp_path: Path) -> None:
    """It is a function of the parameters: the same ones get the same reward."""
    base = small.config("chat", corpus)
    settings = small.policy(
        base, GRPOConfig(group=2, answer_tokens=8, reward=RegexConfig(pattern="[a-mA-M]"), scored=11)
    )
    run = build.build(settings, preparation.prepare(settings.data))
    lines: list[str] = []
    evaluate = policy_evaluation.evaluator(run, tmp_path, say=lines.append)
    state = build.init(run)
    scores = evaluate(state, False)
    assert scores == evaluate(state, False)
    assert scores["val_loss"] == -scores["val_reward"]
    assert scores["val_reward"] < scores["val_reward_best"] <= 1
    text = (tmp_path / "rl_report.md").read_text()
    assert text.startswith("# Reinforcement learning: undecided")
    assert "Mean reward of 22 answers" in text  # an odd number of prompts, although a microbatch has two
    assert lines[0].startswith("health: undecided")
