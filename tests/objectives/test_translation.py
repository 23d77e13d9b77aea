"""Translation: scores against sacrebleu."""

from pathlib import Path
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


def test_smoothing_is_for_training_only(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, calls = small.build("translation", corpus, "objective.label_smoothing=0.2").objective, []

    def record(*_: Any, label_smoothing: float, train: bool, rng: Any) -> Any:
        calls.append((label_smoothing, train))
        return 0, 0, {}

    monkeypatch.setattr(translation.losses, "translation", record)
    for train in (True, False):
        objective.loss(None, {}, train=train)
    assert calls == [(0.2, True), (0.0, False)]
