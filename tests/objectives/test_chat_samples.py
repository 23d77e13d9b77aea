"""Conversations as samples: order, rows, and what is reported of those that are not used."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.objectives.chat_samples import ChatSamples, PackedChat, PaddedChat
from tests import small


def samples_of(name: str, corpus: Path, *changes: str) -> ChatSamples:
    samples = small.build(name, corpus, *changes).samples
    assert isinstance(samples, ChatSamples)
    return samples


@pytest.mark.parametrize("name", small.CHAT)
def test_an_epoch_has_every_conversation_once(corpus: Path, name: str) -> None:
    samples = samples_of(name, corpus, "batch.tokens=[(0, 768)]", "batch.microbatch=1")
    assert isinstance(samples, PackedChat if name == "packed chat" else PaddedChat)
    count = samples.epoch // samples.config.model.context
    ids, _ = samples.order.take(0, count)
    seen = Counter(record for sample in ids.tolist() for _, record in samples.documents_of(sample))
    if name == "packed chat":
        assert set(seen.values()) == {1}
        assert sorted(seen) == samples.fitting["train"].records.tolist()
    else:  # the blocks of a class need not divide the epoch
        assert len(seen) > 0.9 * len(samples.fitting["train"].records)


@pytest.mark.parametrize("name", small.CHAT)
def test_a_row_shows_the_conversations_of_its_sample(corpus: Path, name: str) -> None:
    samples = samples_of(name, corpus)
    ids, _ = samples.order.take(3, 4)
    rows = samples.arrays(ids)
    for row, sample in enumerate(ids.tolist()):
        records = [record for _, record in samples.documents_of(sample)]
        texts = [samples.store.tokenizer.decode(samples.conversation("train", record)) for record in records]
        shown = samples.row_text(rows, row)
        if name == "chat":
            assert [shown] == texts
            assert samples.place(sample) == f"conversation {records[0]}"
        else:
            assert all(text.removesuffix("<|end|>") in shown for text in texts)
            assert len(records) == rows["segments_BT"][row].max()
        assert texts[0].startswith(samples.beginning(0, records[0], 5))


@pytest.mark.parametrize("name", small.CHAT)
def test_validation_has_every_target_once(corpus: Path, name: str) -> None:
    samples = samples_of(name, corpus)
    mask = samples.store.streams["validation-mask"]
    used = samples.fitting["validation"].records
    assert len(used) == len(mask.starts)  # all of them fit
    batches = list(samples.validation())
    assert sum(batch["weights_BT"].sum() for batch in batches) == mask.ids.sum()
    assert {len(batch["weights_BT"]) for batch in batches} == {samples.config.batch.microbatch}
    blank = samples.blank(4)
    assert {key: array.dtype for key, array in batches[0].items()} == {k: array.dtype for k, array in blank.items()}


def test_padded_rows_are_as_wide_as_their_class(corpus: Path) -> None:
    samples = samples_of("chat", corpus)
    assert not samples.rows_independent
    ids, _ = samples.order.take(0, 200)
    shares = {samples.share(samples.arrays(ids[i : i + 4])) for i in range(0, 200, 4)}
    assert len(shares) == 2
    assert max(shares) <= 1
    assert samples.share(samples.blank(2)) == 1


@pytest.mark.parametrize("name", small.CHAT)
def test_long_conversations_are_counted_by_reason(corpus: Path, name: str) -> None:
    fitting = samples_of(name, corpus)
    assert fitting.dropped() == {"bad": 0, "empty": 0, "no_target": 0, "too_long": 0}
    short = samples_of(name, corpus, "model.context=48")
    dropped = short.dropped()["too_long"]
    assert dropped == sum(side.too_long for side in short.fitting.values()) > 20
    assert short.lost()["dropped"]["too_long"] == dropped
    assert f"WARNING: left out of the conversations: {dropped:,} longer than the context" in short.describe()
    cut = samples_of(name, corpus, "model.context=48", "data.too_long=cut")
    without = cut.dropped()["no_target"]
    assert sum(cut.truncated().values()) + without == dropped
    assert cut.lost()["truncated"] == cut.truncated()
    assert any(line.startswith("cut: ") for line in cut.describe())
    with pytest.raises(UserError, match=r"no conversation of the train split fits into model.context=16"):
        samples_of(name, corpus, "model.context=16", "batch.tokens=[(0, 512)]")


def test_questions_end_where_the_answer_begins(corpus: Path) -> None:
    samples = samples_of("chat", corpus)
    decode = samples.store.tokenizer.decode
    questions = list(samples.questions())
    assert len(questions) == len(samples.fitting["validation"].records)
    for (prompt, answer), record in zip(questions, samples.fitting["validation"].records.tolist(), strict=True):
        complete = decode(samples.conversation("validation", record))
        assert complete == f"{decode(prompt)}{decode(answer)}<|end|>"
        assert decode(prompt).endswith("<|assistant|>")


def test_summary_fields_are_json(corpus: Path) -> None:
    samples = samples_of("packed chat", corpus)
    assert json.loads(json.dumps(samples.lost()))["lossless"] is True
    assert any("packed: " in line for line in samples.describe())
    assert np.isfinite(samples.epoch)
