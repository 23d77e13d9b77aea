"""An objective of one's own: the methods that it needs, and the defaults of all others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import Config, UserError
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.objectives import losses, registry
from lmjax.objectives.causal import Carried, Causal
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.samples import Batch, Samples
from lmjax.objectives.text_samples import TextSamples
from lmjax.run import build, validation
from tests import small


class Brier(Causal):
    """The squared distance of the predicted distribution from the target, over the windows of `Causal`."""

    def loss(self, params: Any, batch: Mapping[str, Any], *, rng: Any = None, carry: Any = None, train: bool) -> Loss:
        logits_BTV = losses.apply(self.model, params, batch["inputs_BT"], rng=rng, train=train)
        miss_BTV = jax.nn.softmax(logits_BTV) - jax.nn.one_hot(batch["targets_BT"], logits_BTV.shape[-1])
        weights_BT = batch["weights_BT"]
        return Loss(jnp.sum(weights_BT * jnp.square(miss_BTV).sum(-1)), jnp.sum(weights_BT), {})


class Letters(Samples):
    """Rows of two tokens each: the parity of a number, then the number."""

    @classmethod
    def build(cls, config: Config, store: Store) -> "Letters":
        return cls(config, store, Order((64,), seed=config.seed))

    def arrays(self, ids: np.ndarray) -> Batch:
        numbers = np.asarray(ids % 64, np.int32)
        return {"inputs_BT": numbers[:, None] % 2, "targets_BT": numbers[:, None]}

    def blank(self, rows: int) -> Batch:
        return dict.fromkeys(("inputs_BT", "targets_BT"), np.zeros((rows, 1), np.int32))

    def validation(self) -> Iterator[Batch]:
        yield self.arrays(np.arange(self.config.batch.microbatch))

    def row_text(self, rows: Batch, row: int) -> str:
        return str(rows["targets_BT"][row, 0])


class Predict(Objective):
    """Cross-entropy over samples of one's own; nothing else."""

    samples_type = Letters

    def loss(self, params: Any, batch: Mapping[str, Any], *, rng: Any = None, carry: Any = None, train: bool) -> Loss:
        logits_BTV = losses.apply(self.model, params, batch["inputs_BT"], rng=rng, train=train)
        log_z_BT, target_BT = losses.log_z_and_target(logits_BTV, batch["targets_BT"])
        return Loss(jnp.sum(log_z_BT - target_BT), jnp.float32(batch["targets_BT"].size), {})


def registered(monkeypatch: pytest.MonkeyPatch, objective: type[Objective]) -> None:
    monkeypatch.setattr(registry, "OBJECTIVES", {**registry.OBJECTIVES, "causal": objective})


@pytest.mark.parametrize(("objective", "samples"), [(Brier, TextSamples), (Predict, Letters)])
def test_an_objective_with_a_loss_alone_can_be_trained_and_measured(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, objective: type[Objective], samples: type[Samples]
) -> None:
    registered(monkeypatch, objective)
    run = small.build("lstm", corpus, "train.evaluate_batches=1", "model.carried=false", "model.dropout=0.0")
    assert type(run.objective) is objective
    assert type(run.samples) is samples
    params = small.rough(run.objective)
    rows: Any = next(iter(run.samples.validation()))
    sums = run.objective.loss(params, rows, train=False)
    scores = validation.evaluator(run)(SimpleNamespace(params=params, ema=None, update=0), False)  # type: ignore[arg-type]
    assert scores["val_loss"] == pytest.approx(float(sums.loss / sums.weight), rel=1e-5)  # float32
    assert set(run.abstract_batch["arrays"]) == set(rows)
    without = build.without_data(run.config)
    assert without.abstract_batch == run.abstract_batch


def test_a_subclass_of_causal_is_not_replaced_by_the_carried_variant(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recurrent model with a carried state selects `Carried` for `Causal`; another loss is refused."""
    assert type(small.build("lstm", corpus).objective) is Carried
    registered(monkeypatch, Brier)
    with pytest.raises(UserError, match=r"set model\.carried=false$"):
        small.build("lstm", corpus)
    assert type(small.build("lstm", corpus, "model.carried=false").objective) is Brier


def test_rows_computed_one_by_one_equal_rows_computed_at_once(corpus: Path) -> None:
    run = small.build("nnlm", corpus)
    params, batch = small.rough(run.objective), small.rows(run.samples, 3)
    one_by_one = jax.jit(lambda batch: Objective.by_row(run.objective, params, batch))(batch)
    at_once = jax.jit(lambda batch: run.objective.by_row(params, batch))(batch)
    np.testing.assert_allclose(one_by_one[0], at_once[0], rtol=1e-5)  # float32, added up in another order
    np.testing.assert_array_equal(one_by_one[1], at_once[1])


def test_defaults_say_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, Predict)
    run = small.build("nnlm", corpus)
    objective, samples = run.objective, run.samples
    assert (objective.sample(None), objective.finish(None), objective.baselines()) == ("", {}, {})
    assert (samples.documents_of(3), samples.place(3), samples.beginning(0, 0, 9)) == ([], "sample 3", "")
    assert samples.share(samples.blank(2)) == 1
    with pytest.raises(UserError, match=r"objective\.family=causal answers no prompts; define `answer` in Predict"):
        objective.answer(None, "x", tokenizer=run.store.tokenizer)
