"""What holds of the objective of every family."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.objectives import registry
from tests import all_slow_but, small

ONE_EACH = ("nnlm", "lstm", "masked", "translation", "bert labels", "gpt labels", "chat", "packed chat", "reward")


@pytest.mark.parametrize("name", all_slow_but({0, 1}, ONE_EACH))
def test_losses_of_rows_add_up_and_batches_are_pure(corpus: Path, name: str) -> None:
    run = small.build(name, corpus)
    objective, samples, params = run.objective, run.samples, small.rough(run.objective)
    ids, _ = samples.order.take(5, 4)
    batch, turned = samples.arrays(ids), samples.arrays(ids[::-1])
    for key, array in batch.items():
        np.testing.assert_array_equal(array, turned[key][::-1])

    counted = np.asarray([1, 1, 1, 0], np.float32)  # the last row is there only to fill the batch
    batch |= {key: (batch[key].T * counted).T for key in batch if key.startswith("weights")}
    sums, (losses_B, weights_B) = jax.jit(
        lambda batch: (objective.loss(params, batch, train=False), objective.by_row(params, batch))
    )(batch)
    total = sums.sums.get("masked_loss", sums.loss)  # BERT's rows are told apart by their masked tokens
    np.testing.assert_allclose(losses_B.sum(), total, rtol=1e-5)  # float32, added up in another order
    np.testing.assert_allclose(weights_B.sum(), sums.weight, rtol=1e-6)
    assert losses_B.shape == weights_B.shape == (4,)
    assert losses_B[-1] == weights_B[-1] == 0


@pytest.mark.parametrize("name", ["lstm", "gpt labels"])
def test_an_objective_without_data_has_the_same_parameters_and_arrays(corpus: Path, name: str) -> None:
    run = small.build(name, corpus)
    alone = registry.objective_without_data(run.config)
    assert type(alone) is type(run.objective)
    shapes = [jax.tree.map(np.shape, small.rough(objective)) for objective in (run.objective, alone)]
    assert shapes[0] == shapes[1]
    blank, arrays = alone.samples.blank(4), small.rows(run.samples, 4)
    assert {name: (len(x), x.dtype) for name, x in blank.items()} == {name: (4, x.dtype) for name, x in arrays.items()}
