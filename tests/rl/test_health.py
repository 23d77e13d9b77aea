"""Verdicts on series of measured runs and on constructed ones.

The measured series are of a reviews task (PPO with and without a KL penalty, GRPO on the learned reward) and of GRPO on
sorting digits. They were measured before the rules were written, but for `REVIEWS` and `HACKED_REVIEWS`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from math import inf, nan
from typing import Any

import pytest

from lmjax.rl import health, measures
from lmjax.rl.health import Verdict

UPDATES = [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 59]
PENALTY = {
    "update": UPDATES,
    "reward": [-0.05, 0.88, 1.19, 1.48, 1.89, 2.00, 2.07, 2.14, 2.19, 2.28, 2.24, 2.27, 2.32],
    "probe": [-0.63, 0.36, 0.70, 0.79, 1.16, 1.18, 1.38, 1.42, 1.36, 1.50, 1.68, 1.36, 1.42],
    "kl": [0.00, 1.15, 2.18, 3.95, 5.18, 6.80, 7.14, 7.85, 8.52, 8.64, 8.43, 8.71, 9.43],
    "entropy": [0.748, 0.689, 0.599, 0.545, 0.494, 0.451, 0.409, 0.384, 0.366, 0.320, 0.303, 0.292, 0.291],
    "length": [24.0, 17.9, 15.9, 16.3, 18.5, 19.6, 19.4, 20.2, 20.1, 20.5, 20.7, 21.1, 22.1],
    "explained_variance": [-0.02, -0.41, -0.33, 0.00, -0.20, 0.26, 0.59, 0.65, 0.69, 0.83, 0.80, 0.85, 0.86],
    "ratio_error": [0.0] * 13,
    "first_approximate_kl": [2e-12] * 13,
    "sampler_difference": [7.2e-6] * 13,
    "distinct": [511 / 512, 433 / 512],
}
NO_PENALTY = {
    "update": UPDATES,
    "reward": [-0.05, 0.80, 1.15, 1.54, 1.94, 2.19, 2.27, 2.41, 2.48, 2.45, 2.49, 2.54, 2.54],
    "probe": [-0.63, 0.29, 0.63, 0.58, 0.64, -0.15, -0.76, -0.46, -0.49, -0.62, -0.95, -0.98, -0.94],
    "kl": [0.00, 1.11, 2.47, 4.51, 7.97, 13.27, 17.69, 18.92, 18.29, 19.10, 19.93, 20.95, 20.26],
    "entropy": [0.748, 0.694, 0.582, 0.535, 0.492, 0.406, 0.386, 0.298, 0.235, 0.216, 0.192, 0.161, 0.117],
    "length": [24.0, 17.5, 15.1, 15.8, 17.8, 19.8, 23.0, 23.3, 23.2, 23.3, 23.0, 22.5, 22.6],
    "ratio_error": [0.0] * 13,
    "distinct": [511 / 512, 123 / 512],
}
SORTING = {
    "update": [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 109],
    "reward": [0.520, 0.367, 0.461, 0.500, 0.500, 0.574, 0.598, 0.695, 0.672, 0.637, 0.719],
    "kl": [0.00, 0.49, 0.23, 0.26, 0.22, 0.30, 0.31, 0.16, 0.39, 0.38, 0.30],
    "entropy": [0.480, 0.489, 0.462, 0.422, 0.399, 0.365, 0.335, 0.288, 0.279, 0.273, 0.244],
}


def noisy(start: float, end: float, count: int = 30, noise: float = 0.02, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [start + (end - start) * i / (count - 1) + rng.gauss(0, noise) for i in range(count)]


def changed(series: Mapping[str, Sequence[float]], **others: Any) -> dict[str, Any]:
    return {**series, **others}


# ---- Measured runs ------------------------------------------------------------------------------------------------


def test_ppo_with_a_penalty_learns() -> None:
    judged = health.verdict(PENALTY)
    assert judged.word == "learning"
    assert "the reward went from" in judged.evidence[0]
    assert "the probe rises too" in judged.evidence[1]
    assert not [finding for finding in judged.findings if finding.status == "alarm"]
    assert {finding.measure.name for finding in judged.findings} == set(PENALTY) - {"update", "reward", "probe"}


def test_ppo_without_a_penalty_hacks() -> None:
    judged = health.verdict(NO_PENALTY)
    assert judged.word == "hacking"
    assert len(judged.evidence) == 1
    assert "the probe fell from 0.617 (about update 15) to -0.957" in judged.evidence[0]
    assert "raise the KL coefficient" in judged.advice[0]
    states = {finding.measure.name: finding.status for finding in judged.findings}
    assert states["kl"] == states["entropy"] == states["distinct"] == "watch"


def test_hacking_is_seen_soon_after_the_turn() -> None:
    """The probe turned at update 20; at update 30 it had lost its gain."""
    words = [health.verdict({name: values[:n] for name, values in NO_PENALTY.items()}).word for n in range(1, 14)]
    assert words[:5] == ["undecided"] * 5
    assert set(words[7:]) == {"hacking"}
    assert not {"stalled", "broken", "collapsed"} & set(words)
    assert {health.verdict({name: v[:n] for name, v in PENALTY.items()}).word for n in range(6, 14)} == {"learning"}


def test_a_hacked_run_that_also_collapses_is_called_hacking() -> None:
    """With the collapse as further evidence: its cause is the reward."""
    entropy = [*NO_PENALTY["entropy"][:-4], 0.06, 0.05, 0.04, 0.03]
    judged = health.verdict(changed(NO_PENALTY, entropy=entropy))
    assert judged.word == "hacking"
    assert "entropy per token" in judged.evidence[1]
    assert health.verdict({"entropy": entropy, "reward": NO_PENALTY["reward"]}).word == "collapsed"


def test_grpo_on_sorting_learns_after_its_dip_at_a_small_kl() -> None:
    assert health.verdict(SORTING).word == "learning"
    early = {name: values[:6] for name, values in SORTING.items()}
    assert health.verdict(early).word in ("learning", "stalled")
    without = health.verdict(
        changed(SORTING, reward=[0.53, 0.51, 0.54, 0.52, 0.53, 0.55, 0.52, 0.54, 0.53, 0.52, 0.53])
    )
    assert without.word == "stalled"
    assert "the policy hardly moved" in without.evidence[-1]


def test_grpo_with_a_large_rate_collapses() -> None:
    """0.53 to 0.09 by update 6 at a KL divergence of 3.6."""
    judged = health.verdict({"reward": [0.53, 0.44, 0.31, 0.2, 0.15, 0.12, 0.09], "kl": [0, 0.5, 1, 2, 3, 3.4, 3.6]})
    assert judged.word == "collapsed"
    assert judged.evidence == ("the reward fell from 0.485 to 0.105",)


def test_grpo_on_a_learned_reward_is_not_called_hacking_for_a_small_loss() -> None:
    """Its probe kept more than half of its gain."""
    series = {
        "reward": [0.10, 0.56, 1.17, 1.54, 1.87, 2.09, 2.22],
        "probe": [-0.54, 0.16, 0.77, 0.83, 0.22, 0.62, 0.63],
        "kl": [0, 1.0, 2.2, 3.7, 10.5, 10.7, 12.5],
    }
    assert health.verdict(series).word == "learning"


# PPO on `lmjax.data.sources.reviews`, 64 reviews an update, with a coefficient of 0.05 and without one.
REVIEWS = {
    "update": UPDATES,
    "reward": [-0.193, 1.205, 1.606, 1.85, 1.864, 1.941, 1.982, 2.065, 2.002, 2.046, 2.027, 2.058, 2.075],
    "probe": [-0.759, 1.302, 1.712, 2.055, 1.868, 1.927, 1.915, 2.175, 2.136, 2.22, 2.013, 2.033, 2.438],
    "kl": [0, 1.709, 3.053, 3.494, 4.355, 5.269, 5.385, 5.346, 5.452, 5.748, 5.918, 5.911, 5.79],
    "entropy": [0.57, 0.512, 0.459, 0.415, 0.401, 0.362, 0.334, 0.322, 0.333, 0.33, 0.315, 0.322, 0.314],
    "length": [25.4, 24.7, 27.2, 27.1, 27.6, 27.6, 27.4, 27.4, 27.3, 27.3, 27.5, 27.6, 27.3],
    "distinct": [1.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.984, 1, 1],
}
HACKED_REVIEWS = {
    "update": UPDATES,
    "reward": [-0.193, 1.221, 1.592, 1.821, 1.912, 2.045, 2.206, 2.345, 2.356, 2.476, 2.493, 2.474, 2.51],
    "probe": [-0.759, 1.131, 1.262, 1.866, 1.732, 0.963, -0.416, -0.711, -1.234, -1.49, -1.707, -1.78, -1.727],
    "kl": [0, 2.312, 4.643, 5.297, 7.049, 10.9, 17.147, 20.21, 23.683, 26.199, 28.339, 28.713, 28.347],
    "entropy": [0.57, 0.546, 0.495, 0.434, 0.389, 0.35, 0.243, 0.15, 0.135, 0.125, 0.101, 0.074, 0.069],
    "length": [25.4, 24.7, 27.3, 27.0, 27.3, 27.9, 27.9, 27.9, 28.0, 28.3, 28.1, 28.1, 28.0],
    "distinct": [1.0, 1, 1, 1, 1, 1, 0.891, 0.781, 0.641, 0.406, 0.359, 0.219, 0.156],
}


def test_the_generated_reviews_show_learning_and_hacking() -> None:
    judged = health.verdict(REVIEWS)
    assert judged.word == "learning"
    assert {finding.status for finding in judged.findings} == {"healthy"}
    hacked = health.verdict(HACKED_REVIEWS)
    assert hacked.word == "hacking"
    assert {f.measure.name for f in hacked.findings if f.status != "healthy"} == {"kl", "entropy", "distinct"}


# ---- Constructed runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_stalled(seed: int) -> None:
    judged = health.verdict({"reward": noisy(0.4, 0.4, seed=seed, noise=0.005), "kl": noisy(0, 0.05, noise=0)})
    assert judged.word == "stalled"
    assert "raise the learning rate" in judged.advice[0]
    assert health.verdict({"reward": noisy(0.4, 0.7, seed=seed)}).word == "learning"


def test_a_stalled_run_names_the_reason() -> None:
    solved = health.verdict({"reward": [0.99, 0.98] * 6, "dead_groups": [0.9] * 12})
    assert solved.word == "stalled"
    assert "90% of the groups have no signal: nothing is left to learn" in solved.evidence
    hard = health.verdict({"reward": [0.0] * 12, "dead_groups": [0.95] * 12})
    assert "95% of the groups have no signal: almost every prompt is solved always or never" in hard.evidence
    assert health.verdict({"reward": [0.0] * 12}, progress=0.1).word == "undecided"


@pytest.mark.parametrize(
    ("name", "values"),
    [("entropy", [0.7] * 15 + [0.02] * 15), ("distinct", [0.9] * 15 + [0.01] * 15), ("reward", noisy(2, -1))],
)
def test_a_collapse(name: str, values: list[float]) -> None:
    judged = health.verdict({"reward": noisy(0, 1), "kl": noisy(0, 9), name: values})
    assert judged.word == "collapsed"
    assert "earlier checkpoint" in judged.advice[0]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ratio_error", 1e-4, "mean ratio from 1 is 0.0001 at update 25"),
        ("first_approximate_kl", 1e-6, "first minibatch to the old policy per token is 1e-06"),
        ("first_clip_fraction", 0.5, "dropout|old log-probabilities"),
        ("sampler_difference", 0.02, "check temperature"),
        ("exact_kl", -0.01, "never negative"),
        ("kl", -3.0, "reference per response is -3"),
        ("kl", nan, "kl is nan at update 25"),
        ("reward", inf, "reward is inf at update 25"),
        ("reward_failures", 0.9, "correct the reward function"),
        ("entropy", nan, "entropy is nan"),
    ],
)
def test_an_impossible_value_of_one_update_is_broken(name: str, value: float, text: str) -> None:
    values = [*PENALTY.get(name, [0.0] * 13)]
    values[5] = value
    judged = health.verdict(changed(PENALTY, **{name: values}))
    assert judged.word == "broken"
    assert any(part in judged.evidence[0] for part in text.split("|"))
    assert judged.advice[0].startswith("stop")


def test_rounding_of_bfloat16_is_not_broken() -> None:
    series = changed(PENALTY, sampler_difference=[0.03] * 13)
    assert health.verdict(series).word == "broken"
    assert health.verdict(series, table=measures.POLICY_BFLOAT16).word == "learning"


def test_length_and_divergence_without_a_probe_are_hacking() -> None:
    assert health.verdict({"reward": noisy(0, 2), "length": noisy(20, 60)}).word == "hacking"
    assert health.verdict({"reward": noisy(0, 2), "kl": noisy(0, 80)}).word == "hacking"
    assert health.verdict({"reward": noisy(0, 2), "kl": noisy(0, 20)}).word == "learning"


def test_a_probe_that_falls_with_the_reward_is_not_hacking() -> None:
    up_and_down = [*noisy(0, 1, 15), *noisy(1, 0.55, 15)]
    assert health.verdict({"reward": up_and_down, "probe": up_and_down}).word != "hacking"
    assert health.verdict({"reward": noisy(0, 1), "probe": [*noisy(0, 1, 15), *noisy(1, 0.7, 15)]}).word == "learning"
    falling = [*noisy(0, 1, 15), *noisy(1, 0, 15)]
    assert health.verdict({"reward": noisy(0, 1), "probe": falling}).word == "hacking"
    assert health.verdict({"reward": noisy(0, 0, noise=0), "probe": falling}).word == "stalled"


@pytest.mark.parametrize(("measured", "word"), [(NO_PENALTY, "hacking"), (PENALTY, "learning")])
def test_probes_may_be_of_other_updates_than_the_reward(measured: dict[str, Any], word: str) -> None:
    series = {"update": range(60), "reward": noisy(0.0, 2.3, count=60), "kl": noisy(0.0, 9.0, count=60)}
    probes = {name: measured[name] for name in ("update", "reward", "probe")}
    verdict = health.verdict(series, probes=probes)
    assert verdict.word == word
    assert ("the probe fell from" if word == "hacking" else "the probe rises too") in str(verdict)
    assert health.verdict(series, probes={"update": [], "reward": [], "probe": []}).word == "learning"


def test_nothing_measured_is_undecided() -> None:
    assert health.verdict({}) == Verdict("undecided", ("fewer than 6 measurements of the reward",), (), ())
    assert health.verdict({"reward": [1, 2, 3]}).word == "undecided"
    assert health.verdict({"reward": []}).word == "undecided"


# ---- Findings -----------------------------------------------------------------------------------------------------


def test_a_finding_compares_with_the_bands() -> None:
    table = measures.REWARD_MODEL
    states = [health.judge(table["accuracy"], value).status for value in (0.5, 0.58, 0.7, 0.95, nan)]
    assert states == ["alarm", "watch", "healthy", "alarm", "alarm"]
    finding = health.judge(table["slope"], 0.3)
    assert str(finding).startswith("slope of the true log-odds on the margin: 0.3 (healthy: 0.8 to 1.2); below 1")
    assert str(health.judge(table["slope"], 1.0)).endswith("(healthy: 0.8 to 1.2)")
    assert "at most 0.05" in str(health.judge(table["accuracy_gap"], 0.0))
    assert "at least 2e+03" in str(health.judge(table["comparisons"], 2400))


def test_the_reward_model_of_the_reviews_is_healthy_but_for_its_probes() -> None:
    values = {
        "accuracy": 0.772, "bayes_share": 0.772 / 0.832, "loss": 0.527, "margin": 1.26, "slope": 1.01,
        "calibration_error": 0.067, "length_correlation": -0.27, "matched_accuracy_drop": 0.772 - 0.838,
        "comparisons": 2400, "probe_gain": 0.26,
    }  # fmt: skip
    states = {name: health.judge(measures.REWARD_MODEL[name], value).status for name, value in values.items()}
    assert {name for name, state in states.items() if state == "alarm"} == {"probe_gain"}
    assert {name for name, state in states.items() if state == "watch"} == {"bayes_share", "calibration_error"}


def test_the_sides_of_a_pair_may_differ_by_the_rounding_of_the_products() -> None:
    """Measured at a standard deviation of 3.4 with rows of other widths: 4e-6 in float32, 4e-3 with bfloat16."""
    assert health.judge(measures.REWARD_MODEL["side_error"], 4e-6).status == "healthy"
    assert health.judge(measures.REWARD_MODEL["side_error"], 4e-3).status == "alarm"
    assert health.judge(measures.REWARD_MODEL_BFLOAT16["side_error"], 4e-3).status == "healthy"
    assert measures.is_exact("float32", "cpu")
    assert not any(measures.is_exact(*where) for where in (("bfloat16", "cpu"), ("float32", "gpu"), ("float32", "tpu")))


def test_values_are_recent_and_relative_to_the_start() -> None:
    found = {f.measure.name: f for f in health.findings({"entropy": [2.0] * 10 + [1.0] * 10, "finished": [0.5, 1.0]})}
    assert found["entropy"].value == 0.5
    assert found["finished"].value == 1
    assert not [*health.findings({"explained_variance": [-1.0] * 20})]
    late = [*health.findings({"explained_variance": [-1.0] * 21})]
    assert [finding.status for finding in late] == ["alarm"]
    worst = [*health.findings({"ratio_error": [0, 3e-6, 0, 0, 0, 0]})]
    assert worst[0].value == 3e-6
    assert not [*health.findings({"length": [0.0, 5.0], "entropy": []})]


def test_a_trend_knows_its_scatter() -> None:
    straight = health.trend([0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert straight is not None
    assert (straight.start, straight.end, straight.error) == (1, 7, 0)
    assert straight.rises
    assert not straight.falls
    errors = [health.trend(noisy(0, 3, count=300, noise=1, seed=seed)) for seed in range(20)]
    mean = sum(trend.error for trend in errors if trend) / 20
    assert mean == pytest.approx(math.sqrt(2 / 100), rel=0.1)  # of two means of 100 values of standard deviation 1


@pytest.mark.parametrize(
    "table", [measures.POLICY, measures.REWARD_MODEL, measures.POLICY_BFLOAT16, measures.REWARD_MODEL_BFLOAT16]
)
def test_the_tables_are_consistent(table: Mapping[str, measures.Measure]) -> None:
    for name, measure in table.items():
        assert name == measure.name
        assert measure.title
        assert measure.source
        assert measure.advice
        assert measure.tolerable[0] <= measure.healthy[0] <= measure.healthy[1] <= measure.tolerable[1]
        assert measure.possible[0] <= measure.healthy[0] <= measure.healthy[1] <= measure.possible[1]
    assert set(measures.ADVICE) == {"undecided", "learning", "stalled", "hacking", "collapsed", "broken"}
