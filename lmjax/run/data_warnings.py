"""Warnings about too little data for a configuration, at the start of a run."""

from collections.abc import Iterator

from lmjax.config import DataConfig
from lmjax.run.build import Run

EPOCHS, MANY_EPOCHS = 4, 40
FILLED = 0.9  # share of the entries of a vocabulary that training should find
LARGEST_SHARE = 0.2  # of the tokens in the validation split, unless more were asked for
VALIDATION = 10_000  # tokens of a validation split whose loss is stable
_TRAINED = ("bpe", "wordpiece")  # tokenizers whose vocabulary has a size to fill


def warnings(run: Run) -> list[str]:
    """Return a line for each way in which the data are too small.

    Repeated text brings nearly as much as new text for up to 4 epochs, and nothing after about 40 (Muennighoff et al.
    2023, "Scaling data-constrained language models", section 6).
    """
    return [*_vocabulary(run), *_epochs(run), *_validation(run)]


def _vocabulary(run: Run) -> Iterator[str]:
    choice, found = run.config.data.tokenizer, run.store.tokenizer.vocab_size
    if choice.kind in _TRAINED and found < FILLED * choice.vocab_size:
        yield (
            f"WARNING: the text gives a vocabulary of {found:,} entries, not the {choice.vocab_size:,} of "
            "data.tokenizer.vocab_size; add text, or lower it"
        )


def _epochs(run: Run) -> Iterator[str]:
    if not isinstance(run.config.data, DataConfig) or run.config.data.mixture or not run.tokens_per_epoch:
        return
    epochs = run.plan.tokens / run.tokens_per_epoch
    if epochs > MANY_EPOCHS:
        yield (
            f"WARNING: {epochs:,.0f} epochs of {run.tokens_per_epoch:,} tokens: after about {MANY_EPOCHS} epochs text "
            "brings nothing more; add text, or train for fewer updates"
        )
    elif epochs > EPOCHS:
        yield f"note: {epochs:.1f} epochs of {run.tokens_per_epoch:,} tokens; new text brings more than more epochs"


def _validation(run: Run) -> Iterator[str]:
    if not isinstance(run.config.data, DataConfig):
        return
    count = len(run.store.validation.ids)
    total = count + sum(len(source.ids) for source in run.store.sources)
    if count > total * max(LARGEST_SHARE, 2 * run.config.data.validation_fraction):
        yield (
            f"WARNING: the validation split has {count / total:.0%} of the tokens, since it takes complete documents; "
            "set data.validation=tail, or a smaller unit with data.document"
        )
    if count < VALIDATION:
        yield (
            f"note: the validation split has {count:,} tokens, so that its loss is uncertain; raise "
            f"data.validation_fraction, now {run.config.data.validation_fraction:g}, or add text"
        )
