"""Samples that are pairs: what is read, left out and described."""

from pathlib import Path

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.data.batches import preferences
from lmjax.objectives.preference_samples import PreferenceSamples
from tests import small


def samples_of(corpus: Path, *changes: str) -> PreferenceSamples:
    samples = small.build("reward", corpus, *changes).samples
    assert isinstance(samples, PreferenceSamples)
    return samples


def test_an_epoch_has_every_pair_once_in_rows_of_one_width(corpus: Path) -> None:
    samples = samples_of(corpus, "data.limit=64", "data.buckets=2")
    assert len(samples.buckets.members) == 2
    ids, _ = samples.order.take(0, 64)
    records = [record for sample in ids.tolist() for _, record in samples.documents_of(sample)]
    assert sorted(records) == list(range(64))
    for start in range(0, 64, 8):
        batch = samples.arrays(ids[start : start + 8])
        width = batch["tokens_B2T"].shape[2]
        assert width % 8 == 0
        assert samples.share(batch) == 2 * width / 256
        assert (batch["last_B2"] < width).all()
    assert samples.place(int(ids[0])) == f"pair {records[0]}"


def test_validation_has_every_pair_once(corpus: Path) -> None:
    samples = samples_of(corpus)
    rows = [batch["tokens_B2T"][batch["weights_B"] > 0] for batch in samples.validation()]
    found = [tuple(map(tuple, row)) for part in rows for row in np.asarray(part)[:, :, :64].tolist()]
    count = len(samples.store.streams["validation-prompt"].starts)
    assert len(found) == count
    expected = preferences.arrays(samples.store, "validation", np.arange(count), width=256)["tokens_B2T"][:, :, :64]
    assert sorted(found) == sorted(tuple(map(tuple, row)) for row in expected.tolist())


def test_pairs_that_are_too_long_are_left_out_and_counted(corpus: Path) -> None:
    samples = samples_of(corpus, "model.context=160")
    lengths = {side: preferences.row_lengths(samples.store, side).max(1) for side in ("train", "validation")}
    longer = sum(int((of_side > 160).sum()) for of_side in lengths.values())
    assert longer > 0
    assert samples.dropped()["too_long"] == samples.lost()["dropped"]["too_long"] == longer
    assert set(samples.fitting["train"].records) == set(np.flatnonzero(lengths["train"] <= 160))
    assert any(f"left out: {longer} pairs longer than the context" in line for line in samples.describe())
    with pytest.raises(UserError, match=r"no pair of the train split fits into model\.context=16 \(the shortest has"):
        samples_of(corpus, "model.context=16")


def test_a_row_is_shown_as_both_texts(corpus: Path) -> None:
    samples = samples_of(corpus)
    ids, _ = samples.order.take(0, 1)
    ((_, record),) = samples.documents_of(int(ids[0]))
    prompt, chosen, rejected = preferences.text_of(samples.store, "train", record)
    assert samples.row_text(samples.arrays(ids), 0) == f"{prompt}{chosen} | {prompt}{rejected}"
    assert (prompt + chosen).startswith(samples.beginning(0, record, 20))
