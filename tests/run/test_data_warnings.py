"""A run says when its data are too small for its settings."""

from dataclasses import replace
from pathlib import Path

from lmjax.config import TokenizerConfig
from lmjax.data.store.preparation import prepare
from lmjax.run import build, data_warnings
from tests import small


def test_epochs_vocabulary_and_validation_are_compared_with_the_text(corpus: Path) -> None:
    config = small.config("nnlm", corpus)
    data = replace(config.data, tokenizer=TokenizerConfig("bpe", vocab_size=5000))
    store = prepare(data)
    found = build.build(replace(config, data=data), store)
    lines = "\n".join(data_warnings.warnings(found))
    count = len(store.validation.ids)
    assert f"a vocabulary of {store.tokenizer.vocab_size:,} entries, not the 5,000 of" in lines
    assert f"note: the validation split has {count:,} tokens" in lines
    epochs = found.plan.tokens / found.tokens_per_epoch
    assert ("epochs of" in lines) == (epochs > 4)
    for share, expected in ((3.9, ""), (10.5, "note: 10."), (50, "WARNING: 50 epochs of")):
        updates = round(share * found.tokens_per_epoch / config.batch.tokens[0][1])
        longer = replace(config, data=data, train=replace(config.train, updates=updates))
        line = next((text for text in data_warnings.warnings(build.build(longer, store)) if "epochs of" in text), "")
        assert line.startswith(expected)
        assert bool(line) == bool(expected)


def test_a_validation_split_with_most_of_the_text_is_named(corpus: Path) -> None:
    """Of few documents, a hash may select the long ones."""
    run = small.build("nnlm", corpus)
    assert not [line for line in data_warnings.warnings(run) if "of the tokens, since" in line]
    larger = replace(run, store=replace(run.store, streams={**run.store.streams, "validation": run.store.sources[0]}))
    share = len(larger.store.validation.ids) / (2 * len(larger.store.validation.ids))
    assert f"the validation split has {share:.0%} of the tokens" in "\n".join(data_warnings.warnings(larger))


def test_enough_text_gives_no_line(corpus: Path) -> None:
    run = small.build("nnlm", corpus, "train.updates=8", "data.validation_fraction=0.5")
    assert [line for line in data_warnings.warnings(run) if "validation" not in line] == []
