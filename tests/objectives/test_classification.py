"""Classification: scores against a confusion matrix."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.config.codec import apply_overrides
from lmjax.objectives.classification import Classification
from lmjax.run import build, validation
from tests import small


@pytest.mark.slow
def test_classes_are_scored_by_their_confusion_matrix(corpus: Path) -> None:
    run = small.build("gpt labels", corpus, "train.evaluate_batches=0")
    objective = run.objective
    assert isinstance(objective, Classification)
    names = run.config.objective.labels  # type: ignore[union-attr]
    assert names == ("cat", "dog", "none")
    params = small.rough(objective)
    logits = jax.jit(lambda batch: objective.logits(params, batch, train=False))
    confusion, loss = np.zeros((3, 3)), 0.0
    for batch in run.samples.validation():
        logits_BC = np.asarray(logits(batch), np.float64)
        for row, label, weight in zip(logits_BC, batch["labels_B"], batch["weights_B"], strict=True):
            confusion[label, row.argmax()] += weight
            loss += weight * (np.log(np.exp(row).sum()) - row[label])
    count = run.store.manifest["records"]["validation"]
    assert confusion.sum() == count
    right, has, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    scores = validation.evaluator(run)(SimpleNamespace(params=params, ema=None, update=0), False)  # type: ignore[arg-type]
    expected = {
        "val_loss": loss / count,
        "val_accuracy": right.sum() / count,
        "val_f1": np.mean(2 * right / (has + predicted)),
    }
    assert scores == pytest.approx(expected, rel=1e-5)  # float32
    shown = objective.sample(params).splitlines()
    assert [line.partition(":")[0].split()[0] in names for line in shown] == [True] * 4  # a microbatch
    train = [names[i] for i in run.store.streams["train-label"].ids]
    held = [names[i] for i in run.store.streams["validation-label"].ids]
    most = max(names, key=train.count)
    assert objective.baselines() == {"most_frequent_label_accuracy": pytest.approx(held.count(most) / len(held))}


def test_labels_of_other_data_are_refused(corpus: Path) -> None:
    run = small.build("gpt labels", corpus)
    again = apply_overrides(run.config, [])
    assert build.build(again, run.store).config == run.config
    other = apply_overrides(run.config, ['objective.labels=["cat","horse"]'])
    message = (
        r"^objective\.labels=cat,horse, but the labels of the data are cat, dog, none; leave objective\.labels out"
    )
    with pytest.raises(UserError, match=message):
        build.build(other, run.store)
