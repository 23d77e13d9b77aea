"""Direct preference optimization: log-probabilities, losses, and the reference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import DirectConfig, RunError
from lmjax.data.batches import preferences
from lmjax.objectives import reference
from lmjax.objectives.direct import DirectPreference
from tests import small

ROUNDED = {"rtol": 0, "atol": 1.5e-6}  # the expected numbers have six decimals

# Sums of log p of (preferred, other) answers of two pairs, and their tokens. A third row only fills the batch.
POLICY = jnp.asarray([[-3.5, -5.0], [-1.6, -3.0], [jnp.nan, 0.0]])
REFERENCE = jnp.asarray([[-4.2, -4.2], [-1.9, -2.8], [0.0, 0.0]])
COUNTS = jnp.asarray([[3.0, 3.0], [2.0, 3.0], [1.0, 1.0]])


def direct(corpus: Path, *changes: str) -> tuple[DirectPreference, Any]:
    objective = small.build("dpo", corpus, *changes).objective
    assert isinstance(objective, DirectPreference)
    return objective, small.rough(objective)


class Given(DirectPreference):
    """A policy with given log-probabilities, which are its parameters."""

    def logprobs(self, params: Any, batch: Any) -> Any:
        return params, COUNTS


# ---- Without a program to compile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (DirectConfig(), 0.644708),
        (DirectConfig(loss="hinge"), 0.9),
        (DirectConfig(loss="ipo"), 21.565140),
        (DirectConfig(loss="robust", label_smoothing=0.1), 0.632208),
        # Mean of -log p of the preferred tokens: (3.5 / 3 + 1.6 / 2) / 2.
        (DirectConfig(sft=0.1), 0.644708 + 0.1 * (3.5 / 3 + 0.8) / 2),
    ],
)
def test_the_loss_of_the_example(corpus: Path, settings: DirectConfig, expected: float) -> None:
    nothing: Any = None
    objective = Given(replace(small.config("dpo", corpus), objective=settings), nothing, nothing)
    batch = {"weights_B": jnp.asarray([1.0, 1.0, 0.0]), "reference_B2": REFERENCE}

    def compute() -> Any:
        losses = [objective.loss(POLICY, batch, train=train) for train in (True, False)]
        return *losses, objective.by_row(POLICY, batch)

    loss, measured, (rows, weights) = jax.jit(compute)()
    np.testing.assert_allclose(loss.loss / loss.weight, expected, **ROUNDED)
    if settings.sft:  # a measurement is without the further term
        np.testing.assert_allclose(measured.loss / measured.weight, 0.644708, **ROUNDED)
    np.testing.assert_allclose(rows.sum(), measured.loss, rtol=1e-6)
    assert weights.tolist() == [1, 1, 0]
    if settings.loss == "sigmoid":
        totals = {name: float(value) for name, value in measured.sums.items()}
        found = objective.scores(totals | {"loss": float(measured.loss), "weight": 2.0})
        assert found["val_chosen_reward"] == pytest.approx(0.05, abs=1e-6)
        assert found["val_rejected_reward"] == pytest.approx(-0.05, abs=1e-6)
        assert found["val_accuracy"] == 1


def test_batches_need_the_log_probabilities_of_the_reference(corpus: Path) -> None:
    objective, _ = direct(corpus)
    with pytest.raises(RunError, match="are not computed"):
        small.rows(objective.samples)
    counts = {side: len(objective.samples.store.streams[f"{side}-prompt"].starts) for side in ("train", "validation")}
    table: Any = {side: np.arange(2 * count, dtype=np.float32).reshape(count, 2) for side, count in counts.items()}
    samples = objective.with_reference(reference.from_table(table)).samples
    ids, _ = samples.order.take(0, 4)
    records = samples.buckets.find(ids, samples.order)[1]
    np.testing.assert_array_equal(samples.arrays(ids)["reference_B2"], table["train"][records])
    held_out = np.concatenate([batch["reference_B2"] for batch in samples.validation()])[: counts["validation"]]
    np.testing.assert_array_equal(held_out, table["validation"][np.concatenate(samples.buckets.validation)])
    blank = samples.blank(3)["reference_B2"]
    assert (blank.shape, blank.dtype) == ((3, 2), np.float32)


# ---- With a program --------------------------------------------------------------------------------------------------


def token_by_token(objective: DirectPreference, params: Any, record: int) -> list[float]:
    """log p of both answers of a pair, each read alone, without padding."""
    prompt, *answers = preferences.ids_of(objective.samples.store, "train", record)
    result = []
    for answer in answers:
        ids = np.concatenate([prompt, answer]).astype(np.int32)
        logits_TV = np.asarray(jax.jit(objective.model.apply)({"params": params}, ids[None])[0], np.float64)
        log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        result.append(sum(log_TV[place - 1, ids[place]] for place in range(len(prompt), len(ids))))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), ("model.positions=rotary", "objective.chunk=64")])
def test_log_probabilities_are_sums_over_the_answer_whatever_the_padding(
    corpus: Path, changes: tuple[str, ...]
) -> None:
    """float32 with sums in another order: 1e-5."""
    objective, params = direct(corpus, *changes)
    records = np.asarray([2, 5])
    expected = np.asarray([token_by_token(objective, params, record) for record in records.tolist()])
    logprobs = jax.jit(objective.logprobs)
    for width in (232, 256):
        batch = preferences.arrays(objective.samples.store, "train", records, width=width)
        found, counts = logprobs(params, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_array_equal(counts, batch["mask_B2T"].sum(-1))
        other = batch | {"tokens_B2T": np.where(np.arange(width) > batch["last_B2"][..., None], 7, batch["tokens_B2T"])}
        np.testing.assert_array_equal(logprobs(params, other)[0], found)  # what follows an answer has no effect


@pytest.mark.slow
def test_at_the_reference_the_loss_is_that_of_guessing(corpus: Path) -> None:
    objective, params = direct(corpus)
    logprobs = jax.jit(lambda batch: objective.logprobs(params, batch)[0])
    table = objective.reference_logprobs(lambda batch: np.asarray(logprobs(batch)))
    assert all((values < 0).all() for values in table.values())  # all pairs fit into the context
    objective = objective.with_reference(reference.from_table(table))
    batch: Any = small.rows(objective.samples)
    loss = jax.jit(lambda params: objective.loss(params, batch, train=True))

    def value(params: Any) -> Any:
        return objective.loss(params, batch, train=True).loss

    sums = loss(params)
    # The sums of a few hundred log-probabilities in float32, of about 500: an error of 1e-4 times beta.
    np.testing.assert_allclose(float(sums.loss / sums.weight), np.log(2), atol=1e-4)
    np.testing.assert_allclose(float(sums.sums["margin"]), 0, atol=1e-3)
    gradient = jax.jit(jax.grad(value))(params)
    size = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(gradient)))
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g / size, params, gradient)
    assert float(loss(moved).sums["margin"]) > 1e-3  # the preferred answers gain


@pytest.mark.slow
def test_the_sample_has_answers_to_validation_prompts(corpus: Path) -> None:
    objective, params = direct(corpus)
    assert objective.sample(params).count("  -> ") == 4
