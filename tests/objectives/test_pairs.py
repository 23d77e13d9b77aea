"""Translation and classification: scores against sacrebleu and a confusion matrix."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import sacrebleu

from lmjax.config import UserError
from lmjax.config.codec import apply_overrides
from lmjax.data.batches import records
from lmjax.objectives import classification, pairs, translation
from lmjax.run import build, validation
from tests import small


def written(text: str, number: int) -> str:
    """What a translator makes of it that errs in two of three."""
    return text if number % 3 == 0 else text[::-1] if number % 3 == 1 else f"{text} too"


@pytest.mark.parametrize("scored", [0, 7])
def test_translations_are_scored_as_sacrebleu_does(corpus: Path, monkeypatch: pytest.MonkeyPatch, scored: int) -> None:
    made = small.build("translation", corpus, f"objective.scored={scored}", "model.context=48")
    task, store, end = made.task, made.store, made.store.tokenizer.end_of_text
    assert isinstance(task, translation.Translation)
    order = np.concatenate(task.buckets.validation).tolist()
    texts = [records.text_of(store, "validation", record) for record in order]
    chosen = np.linspace(0, len(texts) - 1, scored).astype(int).tolist() if scored else list(range(len(texts)))
    answers = {source: written(target, number) for number, (source, target) in enumerate(texts)}

    def translate(model: Any, params: Any, source_BS: Any, source_mask_BS: Any, **settings: Any) -> np.ndarray:
        assert (settings["begin"], settings["end"], settings["beams"]) == (end, end, 1)
        rows = [store.tokenizer.decode(row[mask > 0][:-1]) for row, mask in zip(source_BS, source_mask_BS, strict=True)]
        made = [[*store.tokenizer.encode(answers[row]), end, end] for row in rows]
        width = max(map(len, made))
        return np.asarray([ids + [end] * (width - len(ids)) for ids in made])

    monkeypatch.setattr(translation, "translate", translate)
    outputs, targets = [answers[texts[i][0]] for i in chosen], [texts[i][1] for i in chosen]
    found = task.finish(None)
    assert found["val_exact"] == pytest.approx(np.mean([a == b for a, b in zip(outputs, targets, strict=True)]))
    assert found["val_bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [targets]).score)
    assert 0 < found["val_exact"] < 1
    sample = task.sample(None)
    assert f"{texts[0][0]}\n  -> {answers[texts[0][0]]}\n  ({texts[0][1]})" in sample
    assert sample.count("->") == pairs.SHOWN


def test_smoothing_is_for_training_only(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, given = small.build("translation", corpus, "objective.label_smoothing=0.2").task, []

    def noted(*_: Any, label_smoothing: float, train: bool, rng: Any) -> Any:
        given.append((label_smoothing, train))
        return 0, 0, {}

    monkeypatch.setattr(translation.losses, "translation", noted)
    for train in (True, False):
        task.loss(None, {}, train=train)
    assert given == [(0.2, True), (0.0, False)]


def test_classes_are_scored_by_their_confusion_matrix(corpus: Path) -> None:
    made = small.build("gpt labels", corpus, "train.evaluate_batches=0")
    task = made.task
    assert isinstance(task, classification.Classification)
    names = made.config.objective.labels  # type: ignore[union-attr]
    assert names == ("cat", "dog", "none")
    params = small.rough(task)
    logits = jax.jit(lambda batch: task.logits(params, batch, train=False))
    confusion, loss = np.zeros((3, 3)), 0.0
    for batch in task.validation():
        logits_BC = np.asarray(logits(batch), np.float64)
        for row, label, weight in zip(logits_BC, batch["labels_B"], batch["weights_B"], strict=True):
            confusion[label, row.argmax()] += weight
            loss += weight * (np.log(np.exp(row).sum()) - row[label])
    count = made.store.manifest["records"]["validation"]
    assert confusion.sum() == count
    right, has, given = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    found = validation.evaluator(made)(SimpleNamespace(params=params, ema=None), False)  # type: ignore[arg-type]
    expected = {
        "val_loss": loss / count,
        "val_accuracy": right.sum() / count,
        "val_f1": np.mean(2 * right / (has + given)),
    }
    assert found == pytest.approx(expected, rel=1e-5)  # float32
    shown = task.sample(params).splitlines()
    assert [line.partition(":")[0].split()[0] in names for line in shown] == [True] * 4  # a microbatch
    train = [names[i] for i in made.store.streams["train-label"].ids]
    held = [names[i] for i in made.store.streams["validation-label"].ids]
    most = max(names, key=train.count)
    assert task.baselines() == {"most_frequent_label_accuracy": pytest.approx(held.count(most) / len(held))}


def test_labels_of_other_data_are_refused(corpus: Path) -> None:
    made = small.build("gpt labels", corpus)
    again = apply_overrides(made.config, [])
    assert build.build(again, made.store).config == made.config
    other = apply_overrides(made.config, ['objective.labels=["cat","horse"]'])
    message = r"^the labels of the data are cat, dog, none, those of objective\.labels others: leave it out$"
    with pytest.raises(UserError, match=message):
        build.build(other, made.store)
