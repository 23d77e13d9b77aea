"""Windows that carry a recurrent state: which windows follow each other, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from lmjax.config import TokenizerConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.data import tokenizer
from lmjax.data.store.store import Store, Tokens
from lmjax.objectives.text_samples import CarriedSamples
from tests import small

STREAMS, T, PER_STREAM = 8, 16, 5  # windows of a part
SIZE = STREAMS * T * PER_STREAM + 9


@pytest.fixture(scope="module")
def numbered(corpus: Path) -> CarriedSamples:
    """Samples of a corpus whose token ids are their positions."""
    ids = np.arange(SIZE, dtype=np.uint16)
    byte_tokenizer = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))
    streams = {"train-0": Tokens(ids, np.zeros(1, np.int64), SIZE, "")}
    config = apply_overrides(small.config("lstm", corpus), [f"model.vocab_size={SIZE}", "model.dropout=0.0"])
    return CarriedSamples.build(config, Store(Path(), byte_tokenizer, streams, "", {}))


def test_rows_continue_where_they_ended_until_the_epoch_ends(numbered: CarriedSamples) -> None:
    cursor, before = 0, None
    for update in range(3 * PER_STREAM):
        ids, cursor = numbered.order.take(cursor, STREAMS)
        batch = numbered.arrays(ids)
        inputs_BT = batch["inputs_BT"]
        np.testing.assert_array_equal(inputs_BT, (inputs_BT[:, :1] + np.arange(T)) % SIZE)
        np.testing.assert_array_equal(batch["targets_BT"], (inputs_BT + 1) % SIZE)
        parts = np.diff(inputs_BT[:, 0]) % SIZE  # the rows read consecutive parts of the ring, all equally long
        assert (parts == PER_STREAM * T).all()
        if before is not None:
            follows = update % PER_STREAM > 0
            assert ((batch["follows_B"] == before["place_B"]) == follows).all()
            if follows:
                np.testing.assert_array_equal(inputs_BT[:, 0], before["targets_BT"][:, -1])
        before = batch


@pytest.mark.parametrize("excluded", [(11, 14), (16, 24), (9, 10)])
def test_a_row_after_excluded_data_follows_no_window(numbered: CarriedSamples, excluded: tuple[int, int]) -> None:
    """Exclude three samples, a batch, one sample: rows that follow begin at the next token, others at zero."""
    order, cursor, before, restarts = numbered.order.excluding([excluded]), 0, None, 0
    for _ in range(2 * PER_STREAM):
        ids, cursor = order.take(cursor, STREAMS)
        batch = numbered.arrays(ids)
        if before is not None:
            follows_B = batch["follows_B"] == before["place_B"]
            joined_B = batch["inputs_BT"][:, 0] == before["targets_BT"][:, -1]
            np.testing.assert_array_equal(follows_B, joined_B)
            restarts += int((~follows_B).sum())
        before = batch
    # Each row restarts after the excluded data and in the second epoch, and those that reach the third once more.
    assert restarts == 2 * STREAMS + excluded[1] - excluded[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch.tokens=((0,128),(1280,256))", "needs one batch size: give batch.tokens one entry, or"),
        ('data.mixture=[{"files": ["F"]}, {"files": ["F"]}]', "reads one source: leave data.mixture out, or set"),
        ("batch.tokens=((0,160000),)", "fewer than 10000 windows of 16 tokens, one for each sequence of a batch"),
    ],
)
def test_settings_that_contradict_the_carry_are_refused(corpus: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small.build("lstm", corpus, change.replace("F", str(corpus)))
