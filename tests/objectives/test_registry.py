"""What holds of the task of every family."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.objectives import registry
from tests import all_slow_but, small

ONE_EACH = ("nnlm", "lstm", "masked", "translation", "bert labels", "gpt labels")


@pytest.mark.parametrize("name", all_slow_but({0, 1}, ONE_EACH))
def test_losses_of_rows_add_up_and_batches_are_pure(corpus: Path, name: str) -> None:
    task = small.build(name, corpus).task
    params = small.rough(task)
    ids, _ = task.order.take(5, 4)
    batch, turned = task.arrays(ids), task.arrays(ids[::-1])
    for key, array in batch.items():
        np.testing.assert_array_equal(array, turned[key][::-1])

    counted = np.asarray([1, 1, 1, 0], np.float32)  # the last row is there only to fill the batch
    batch |= {key: (batch[key].T * counted).T for key in batch if key.startswith("weights")}
    found, (losses_B, weights_B) = jax.jit(lambda b: (task.loss(params, b, train=False), task.by_row(params, b)))(batch)
    total = found.sums.get("masked_loss", found.loss)  # BERT's rows are told apart by their masked tokens
    np.testing.assert_allclose(losses_B.sum(), total, rtol=1e-5)  # float32, added up in another order
    np.testing.assert_allclose(weights_B.sum(), found.weight, rtol=1e-6)
    assert losses_B.shape == weights_B.shape == (4,)
    assert losses_B[-1] == weights_B[-1] == 0


@pytest.mark.parametrize("name", ["lstm", "gpt labels"])
def test_a_task_without_data_has_the_same_parameters(corpus: Path, name: str) -> None:
    made = small.build(name, corpus)
    alone = registry.objective_without_data(made.config)
    shapes = [jax.tree.map(np.shape, small.rough(task)) for task in (made.task, alone)]
    assert shapes[0] == shapes[1]
