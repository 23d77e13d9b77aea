"""Translation: scores against sacrebleu."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sacrebleu

from lmjax.data.batches import records
from lmjax.objectives import translation
from lmjax.objectives.record_samples import PairSamples
from tests import small


def written(text: str, number: int) -> str:
    """What a translator makes of it that errs in two of three."""
    return text if number % 3 == 0 else text[::-1] if number % 3 == 1 else f"{text} too"


@pytest.mark.parametrize("scored", [0, 7])
def test_translations_are_scored_as_sacrebleu_does(corpus: Path, monkeypatch: pytest.MonkeyPatch, scored: int) -> None:
    run = small.build("translation", corpus, f"objective.scored={scored}", "model.context=48")
    objective, store, end = run.objective, run.store, run.store.tokenizer.end_of_text
    assert isinstance(run.samples, PairSamples)
    order = np.concatenate(run.samples.buckets.validation).tolist()
    texts = [records.text_of(store, "validation", record) for record in order]
    chosen = np.linspace(0, len(texts) - 1, scored).astype(int).tolist() if scored else list(range(len(texts)))
    answers = {source: written(target, number) for number, (source, target) in enumerate(texts)}

    def translate(model: Any, params: Any, source_BS: Any, source_mask_BS: Any, **settings: Any) -> np.ndarray:
        assert (settings["begin"], settings["end"], settings["beams"]) == (end, end, 1)
        rows = [store.tokenizer.decode(row[mask > 0][:-1]) for row, mask in zip(source_BS, source_mask_BS, strict=True)]
        ids_of_rows = [[*store.tokenizer.encode(answers[row]), end, end] for row in rows]
        width = max(map(len, ids_of_rows))
        return np.asarray([ids + [end] * (width - len(ids)) for ids in ids_of_rows])

    monkeypatch.setattr(translation, "translate", translate)
    outputs, targets = [answers[texts[i][0]] for i in chosen], [texts[i][1] for i in chosen]
    scores = objective.finish(None)
    assert scores["val_exact"] == pytest.approx(np.mean([a == b for a, b in zip(outputs, targets, strict=True)]))
    assert scores["val_bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [targets]).score)
    assert 0 < scores["val_exact"] < 1
    sample = objective.sample(None)
    assert f"{texts[0][0]}\n  -> {answers[texts[0][0]]}\n  ({texts[0][1]})" in sample
    assert sample.count("->") == translation.SHOWN


def test_references_are_complete_where_the_context_cuts(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = 16
    run = small.build("translation", corpus, "objective.scored=0", f"model.context={context}")
    samples, objective = run.samples, run.objective
    assert isinstance(samples, PairSamples)
    order = np.concatenate(samples.buckets.validation).tolist()
    texts = [records.text_of(run.store, "validation", record) for record in order]
    written = iter([target.encode()[:context] for _, target in texts] + [b""] * run.config.batch.microbatch)

    def translate(model: Any, params: Any, source_BS: Any, source_mask_BS: Any, *, end: int, **_: Any) -> np.ndarray:
        rows = [[*next(written)] for _ in source_BS]
        return np.asarray([row + [end] * (context - len(row)) for row in rows])

    monkeypatch.setattr(translation, "translate", translate)
    targets = [target for _, target in texts]
    outputs = [target.encode()[:context].decode() for target in targets]
    long = sum(len(target.encode()) > context for target in targets)
    assert long > 0
    assert samples.truncated()["validation_targets"] == long
    assert samples.truncated()["validation_sources"] == sum(len(source.encode()) >= context for source, _ in texts)
    scores = objective.finish(None)
    assert scores["val_exact"] == pytest.approx(1 - long / len(targets))
    assert scores["val_bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [targets]).score)
    [note] = objective.notes()
    assert f"{long} of {len(targets)} targets" in note


@pytest.mark.slow
def test_equal_logits_are_one_prediction_in_a_measurement() -> None:
    model = SimpleNamespace(apply=lambda *_, **__: np.zeros((1, 4, 3), np.float32))
    ids = np.asarray([[0, 1, 2, 0]], np.int32)
    batch: Any = dict.fromkeys(("source_BS", "inputs_BT", "targets_BT", "source_mask_BS"), ids)
    batch["weights_BT"] = np.ones((1, 4))
    *_, sums = translation.losses.translation(model, {}, batch, label_smoothing=0.0, train=False)  # pyright: ignore
    assert float(sums["accuracy"]) == 2  # the first of equal logits is token 0


def test_smoothing_is_for_training_only(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, calls = small.build("translation", corpus, "objective.label_smoothing=0.2").objective, []

    def record(*_: Any, label_smoothing: float, train: bool, rng: Any) -> Any:
        calls.append((label_smoothing, train))
        return 0, 0, {}

    monkeypatch.setattr(translation.losses, "translation", record)
    for train in (True, False):
        objective.loss(None, {}, train=train)
    assert calls == [(0.2, True), (0.0, False)]
