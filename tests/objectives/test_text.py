"""What a recurrent model carries from window to window: which windows follow each other, and that states go with
them and only with them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.config import TokenizerConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.data import tokenizer
from lmjax.data.store.store import Store, Tokens
from lmjax.objectives.carried import Carried
from lmjax.run import validation
from tests import small

STREAMS, T, PER_STREAM = 8, 16, 5  # windows of a part
SIZE = STREAMS * T * PER_STREAM + 9


@pytest.fixture(scope="module")
def numbered(corpus: Path) -> Carried:
    """The task on a corpus whose tokens say where they stand."""
    ids = np.arange(SIZE, dtype=np.uint16)
    spoken = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))
    streams = {"train-0": Tokens(ids, np.zeros(1, np.int64), SIZE, "")}
    config = apply_overrides(small.config("lstm", corpus), [f"model.vocab_size={SIZE}", "model.dropout=0.0"])
    return Carried.build(config, Store(Path(), spoken, streams, "", {}))


def test_rows_go_on_where_they_ended_until_the_epoch_does(numbered: Carried) -> None:
    cursor, before = 0, None
    for update in range(3 * PER_STREAM):
        ids, cursor = numbered.order.take(cursor, STREAMS)
        batch = numbered.arrays(ids)
        inputs_BT = batch["inputs_BT"]
        np.testing.assert_array_equal(inputs_BT, (inputs_BT[:, :1] + np.arange(T)) % SIZE)
        np.testing.assert_array_equal(batch["targets_BT"], (inputs_BT + 1) % SIZE)
        parts = np.diff(inputs_BT[:, 0]) % SIZE  # the rows read equal parts of the ring, one behind the other
        assert (parts == PER_STREAM * T).all()
        if before is not None:
            follows = update % PER_STREAM > 0
            assert ((batch["follows_B"] == before["place_B"]) == follows).all()
            if follows:
                np.testing.assert_array_equal(inputs_BT[:, 0], before["targets_BT"][:, -1])
        before = batch


@pytest.mark.parametrize("left_out", [(11, 14), (16, 24), (9, 10)])
def test_where_data_are_left_out_no_row_goes_on_with_what_it_did_not_read(
    numbered: Carried, left_out: tuple[int, int]
) -> None:
    """Three samples, a whole batch, one sample: rows that follow begin at the next token, all others start anew."""
    order, cursor, before, anew = numbered.order.excluding([left_out]), 0, None, 0
    for _ in range(2 * PER_STREAM):
        ids, cursor = order.take(cursor, STREAMS)
        batch = numbered.arrays(ids)
        if before is not None:
            goes_on_B = batch["follows_B"] == before["place_B"]
            joined_B = batch["inputs_BT"][:, 0] == before["targets_BT"][:, -1]
            np.testing.assert_array_equal(goes_on_B, joined_B)
            anew += int((~goes_on_B).sum())
        before = batch
    # Every row once behind what is left out and once in the second epoch; and those that are in the third by as much.
    assert anew == 2 * STREAMS + left_out[1] - left_out[0]


def test_two_windows_with_the_carry_are_one_window_twice_as_long(numbered: Carried) -> None:
    """Token by token: the derivative of the loss sum by a token's weight is its loss. Half of the rows start anew."""
    params = small.rough(numbered)
    ids, cursor = numbered.order.take(0, STREAMS)
    first, second = (numbered.arrays(ids) for ids in (ids, numbered.order.take(cursor, STREAMS)[0]))
    second["follows_B"][4:] -= 1

    @jax.jit
    def of_tokens(batch, carry):
        def total(weights_BT):
            loss, *_, carried = numbered.loss(params, batch | {"weights_BT": weights_BT}, carry=carry, train=False)
            return loss, carried

        return jax.grad(total, has_aux=True)(batch["weights_BT"])

    begin = numbered.begin((STREAMS,))
    losses, carry = of_tokens(first, begin)
    gone_on, _ = of_tokens(second, carry)
    alone, _ = of_tokens(second, begin)
    both = {name: np.concatenate([first[name], second[name]], axis=1) for name in first if name.endswith("BT")}
    whole, _ = of_tokens(both | {name: first[name] for name in ("place_B", "follows_B")}, begin)
    # float32, the same operations in another order.
    np.testing.assert_allclose(np.concatenate([losses, gone_on], 1)[:4], whole[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gone_on[4:], alone[4:])
    assert np.abs(gone_on[:4, 0] - alone[:4, 0]).min() > 1e-3  # the carry does matter
    np.testing.assert_array_equal(carry["place"], first["place_B"])


def test_the_validation_loss_is_that_of_one_pass_over_each_part(corpus: Path) -> None:
    made = small.build("lstm", corpus, "train.evaluate_batches=0")
    params, ids = small.rough(made.task), np.asarray(made.store.validation.ids)
    found = validation.evaluator(made)(SimpleNamespace(params=params, ema=None), False)  # type: ignore[arg-type]
    rows = made.config.batch.microbatch
    length = -(-(len(ids) - 1) // (T * rows)) * T
    padded = np.concatenate([ids, np.zeros(rows * length + 1 - len(ids), ids.dtype)]).astype(np.int32)
    parts = np.stack([padded[row * length : (row + 1) * length] for row in range(rows)])
    logits = np.asarray(jax.jit(made.model.apply)({"params": params}, parts), np.float64).reshape(rows * length, -1)
    logits, targets = logits[: len(ids) - 1], ids[1:]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
    assert found["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)  # float32 against sums in float64
    assert found["val_bits_per_byte"] == pytest.approx(losses.sum() / np.log(2) / (made.store.validation.bytes - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch.tokens=((0,128),(1280,256))", "needs one batch size: give batch.tokens one entry, or"),
        ('data.mixture=[{"files": ["F"]}, {"files": ["F"]}]', "reads one source: leave data.mixture out, or set"),
        ("batch.tokens=((0,160000),)", "fewer than 10000 windows of 16 tokens, one for each sequence of a batch"),
    ],
)
def test_what_cannot_be_carried_on_is_named(corpus: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small.build("lstm", corpus, change.replace("F", str(corpus)))
