"""Records as samples: the text of a row is the record that its documents name."""

from pathlib import Path

import numpy as np
import pytest

from lmjax.data.batches import records
from tests import small


@pytest.mark.parametrize("name", ["translation", "gpt labels"])
def test_a_row_shows_the_record_of_its_sample(corpus: Path, name: str) -> None:
    samples = small.build(name, corpus, "model.context=48").samples
    assert not samples.rows_independent
    ids, _ = samples.order.take(3, 4)
    rows = samples.arrays(ids)
    for row, sample in enumerate(ids.tolist()):
        [(source, record)] = samples.documents_of(sample)
        texts = records.text_of(samples.store, "train", record)
        if name == "gpt labels":
            label = samples.store.manifest["labels"][samples.store.streams["train-label"].ids[record]]
            assert samples.row_text(rows, row).startswith(f"{label}: {texts[0]}")
        else:
            assert samples.row_text(rows, row) == " -> ".join(texts)
        assert samples.place(sample) == f"record {record}"
        assert texts[0].startswith(samples.beginning(source, record, 2).split(" | ")[0])


def test_the_share_counts_places_of_a_complete_sample(corpus: Path) -> None:
    samples = small.build("translation", corpus).samples
    context = samples.config.model.context
    assert samples.share(samples.blank(2)) == 1  # source and target of the length of the context
    half = {name: np.zeros((2, context // 2)) for name in ("source_BS", "inputs_BT")}
    assert samples.share(half) == 0.5
