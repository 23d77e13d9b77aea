"""The schema: a value out of range is answered before anything starts."""

import pytest

from lmjax.config import Config, UserError
from lmjax.config.checks import check
from lmjax.config.codec import apply_overrides


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "checkpoint.keep=0", "data.validation_fraction=1", "data.tokenizer.kind=file", "train.profile=(3,2)",
     "objective.z_loss=nan", "objective.chunk=-1", "name=a/b", "data.mixture_changes=((5,(1.0,)),)",
     "train.evaluate_every=-2", "evaluate.limit=0", "evaluate.shots=(0,-1)", "evaluate.shots=(1,1)",
     "data.in_context.documents=0", "data.in_context.shots=((3,0.0),)", "data.in_context.shots=((-1,1.0),)",
     "data.in_context.described=1.1", "data.in_context.held_out_share=1"],
)  # fmt: skip
def test_values_out_of_range_name_their_key(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        check(apply_overrides(Config(), [override]))


@pytest.mark.parametrize("override", ["objective.rate=0", "objective.rate=1.5", "objective.masked=0.95"])
def test_shares_of_masking_that_make_no_sense_name_their_key(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        check(apply_overrides(Config(), ["model.family=bert", "objective.family=masked", override]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.family=rnn objective.family=masked", "model.family = rnn learns with objective.family = causal"),
        (
            "model.family=bert objective.family=masked evaluate.tasks=[copying]",
            "evaluate.tasks needs objective.family = causal or sft",
        ),
        ("model.family=rnn objective.chunk=64", "objective.chunk = 64 is for model.family = gpt, not rnn"),
        ("model.family=transformer objective.family=translation", "needs data.family = records, not text"),
        ("objective.family=sft", "objective.family = sft needs data.family = chat, not text"),
        ("model.family=rnn objective.family=sft data.family=chat", "model.family = rnn learns with objective.family"),
        ("data.tokenizer.kind=file data.tokenizer.path=a data.tokenizer.reserved=8", "data.tokenizer.reserved = 8 is"),
        ("objective.family=sft data.family=chat data.source=numbers", "data.source: 'numbers' is unknown"),
        ("objective.family=sft data.family=chat data.limit=-1", "data.limit"),
        ("objective.family=sft data.family=chat objective.answer_tokens=0", "objective.answer_tokens"),
    ],
)
def test_what_does_not_belong_together_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(apply_overrides(Config(), overrides.split()))


def test_the_default_passes() -> None:
    check(Config())


def test_conversations_pass() -> None:
    check(apply_overrides(Config(), ["objective.family=sft", "data.family=chat", "evaluate.tasks=[copying]"]))
