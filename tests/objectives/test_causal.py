"""The carried state of a recurrent model, against one pass over a longer window."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.objectives.causal import Causal
from lmjax.run import validation
from tests import small

ROWS, T = 8, 16  # of a batch


def test_two_windows_with_the_carry_are_one_window_twice_as_long(corpus: Path) -> None:
    """Half of the rows start at zero. The loss of a token is the derivative of the loss sum by the token's weight."""
    run = small.build("lstm", corpus, "model.dropout=0.0")
    objective, params = run.objective, small.rough(run.objective)
    first, second = (small.rows(run.samples, ROWS, cursor) for cursor in (0, ROWS))
    second["follows_B"][4:] -= 1

    @jax.jit
    def token_losses(batch, carry):
        def total(weights_BT):
            loss, *_, carried = objective.loss(params, batch | {"weights_BT": weights_BT}, carry=carry, train=False)
            return loss, carried

        return jax.grad(total, has_aux=True)(batch["weights_BT"])

    begin = objective.begin((ROWS,))
    losses, carry = token_losses(first, begin)
    continued, _ = token_losses(second, carry)
    alone, _ = token_losses(second, begin)
    both = {name: np.concatenate([first[name], second[name]], axis=1) for name in first if name.endswith("BT")}
    expected, _ = token_losses(both | {name: first[name] for name in ("place_B", "follows_B")}, begin)
    # float32, the same operations in another order.
    np.testing.assert_allclose(np.concatenate([losses, continued], 1)[:4], expected[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(continued[4:], alone[4:])
    assert np.abs(continued[:4, 0] - alone[:4, 0]).min() > 1e-3  # the carry matters
    np.testing.assert_array_equal(carry["place"], first["place_B"])


def test_the_validation_loss_is_that_of_one_pass_over_each_part(corpus: Path) -> None:
    run = small.build("lstm", corpus, "train.evaluate_batches=0")
    params, ids = small.rough(run.objective), np.asarray(run.store.validation.ids)
    scores = validation.evaluator(run)(SimpleNamespace(params=params, ema=None, update=0), False)  # type: ignore[arg-type]
    rows = run.config.batch.microbatch
    length = -(-(len(ids) - 1) // (T * rows)) * T
    padded = np.concatenate([ids, np.zeros(rows * length + 1 - len(ids), ids.dtype)]).astype(np.int32)
    parts = np.stack([padded[row * length : (row + 1) * length] for row in range(rows)])
    logits = np.asarray(jax.jit(run.model.apply)({"params": params}, parts), np.float64).reshape(rows * length, -1)
    logits, targets = logits[: len(ids) - 1], ids[1:]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
    assert scores["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)  # float32 against sums in float64
    assert scores["val_bits_per_byte"] == pytest.approx(losses.sum() / np.log(2) / (run.store.validation.bytes - 1))


@pytest.mark.parametrize(
    ("kind", "lossless"),
    [("wordpiece", False), *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("bytes", "bpe"))],
)
def test_bits_per_byte_are_reported_only_where_decoding_gives_the_text_back(
    corpus: Path, tmp_path: Path, kind: str, lossless: bool
) -> None:
    """Word pieces lose upper case."""
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text().title())
    choice = "bytes" if kind == "bytes" else f"{kind}, vocab_size={80 if kind == 'wordpiece' else 300}"
    run = small.build("nnlm", text, f"data.tokenizer=(kind={choice})")
    objective, store = run.objective, run.store
    assert isinstance(objective, Causal)
    assert store.lossless is lossless
    decoded = store.tokenizer.decode(np.asarray(store.validation.ids))
    assert ("The" in decoded) is lossless
    scores, baselines = objective.scores({"loss": 6.0, "weight": 2.0}), objective.baselines()
    assert ("val_bits_per_byte" in scores) is lossless
    assert scores["val_loss"] == 3.0
    assert set(baselines) == (
        {"unigram_bits_per_byte", "kneser_ney_5gram_bits_per_byte"} if lossless else {"kneser_ney_5gram_loss"}
    )
    assert bool(objective.notes()) is not lossless
    assert run.samples.lost()["lossless"] is lossless
