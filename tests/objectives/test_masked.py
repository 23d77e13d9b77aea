"""BERT's objective: its scores and baselines, against plain counts."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.run import build, validation
from tests import small


@pytest.fixture(scope="module")
def run(corpus: Path) -> build.Run:
    return small.build("masked", corpus, "train.evaluate_batches=0")


def test_scores_equal_numpy(run: build.Run) -> None:
    """The mean over the masked tokens, and the mean over the rows."""
    params = small.rough(run.objective)
    scores = validation.evaluator(run)(SimpleNamespace(params=params, ema=None, update=0), False)  # type: ignore[arg-type]
    forward = jax.jit(
        lambda b: run.model.apply(
            {"params": params}, b["inputs_BT"], **{k: b[k] for k in ("kinds_BT", "real_BT", "places_BP")}
        )
    )

    def entropy(logits: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = np.asarray(logits, np.float64)
        picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return np.log(np.exp(logits).sum(-1)) - picked, logits.argmax(-1) == targets

    sums, weight, rows = Counter[str](), 0.0, 0.0
    for batch in run.samples.validation():
        outputs, mask, real = forward(batch), batch["weights_BP"], batch["rows_B"]
        loss_BP, hits_BP = entropy(outputs.logits_BPV, batch["targets_BP"])
        loss_B, hits_B = entropy(outputs.next_B2, batch["next_B"])
        sums["masked_loss"] += (mask * loss_BP).sum()
        sums["masked_accuracy"] += (mask * hits_BP).sum()
        sums["next_loss"] += (real * loss_B).sum()
        sums["next_accuracy"] += (real * hits_B).sum()
        sums["loss"] += (mask * loss_BP).sum() + mask.shape[1] * (real * loss_B).sum()
        weight += mask.sum()
        rows += real.sum()
    expected = {f"val_{name}": value / (rows if "next" in name else weight) for name, value in sums.items()}
    assert scores == pytest.approx(expected, rel=1e-5)  # float32


def test_baselines_are_plain_counts(run: build.Run) -> None:
    special = run.store.tokenizer.special_ids
    counts = Counter(i for i in run.store.sources[0].ids.tolist() if i not in special)
    (most, _), *_ = counts.most_common(1)
    targets, answers = [], []
    for batch in run.samples.validation():
        used = batch["rows_B"] > 0
        targets += batch["targets_BP"][batch["weights_BP"] > 0].tolist()
        answers += batch["next_B"][used].tolist()
    more = max(answers.count(0), answers.count(1))
    assert run.objective.baselines() == pytest.approx(
        {
            "most_frequent_token_masked_accuracy": targets.count(most) / len(targets),
            "constant_next_accuracy": more / len(answers),
        }
    )


def test_a_sample_shows_rows_and_what_is_filled_in(run: build.Run) -> None:
    lines = run.objective.sample(small.rough(run.objective)).splitlines()
    assert len(lines) == 6
    batch = next(iter(run.samples.validation()))
    for row, (text, filled) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert text == run.samples.row_text(batch, row)
        guesses = filled.removeprefix("  fills in: ").split(", ")
        assert len(guesses) == batch["weights_BP"][row].sum()
