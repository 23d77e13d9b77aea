"""The reward model: its loss, and what must not change a score."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import RewardConfig, UserError
from lmjax.data.batches import preferences
from lmjax.data.chat_tokens import ChatTokens
from lmjax.data.sources.chat_rows import Turn
from lmjax.models import scalar
from lmjax.objectives import reference, reward_calibration
from lmjax.objectives.reward import RewardModel
from tests import small

ROUNDED = {"rtol": 0, "atol": 1.5e-6}  # the expected numbers have six decimals


def reward_model(corpus: Path, *changes: str) -> tuple[RewardModel, Any]:
    objective = small.build("reward", corpus, *changes).objective
    assert isinstance(objective, RewardModel)
    return objective, small.rough(objective)


class Given(RewardModel):
    """A reward model with given scores, which are its parameters."""

    def raw_scores(self, params: Any, batch: Any, *, rng: Any = None, train: bool = False) -> Any:
        return params


# ---- Without a program to compile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "train", "expected"),
    [
        (RewardConfig(margins=False), True, 0.720337),
        (RewardConfig(margins=False, centring=0.01), True, 0.741987),
        (RewardConfig(), True, 0.850662),
        (RewardConfig(centring=0.01), False, 0.720337),  # a measurement has neither margins nor the term
    ],
)
def test_the_loss_of_the_example(corpus: Path, settings: RewardConfig, train: bool, expected: float) -> None:
    nothing: Any = None
    objective = Given(replace(small.config("reward", corpus), objective=settings), nothing, nothing)
    scores = jnp.asarray([[1.2, 0.5], [0.3, 0.9], [np.nan, 1.0]])
    batch = {"weights_B": jnp.asarray([1.0, 1.0, 0.0]), "margins_B": jnp.asarray([0.5, 0.1, 9.0])}
    loss = jax.jit(lambda: objective.loss(scores, batch, train=train))()
    np.testing.assert_allclose(loss.loss / loss.weight, expected, **ROUNDED)
    totals = {"loss": float(loss.loss), "weight": float(loss.weight), **{k: float(v) for k, v in loss.sums.items()}}
    found = objective.scores(totals)
    assert found["val_accuracy"] == 0.5
    assert found["val_margin"] == pytest.approx(0.05, abs=1e-6)


def test_an_answer_is_needed_to_score_one(corpus: Path) -> None:
    objective, _ = reward_model(corpus)
    tokenizer = objective.samples.store.tokenizer
    with pytest.raises(UserError, match="with a tab between them"):
        objective.answer(None, "How was the soup?", tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"has 1,\d+ tokens with its control tokens, model\.context is 256"):
        objective.answer(None, "How?\t" + "x" * 1000, tokenizer=tokenizer)


def test_the_rule_about_length_is_the_better_one_of_the_training(corpus: Path) -> None:
    objective, _ = reward_model(corpus)
    store, hits = objective.samples.store, []
    for record in objective.samples.fitting["validation"].records.tolist():
        _, chosen, rejected = preferences.ids_of(store, "validation", record)
        hits.append(0.5 if len(chosen) == len(rejected) else float(len(chosen) < len(rejected)))
    lengths = preferences.answer_lengths(store, "train")
    assert (lengths[:, 0] < lengths[:, 1]).sum() > (lengths[:, 0] > lengths[:, 1]).sum()  # so the shorter one wins
    assert objective.baselines() == {"length_rule_accuracy": pytest.approx(np.mean(hits))}


# ---- With a program --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_do_not_depend_on_batch_width_or_side(corpus: Path) -> None:
    """float32 in programs of other widths: 1e-5."""
    objective, params = reward_model(corpus)
    records = objective.samples.fitting["validation"].records[:4]
    _, expected = objective.pair_scores(params, "validation", records)
    score = jax.jit(objective.raw_scores)
    for width in (232, 256):
        batch = preferences.arrays(objective.samples.store, "validation", records, width=width)
        found = np.asarray(score(params, batch))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        swapped = {name: array[:, ::-1] for name, array in batch.items() if name.endswith(("_B2T", "_B2"))}
        np.testing.assert_array_equal(np.asarray(score(params, batch | swapped))[:, ::-1], found)
        turned = {name: array[::-1] for name, array in batch.items()}
        np.testing.assert_array_equal(np.asarray(score(params, turned))[::-1], found)


@pytest.mark.slow
def test_gain_and_bias_have_no_part_in_the_loss(corpus: Path) -> None:
    objective, params = reward_model(corpus)
    batch: Any = small.rows(objective.samples)

    def loss(params: Any) -> Any:
        return objective.loss(params, batch, train=True).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert jax.tree.leaves(gradient["calibration"]) == [0, 0]
    assert np.abs(gradient["score"]["kernel"]).min() > 0
    assert float(jax.jit(loss)(scalar.calibrated(params, mean=3.0, deviation=0.1))) == float(value)


@pytest.mark.slow
def test_calibration_is_pure_and_normalizes_the_samples_of_the_reference(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_calibration, "PROMPTS", 3)
    monkeypatch.setattr(reward_calibration, "EACH", 4)
    objective, params = reward_model(corpus)
    policy = {name: leaf for name, leaf in params.items() if name not in ("score", "calibration")}
    first, again = (reference.from_samples(reward_calibration.reference_samples(objective, policy)) for _ in range(2))
    assert first == again
    objective = objective.with_reference(first)
    assert objective.answers is not None
    rows, sizes = objective.answers.rows, objective.answers.prompt_sizes
    assert len({tuple(row[:size].tolist()) for row, size in zip(rows, sizes, strict=True)}) == 3
    assert len({tuple(row.tolist()) for row in rows}) == 12
    assert all(row[-1] == objective.samples.control.end for row in rows)
    texts = reward_calibration.texts_of(objective.answers)
    numbers = jax.jit(partial(reward_calibration.numbers, objective.model))
    raw, calibration = objective.score_rows(params, rows), numbers(params, texts)
    scores = calibration["gain"] * raw + calibration["bias"]
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-5)
    constant = params | {"score": {"kernel": np.zeros_like(params["score"]["kernel"])}}
    assert numbers(constant, texts) == constant["calibration"]  # they stay as they are


@pytest.mark.slow
def test_an_answer_is_scored_as_in_training(corpus: Path) -> None:
    objective, params = reward_model(corpus)
    tokenizer = objective.samples.store.tokenizer
    control = ChatTokens(tokenizer)
    ids = [*control.prompt([Turn("user", "How?", False)]), *tokenizer.encode("Good."), control.end]
    raw = objective.score_rows(params, [np.asarray(ids)])[0]
    calibrated = params["calibration"]["gain"] * raw + params["calibration"]["bias"]
    # Printed with three decimals.
    assert float(objective.answer(params, "How?\tGood.", tokenizer=tokenizer)) == pytest.approx(calibrated, abs=6e-4)


@pytest.mark.slow
def test_the_end_of_a_run_reports_the_truth_of_reviews(corpus: Path) -> None:
    objective, params = reward_model(corpus)
    found = objective.finish(params)
    assert {"val_truth_accuracy", "val_bayes_accuracy", "val_slope", "val_calibration_error"} <= found.keys()
    assert 0.7 < found["val_bayes_accuracy"] < 1
    assert objective.sample(params).count("preferred") == 4
