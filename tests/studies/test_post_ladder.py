"""The ladder of post-training: best of n, the table, the picture, and a small ladder from end to end."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import Config, PPOConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.run import launch
from lmjax.studies import post_ladder, post_ladder_report
from lmjax.studies.post_ladder import Sampled
from lmjax.studies.post_ladder_report import Curve, Point, Results


def sampled(prompts: int = 50) -> Sampled:
    """Independent normal scores; the truth is twice the score."""
    scores = np.random.default_rng(0).normal(size=(prompts, post_ladder.GROUP))
    texts = [f"answer {n}" for n in range(scores.size)]
    return Sampled(scores, 2 * scores, np.zeros_like(scores), np.full_like(scores, 7.0), texts)


def test_the_best_of_n_is_the_answer_with_the_highest_score() -> None:
    """The expected maximum of 2, 4, 8, 16 standard normal numbers; five standard errors of 50 and more choices."""
    expected = {2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.7660}
    for count, maximum in expected.items():
        point = post_ladder.best_of(sampled(), count)
        choices = 50 * post_ladder.GROUP / count
        assert point.reward == pytest.approx(maximum, abs=5 * 0.83 / np.sqrt(choices))
        assert point.truth == pytest.approx(2 * point.reward)
        assert point.kl == pytest.approx(log(count) - (count - 1) / count)
        assert (point.length, point.distinct) == (7, 1)


def results() -> Results:
    points = [Point("fine-tuned", 0.0, -0.4, 0.0, 25, 1.0, 60.0), Point("best of 4", 1.0, 0.8, 0.6, 25, 1.0, 0.0)]
    points.append(Point("PPO without penalty", 2.5, -1.7, 28.0, 28, 0.15, 90.0))
    curve = Curve("PPO without penalty", [(1.0, 1.0, 1.1), (7.0, 1.9, 1.7), (28.0, 2.5, -1.7)])
    return Results(
        points, [curve], {"truth_accuracy": 0.85}, {"PPO without penalty": "hacking: why"}, [("a", "b | c\n")]
    )


def test_the_table_has_every_policy_and_the_picture_both_rewards() -> None:
    table = post_ladder_report.markdown(results())
    assert "| PPO without penalty | +2.50 | -1.70 | 28.00 | 28.0 | 0.15 | 1m30s |" in table
    assert "- reward model: truth accuracy 0.850" in table
    assert "- PPO without penalty: hacking: why" in table
    assert "| a | b   c\\n |" in table
    left, right = post_ladder_report.figure(results()).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("true reward", "score of the reward model")
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in left.get_lines()}
    assert lines["PPO without penalty"] == [[1, 1.1], [7, 1.7], [28, -1.7]]
    assert lines["best of n"] == [[0.6, 0.8]]
    assert lines["fine-tuned"] == [[0, -0.4]]


def small_stages() -> dict[str, Config]:
    """The stages of the presets with three updates of a tiny model."""
    changes = (
        "model.layers=1 model.width=16 model.heads=2 model.mlp_width=32 data.limit=200 train.updates=3 "
        "train.evaluate_every=1 batch.tokens=((0,1024),) batch.microbatch=8"
    )
    return {name: apply_overrides(config, changes.split()) for name, config in post_ladder.stages().items()}


def test_what_cannot_be_a_ladder_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reviews: unknown key 'objective.beta'.*each of reviews, reward, ppo,"):
        post_ladder.show(tmp_path / "ladder", changes=["objective.beta=1"])
    for key in ("init_from", "objective.reward.run"):
        with pytest.raises(UserError, match=f"{key}: the ladder sets it"):
            post_ladder.show(tmp_path / "ladder", changes=["seed=1", f"{key}=runs/mine"])
    with pytest.raises(UserError, match="needs data whose true reward is known"):
        post_ladder.show(tmp_path / "ladder", changes=["data.files=[rows.jsonl]"])
    assert not (tmp_path / "ladder").exists()


@pytest.mark.exhaustive
def test_a_small_ladder_ends_in_a_table_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, out = small_stages(), tmp_path / "ladder"
    assert post_ladder.climb(stages, out) == 0
    assert "The ladder of post-training" in capsys.readouterr().out
    result = json.loads((out / "post_ladder.json").read_text())
    names = [point["name"] for point in result["points"]]
    assert names == ["fine-tuned", *(f"best of {n}" for n in (2, 4, 8, 16)), *list(post_ladder.TITLES.values())[1:]]
    assert result["points"][0]["kl"] == pytest.approx(0, abs=1e-5)
    scores = [point["reward"] for point in result["points"][:5]]
    assert scores == sorted(scores)
    assert len(result["curves"]) == 2
    for curve in result["curves"]:  # three evaluations before the last update, and the end
        point = result["points"][names.index(curve["name"])]
        assert len(curve["rows"]) == 4
        assert curve["rows"][-1] == [point["kl"], point["reward"], point["truth"]]
    assert (out / "post_ladder.png").read_bytes()[:4] == b"\x89PNG"
    ppo = json.loads((out / "ppo_free" / "config.json").read_text())["objective"]
    assert (ppo["kl_coefficient"], ppo["reward"]["run"]) == (0.0, str(out / "reward"))

    monkeypatch.setattr(launch, "start", None)
    assert post_ladder.climb(stages, out) == 0
    assert json.loads((out / "post_ladder.json").read_text())["points"] == result["points"]
    config = stages[post_ladder.PENALIZED]
    assert isinstance(config.objective, PPOConfig)
    other = {**stages, post_ladder.PENALIZED: replace(config, objective=replace(config.objective, kl_coefficient=1.0))}
    with pytest.raises(UserError, match=r"ppo has another configuration \(objective.kl_coefficient: .*--out DIR"):
        post_ladder.climb(other, out)
