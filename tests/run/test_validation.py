"""Scores on the validation split: where the loss is not a number, no score is one."""

import math
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import BERTConfig, ClassificationConfig, Config, MaskedConfig, RecordsConfig
from lmjax.data.batches import masking, records
from lmjax.inference.generate import NotFinite
from lmjax.objectives import classification, losses
from lmjax.objectives.classification import Classification
from lmjax.objectives.masked import Masked
from lmjax.objectives.objective import Objective
from lmjax.objectives.translation import Translation
from lmjax.run.validation import scores_of


def objective(kind: type[Objective], settings: Any) -> Objective:
    """An objective without samples: `scores` reads the configuration only."""
    config = Config(objective=settings, model=BERTConfig(), data=RecordsConfig())
    made = object.__new__(kind)
    object.__setattr__(made, "config", config)
    return made


COUNTS = {"weight": 4.0, "accuracy": 3.0, "masked_accuracy": 3.0, "next_accuracy": 2.0, "next_rows": 2.0}
COUNTS |= {f"{name}_{label}": 1.0 for name in ("has", "given", "both") for label in (0, 1)}
KINDS = [
    (Classification, ClassificationConfig(labels=("a", "b"))),
    (Masked, MaskedConfig()),
    (Translation, MaskedConfig()),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_no_score_is_a_number_where_the_loss_is_none(kind: type[Objective], settings: Any) -> None:
    """The accuracy of NaN logits would be the share of the first label."""
    totals = COUNTS | dict.fromkeys(("loss", "masked_loss", "next_loss"), 2.0)
    scores = scores_of(objective(kind, settings), totals)
    assert all(map(math.isfinite, scores.values()))
    assert any("accuracy" in name for name in scores)
    broken = scores_of(objective(kind, settings), totals | {"loss": math.nan})
    assert broken.keys() == scores.keys()
    assert all(map(math.isnan, broken.values()))
    infinite = scores_of(objective(kind, settings), totals | {"loss": math.inf})  # a target of probability 0
    assert infinite["val_loss"] == math.inf
    assert sum(map(math.isfinite, infinite.values())) >= 1


def test_logits_that_are_not_numbers_would_count_as_the_first_label() -> None:
    logits_BC = jnp.full((3, 4), jnp.nan)
    loss, hits = losses.classified(logits_BC, jnp.array([0, 0, 1]), jnp.ones(3))
    assert math.isnan(float(loss))
    assert float(hits) == 2.0


@pytest.mark.parametrize("name", ["classification", "masked"])
def test_an_answer_of_logits_that_are_not_finite_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = SimpleNamespace(encode_batch=lambda texts: [[1]] * len(texts), token=str)
    if name == "classification":
        asked = objective(Classification, ClassificationConfig(labels=("a", "b")))
        object.__setattr__(asked, "samples", SimpleNamespace(split_prompt=lambda prompt: [prompt]))
        monkeypatch.setattr(records, "row", lambda *args, **named: {})
        monkeypatch.setattr(classification, "lead_ids", lambda tokenizer: [])
        monkeypatch.setattr(Classification, "logits", lambda *args, **named: jnp.full((1, 2), jnp.nan))
        prompt = "text"
    else:
        asked = objective(Masked, MaskedConfig())
        facts = SimpleNamespace(cls=2, mask=3, sep=4, pad=0)
        monkeypatch.setattr(masking, "facts", lambda tokenizer: facts)
        outputs = SimpleNamespace(logits_BPV=jnp.full((1, 1, 9), jnp.nan))
        object.__setattr__(asked, "model", SimpleNamespace(apply=lambda *args, **named: outputs))
        prompt = "a [MASK]"
    with pytest.raises(NotFinite):
        asked.answer(np.zeros(1), prompt, tokenizer=tokenizer)
