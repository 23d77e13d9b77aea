"""A policy before its first update and after its last one: what is said, and when there is nothing to reinforce."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.config import GRPOConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.config.rewards import RegexConfig
from lmjax.run import launch, policy_progress
from lmjax.run.resume import resume
from lmjax.training import metrics
from tests import small


@pytest.mark.slow
def test_a_policy_that_gets_no_reward_is_refused_unless_it_is_told(corpus: Path, tmp_path: Path) -> None:
    objective = GRPOConfig(group=2, answer_tokens=8, reward=RegexConfig(pattern="never"), scored=4)
    settings = small.policy(small.config("chat", corpus), objective)
    settings = replace(settings, train=replace(settings.train, updates=1, evaluate_every=0))
    with pytest.raises(UserError, match=r"0 of the sampled answers .* less than objective.least_reward=0.1.*--resume"):
        launch.start(settings, tmp_path / "run")
    told = apply_overrides(settings, ["objective.least_reward=0"])
    assert resume(told, tmp_path / "run", allow=["objective.least_reward"]) == 0
    records = metrics.read(tmp_path / "run" / "metrics.jsonl")
    (before,) = (record for record in records if record["update"] == 0)  # not twice
    assert (before["val_reward"], before["val_reward_error"], before["val_greedy_reward"]) == (0, 0, 0)
    text = (tmp_path / "run" / "rl_report.md").read_text()
    assert "| sampled | 0.000 [0.000, 0.000] | 0.000 [0.000, 0.000] |" in text
    assert "(rl_report.png)" in text
    assert (tmp_path / "run" / "rl_report.png").read_bytes().startswith(b"\x89PNG")


def test_what_changed_is_said_with_its_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.96 standard errors on both sides."""
    before = {"update": 0, "val_reward": 0.5, "val_reward_error": 0.02, "val_reward_best": 0.9}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(before) + "\n")
    tables: list[Any] = []
    console = SimpleNamespace(table=lambda *args: tables.append(args), event=lambda text: None)
    inputs: Any = SimpleNamespace(run_dir=tmp_path, console=console)
    run: Any = SimpleNamespace(objective=SimpleNamespace(episodic=True))
    monkeypatch.setattr(policy_progress, "_complete", lambda *args: None)
    policy_progress.conclude(run, {"val_reward": 0.75, "val_reward_error": 0.01, "val_greedy_reward": 0.8}, inputs)
    ((_, rows, _),) = tables
    assert rows == [
        ("sampled", "0.500 [0.461, 0.539]", "0.750 [0.730, 0.770]"),
        ("greedy", "unknown", "0.800"),
    ]
