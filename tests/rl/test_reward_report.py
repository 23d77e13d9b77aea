"""The report of a reward model."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.data.batches import preferences
from lmjax.data.sources import reviews
from lmjax.display import figures
from lmjax.objectives import reference, reward_calibration
from lmjax.objectives.reward import RewardModel
from lmjax.rl import health, reward_pictures, reward_report
from lmjax.rl.measures import REWARD_MODEL
from lmjax.rl.reward_probes import Probe, plain_changes
from lmjax.rl.reward_report import Report, Sampled
from tests import small

PROBES = (Probe("another dish", 20, 0.25, 0.6, -1.5), Probe("last sentence said twice", 20, -0.5, 0.1, None))
GROUPS = (
    (Sampled("Soup?", "bad", 3, -2.0, -1.0), Sampled("Soup?", "good", 2, 1.5, 2.0)),
    (Sampled("Tea?", "so `so`", 4, 0.5, 0.0), Sampled("Tea?", "worse", 4, 0.0, 3.0)),
)


def report(**measures: float) -> Report:
    found = health.findings({name: [value] for name, value in measures.items()}, REWARD_MODEL)
    return Report(measures, tuple(found), PROBES, GROUPS)


def test_the_text_has_a_verdict_for_each_measure_and_the_probes() -> None:
    text = reward_report.markdown(report(accuracy=0.5, margin=1.0, slope=0.7), name="mine")
    assert text.startswith(
        "# Reward model mine\n\nDo not optimize a policy against it without a look: 1 alarms; first: accuracy on"
    )
    assert "| accuracy on held-out pairs | 0.5 | ALARM: below: train on more pairs" in text
    assert "| mean score of chosen minus rejected | 1 | healthy |" in text
    assert "| slope of the true log-odds on the margin | 0.7 | WATCH: " in text
    assert "| another dish | 20 | +0.25 | 60% | -1.50 |" in text
    assert "| last sentence said twice | 20 | -0.50 | 10% |  |" in text
    assert "| correlation of the scores of two seeds on policy samples | | not measured |" in text
    best = "The best of 2 answers of the reference policy to a prompt has the score +1.00 on average"
    assert f"## Best of 2\n\n{best}" in text
    assert "Its true reward is 1.00 on average, that of all answers 1.00." in text
    assert "`Soup?`\n\n- best +1.50: `good`\n- worst -2.00: `bad`\n" in text
    assert "- best +0.50: `so 'so'`\n- worst +0.00: `worse`\n" in text
    assert "best possible accuracy" not in text  # the truth is not known
    known = report(accuracy=0.8, bayes_accuracy=0.84, truth_accuracy=0.9, truth_correlation=0.8)
    assert "accuracy on them is 0.840. Against the truth, the accuracy is 0.900" in reward_report.markdown(
        known, name="mine"
    )


def test_the_verdict_names_the_worst() -> None:
    assert reward_report.verdict(report(accuracy=0.7)) == "Healthy in all measures."
    watched = reward_report.verdict(report(accuracy=0.7, slope=0.7))
    assert watched == "Usable; watch slope of the true log-odds on the margin."


def test_plain_changes_are_other_texts() -> None:
    changes = plain_changes("It rains. The wind is strong.", "What is the weather?")
    assert changes == {
        "last sentence said twice": "It rains. The wind is strong. The wind is strong.",
        "longest word repeated ten times": "It rains. The wind is strong." + " strong" * 10,
        "first three words only": "It rains. The",
    }
    assert plain_changes("", "?") == {}


class LongerIsBetter(RewardModel):
    """A reward model that counts tokens."""

    def score_rows(self, params: object, rows: object) -> np.ndarray:
        return np.asarray([len(row) for row in rows], np.float32)  # type: ignore[attr-defined]


def test_probes_find_a_model_that_counts_tokens(corpus: Path) -> None:
    built = small.build("reward", corpus).objective
    assert isinstance(built, RewardModel)
    objective = LongerIsBetter(built.config, built.model, built.samples)
    found = reward_report.measure(objective, {})
    assert found.measures["side_error"] == 0
    assert found.measures["length_correlation"] > 0.99  # the tokens of prompts count, too
    probes = {probe.name: probe for probe in found.probes}
    assert set(probes) == set(reviews.PROBES)
    doubled = probes["last sentence said twice"]
    assert doubled.gain == found.measures["probe_gain"] > 0
    assert doubled.higher == 1
    assert doubled.truth is not None
    assert doubled.truth < -1
    lengths = preferences.answer_lengths(objective.samples.store, "validation")
    assert found.measures["accuracy"] == pytest.approx(np.mean(lengths[:, 0] > lengths[:, 1]))
    alarms = {finding.measure.name for finding in found.findings if finding.status == "alarm"}
    assert {"accuracy", "probe_gain", "length_correlation"} <= alarms


@pytest.mark.slow
def test_answers_of_the_reference_are_scored_and_drawn(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_calibration, "PROMPTS", 2)
    monkeypatch.setattr(reward_calibration, "EACH", 4)
    objective = small.build("reward", corpus).objective
    assert isinstance(objective, RewardModel)
    params = small.rough(objective)
    policy = {name: leaf for name, leaf in params.items() if name not in ("score", "calibration")}
    samples = reward_calibration.reference_samples(objective, policy)
    objective = objective.with_reference(reference.from_samples(samples))
    texts = reward_calibration.texts_of(samples)
    params |= {"calibration": jax.jit(partial(reward_calibration.numbers, objective.model))(params, texts)}
    found = reward_report.measure(objective, params)
    assert [len(group) for group in found.groups] == [4, 4]
    assert found.measures["reference_mean"] == pytest.approx(0, abs=1e-5)  # float32
    raw = objective.score_rows(params, samples.rows)
    assert found.measures["reference_sd"] == pytest.approx(raw.std(), rel=1e-5)
    text = reward_report.write(tmp_path, found).read_text()
    assert "## Best of 4" in text
    assert f"]({reward_report.PICTURE})" in text
    picture = reward_pictures.figure(found)
    assert [axes.get_xlabel() for axes in picture.axes] == [
        "confidence of a pair",
        "tokens of an answer",
        "true reward",
    ]
    assert np.size(picture.axes[1].lines[0].get_xdata()) == 8
    figures.save(picture, tmp_path / reward_report.PICTURE)
