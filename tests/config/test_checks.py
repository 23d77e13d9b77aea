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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("objective.family=reward data.family=chat", "reward needs data.family = preferences, not chat"),
        ("objective.family=reward model.dropout=0.1", "model.dropout = 0.1 makes the two answers"),
        ("objective.family=reward data.source=numbers", "data.source: 'numbers' is unknown"),
        ("objective.family=reward objective.centring=-1", "objective.centring"),
        ("objective.family=reward evaluate.tasks=[copying]", "evaluate.tasks needs objective.family = causal or sft"),
        ("objective.family=dpo", "objective.family = dpo needs a reference; set init_from"),
        ("objective.family=dpo init_from=runs/a objective.beta=0", "objective.beta"),
        ("objective.family=dpo init_from=runs/a objective.label_smoothing=0.5", "objective.label_smoothing"),
        (
            "objective.family=dpo init_from=runs/a objective.loss=ipo objective.label_smoothing=0.1",
            "objective.label_smoothing = 0.1 is for objective.loss = sigmoid or robust, not ipo",
        ),
    ],
)
def test_preferences_that_cannot_be_learned_are_refused(overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(apply_overrides(Config(), ["data.family=preferences", "model.dropout=0", *overrides.split()]))


@pytest.mark.parametrize("overrides", ["objective.family=reward", "objective.family=dpo init_from=runs/a"])
def test_preferences_pass(overrides: str) -> None:
    check(apply_overrides(Config(), ["data.family=preferences", "model.dropout=0", *overrides.split()]))


POLICY = "objective.family=grpo data.family=chat model.dropout=0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.dropout=0.1", "model.dropout = 0.1 makes the policy that learns differ"),
        ("objective.answer_tokens=1000000", "objective.answer_tokens = 1000000 leaves no room for a prompt"),
        ("parallel.form=pmap", "parallel.form = pmap cannot sample answers"),
        ("batch.tokens=((0,32768),(1000,65536))", "batch.tokens grows"),
        ("objective.group=1", "objective.group"),
        ("objective.temperature=0", "objective.temperature"),
        ("objective.reward.family=number objective.reward.tolerance=-1", "objective.reward.tolerance"),
        (
            "objective.reward.family=function objective.reward.name=mine",
            "objective.reward.name: 'mine' is not registered",
        ),
        ("evaluate.tasks=[copying]", "evaluate.tasks needs"),
        (
            "objective.family=ppo objective.kl_target=6 objective.kl_coefficient=0",
            "objective.kl_coefficient, which is 0 and stays 0",
        ),
        (
            "objective.family=ppo objective.kl_target=6 objective.kl_horizon=1 batch.tokens=((0,65536),)",
            "objective.kl_horizon = 1.0 is at most a fifth of the 64 answers of an update",
        ),
    ],
)
def test_settings_of_a_policy_that_cannot_work_are_refused(overrides: str, message: str) -> None:
    check(apply_overrides(Config(), POLICY.split()))
    with pytest.raises(UserError, match=message):
        check(apply_overrides(Config(), [*POLICY.split(), *overrides.split()]))
