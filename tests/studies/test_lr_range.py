"""The range test of the learning rate finds where the loss falls, is lowest and rises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import BatchConfig, Config, ScheduleConfig, TrainConfig, UserError
from lmjax.optim.batch_plan import batch_plan
from lmjax.optim.learning_rate import learning_rates
from lmjax.studies import lr_range


def test_the_rate_rises_by_the_same_factor_in_each_update() -> None:
    plan = batch_plan(BatchConfig(((0, 64),), microbatch=1), TrainConfig(updates=41), 64)
    schedule = ScheduleConfig(peak=0.5, warmup=0.0, shape="range", final=1e-4, unit="updates")
    rates = learning_rates(schedule, plan)
    np.testing.assert_allclose(rates, np.geomspace(0.5e-4, 0.5, 41), rtol=1e-5)  # float32
    with pytest.raises(UserError, match=r"set schedule\.final above 0"):
        learning_rates(replace(schedule, final=0.0), plan)


def test_known_curves_give_their_rates() -> None:
    """A loss that falls as a logistic function around 1e-3, and diverges above 0.3."""
    rates = np.geomspace(1e-6, 10, 2000)  # dense, so that the average hardly lags
    losses = 8 - 5 / (1 + np.exp(-4 * np.log(rates / 1e-3))) + np.where(rates > 0.3, 40 * np.log(rates / 0.3), 0)
    found = lr_range.range_of(rates, losses)
    assert found.steepest == pytest.approx(1e-3, rel=0.15)
    assert found.lowest == pytest.approx(0.3, rel=0.15)
    assert found.suggestion == found.steepest
    assert found.diverged is not None
    assert found.diverged == pytest.approx(0.3 * np.exp(1.5 / 40), rel=0.15)  # 1.5 nats above a loss of 3
    broken = lr_range.range_of(rates, np.where(rates > 1, np.nan, losses))
    assert broken.rates.max() <= 1
    assert lr_range.range_of(rates[:900], losses[:900]).diverged is None
    with pytest.raises(UserError, match="has 2 finite losses"):
        lr_range.range_of(rates[:3], np.asarray([1.0, 2.0, np.inf]))


@pytest.mark.slow
def test_a_range_test_is_a_run_and_writes_its_results(tiny: Config, tmp_path: Path) -> None:
    for largest in (0.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--lr-range"):
            lr_range.run_range(tiny, tmp_path, largest=largest)
    found = lr_range.run_range(tiny, tmp_path, largest=1.0)
    assert len(found.rates) == tiny.train.updates
    written = json.loads((tmp_path / "lr_range.json").read_text())
    assert written["suggestion"] == found.suggestion
    assert {path.name for path in tmp_path.iterdir()} == {"run", "lr_range.md", "lr_range.json", "lr_range.png"}
