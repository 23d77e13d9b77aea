"""The validation split of a mixture: every target belongs to one source, and the data line says what is measured."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import (
    BatchConfig,
    Config,
    DataConfig,
    GPTConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.data import tokenizer
from lmjax.data.store import preparation
from lmjax.data.store.store import Store, Tokens
from lmjax.objectives.mixture_samples import source_labels
from lmjax.objectives.text_samples import MaskedSamples, TextSamples
from tests import small
from tests.conftest import WORDS

BYTES = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))


def mixed(sizes: list[int], *, microbatch: int = 3, context: int = 7) -> TextSamples:
    """Samples of sources whose documents repeat one letter; every third document is for validation."""
    streams, validation = {}, []
    for number, (letter, size) in enumerate(zip("abc", sizes, strict=False)):
        documents = [[*letter.encode() * (3 + i % 5), BYTES.end_of_text] for i in range(size)]
        streams[f"train-{number}"] = joined([d for i, d in enumerate(documents) if i % 3])
        validation += documents[::3]
    streams["validation"] = joined(validation)
    manifest = {"sources": [{"documents": size} for size in sizes]}
    sources = tuple(
        SourceConfig(files=(f"{letter}.txt",), weight=w) for letter, w in zip("abc", (9, 1, 2), strict=True)
    )
    config = Config(
        data=DataConfig(mixture=sources[: len(sizes)]),
        model=GPTConfig(context=context, vocab_size=257),
        batch=BatchConfig(microbatch=microbatch),
        train=TrainConfig(evaluate_batches=2, final_batches=0),
    )
    return TextSamples.build(config, Store(Path(), BYTES, streams, "", manifest))


def joined(documents: list[list[int]]) -> Tokens:
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    return Tokens(np.concatenate(documents).astype(np.uint16), starts)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(8, 40), min_size=1, max_size=3), microbatch=st.integers(1, 5), context=st.integers(2, 9)
)
def test_every_target_belongs_to_the_source_of_its_letter(sizes: list[int], microbatch: int, context: int) -> None:
    samples = mixed(sizes, microbatch=microbatch, context=context)
    end = samples.store.tokenizer.end_of_text
    totals = dict.fromkeys(samples.labels, 0.0)
    for number, rows in enumerate(samples.validation()):
        parts = samples.by_source(number, rows)
        np.testing.assert_array_equal(sum(part["weights_BT"] for part in parts.values()), rows["weights_BT"])
        assert (len(parts) == 1) == any(part is rows for part in parts.values())
        for label, part in parts.items():
            targets = part["targets_BT"][part["weights_BT"] > 0]
            assert {chr(id) for id in targets if id != end} <= {label[0]}
            np.testing.assert_array_equal(part["inputs_BT"], rows["inputs_BT"])
            totals[label] += float(part["weights_BT"].sum())
    firsts = [*(samples.store.validation_sources or ()), len(samples.store.validation.ids)]
    assert list(totals.values()) == [n - (i == 0) for i, n in enumerate(np.diff(firsts).tolist())]


def test_the_data_line_compares_training_and_validation() -> None:
    samples = mixed([200, 200])
    assert samples.describe()[-2] == (
        "mixture, share of training / of validation: a.txt 90.0% / 50.0%, b.txt 10.0% / 50.0%"
    )
    assert samples.describe()[-1] == "train.evaluate_batches=2 measures nothing of b.txt: raise it"


def test_the_shares_follow_the_announced_changes() -> None:
    samples = mixed([200, 200])
    data = dataclasses.replace(samples.config.data, mixture_changes=((70, (1.0, 3.0)),))  # after 10 samples of 7 tokens
    samples = TextSamples.build(dataclasses.replace(samples.config, data=data), samples.store)
    assert samples.mixture(0) == samples.mixture(10) == {"a.txt": 0.9, "b.txt": 0.1}
    assert samples.mixture(11) == {"a.txt": 0.25, "b.txt": 0.75}


@pytest.mark.slow
def test_epochs_are_counted_by_source() -> None:
    samples = mixed([40, 10])
    changed = dataclasses.replace(samples.order, weights=((0, (1, 0)), (8, (3, 1))))
    samples = dataclasses.replace(samples, order=changed)
    for count in (5, 8, 40):
        ids = samples.order.take(0, count)[0]
        tokens = np.bincount(ids % 2, minlength=2) * samples.config.model.context
        expected = tokens / [len(source.ids) for source in samples.store.sources]
        assert list(samples.epochs(count).values()) == pytest.approx(expected.tolist(), abs=0.15), count  # 1 sample
    assert samples.epochs(8)["b.txt"] == 0


def test_rows_of_masked_passages_belong_to_the_source_of_their_place(tmp_path: Path, corpus: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join("zebra zoo zinc" for _ in range(200)))
    config = small.config("masked", corpus)
    sources = (SourceConfig(files=(str(corpus),)), SourceConfig(files=(str(other),)))
    data = dataclasses.replace(config.data, files=(), mixture=sources, validation_fraction=0.4, validation="tail")
    config = dataclasses.replace(config, data=data)
    samples = MaskedSamples.build(config, preparation.prepare(data))
    labels, mixed_batches = set(), 0
    for number, rows in enumerate(samples.validation()):
        parts = samples.by_source(number, rows)
        labels |= set(parts)
        mixed_batches += len(parts) > 1
        for name in ("weights_BP", "rows_B"):
            np.testing.assert_array_equal(sum(part[name] for part in parts.values()), rows[name])
        for row in np.flatnonzero(parts.get("other.txt", {}).get("rows_B", [])):
            first_passage = {**rows, "real_BT": rows["real_BT"] * (rows["kinds_BT"] == 0)}
            assert not set(samples.row_text(first_passage, int(row)).split()) & set(WORDS)
    assert labels == {corpus.name, "other.txt"}
    assert mixed_batches == 1


def test_labels_are_distinct() -> None:
    sources = [SourceConfig(files=("x/a.txt", "b.txt")), SourceConfig(files=("y/a.txt",)), SourceConfig()]
    assert source_labels(sources) == ("a.txt#0", "a.txt#1", "docstrings")
    assert source_labels(()) == ()
