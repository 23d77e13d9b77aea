"""Records as samples: the text of a row is the record that its documents name."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import Config, RecordsConfig, UserError
from lmjax.data.batches import records
from lmjax.data.sources import rows
from lmjax.objectives.record_samples import LabelledSamples
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


def labelled(*, texts: int = 1, lowercase: bool = False) -> LabelledSamples:
    """Samples without data, which prepare a prompt."""
    data = RecordsConfig(texts=("a", "b")[:texts], label="c", lowercase=lowercase)
    return LabelledSamples.without_data(Config(data=data))


@given(st.text(max_size=20), st.booleans())
def test_a_prompt_is_prepared_as_a_record_is(text: str, lowercase: bool) -> None:
    samples = labelled(lowercase=lowercase)
    [record] = rows._record({"a": text, "c": "x"}, samples.config.data, "here").texts  # type: ignore[arg-type]
    if record:
        assert samples.split_prompt(text) == [record]
    else:
        with pytest.raises(UserError, match="empty text"):
            samples.split_prompt(text)


def test_a_tab_divides_a_prompt_only_where_records_are_pairs() -> None:
    assert labelled().split_prompt("a\tb\tc ") == ["a\tb\tc"]
    assert labelled(texts=2, lowercase=True).split_prompt(" A\t b") == ["a", "b"]
    for prompt, count in (("a", 0), ("a\tb\tc", 2)):
        with pytest.raises(UserError, match=f"the prompt has {count} tabs, but this run was trained on pairs of texts"):
            labelled(texts=2).split_prompt(prompt)
    with pytest.raises(UserError, match="empty text"):
        labelled(texts=2).split_prompt("a\t ")


@pytest.mark.parametrize("name", ["bert labels", "gpt labels"])
def test_the_row_of_a_prompt_is_that_of_the_record(corpus: Path, name: str) -> None:
    run = small.build(name, corpus)
    raw = [json.loads(line)["text"] for line in small.labelled(corpus).read_text().splitlines()]
    samples, tokenizer = run.samples, run.store.tokenizer
    assert isinstance(samples, LabelledSamples)
    ids, _ = samples.order.take(0, 4)
    batch, seen = samples.arrays(ids), {}
    for text in raw:
        [row] = records.row(tokenizer, samples.split_prompt(f" {text}\n"), context=24)["inputs_BT"].tolist()
        seen[tuple(row[: batch["inputs_BT"].shape[1]])] = text
    assert all(tuple(row) in seen for row in batch["inputs_BT"].tolist())
