"""A small copy of a configuration still has data to learn from."""

from dataclasses import replace
from pathlib import Path

from lmjax.config import ChatConfig, Config, PPOConfig, TrainConfig
from lmjax.config.codec import apply_overrides
from lmjax.data.store import preparation
from lmjax.diagnose.small_copy import UPDATES, shrink
from lmjax.run import build
from tests import small


def test_conversations_that_a_small_context_cannot_hold_are_cut(corpus: Path) -> None:
    config = apply_overrides(small.config("chat", corpus), ["model.context=128", "batch.tokens=[(0, 1024)]"])
    copy = shrink(config)
    assert copy.model.context == 64
    assert isinstance(copy.data, ChatConfig)
    assert copy.data.too_long == "cut"
    run = build.build(copy, preparation.prepare(copy.data))
    assert run.samples.epoch > 0
    same = shrink(small.config("chat", corpus))
    assert isinstance(same.data, ChatConfig)
    assert same.data.too_long == "drop"  # the context is small already


def test_a_run_of_epochs_has_the_batches_of_a_run_that_reaches_its_last_size(tiny: Config) -> None:
    copies = [shrink(replace(tiny, train=length)) for length in (TrainConfig(epochs=2.0), TrainConfig(tokens=640))]
    assert copies[0].train == copies[1].train
    assert copies[0].train.updates == UPDATES
    assert [size for _, size in copies[0].batch.tokens] == [size for _, size in copies[1].batch.tokens]
    assert len({size for _, size in copies[0].batch.tokens}) == 2


def test_pairs_keep_their_context(corpus: Path) -> None:
    copy = shrink(small.config("reward", corpus))
    assert copy.model.context == 256
    run = build.build(copy, preparation.prepare(copy.data))
    assert run.samples.lost()["dropped"]["too_long"] == 0


def test_a_policy_keeps_its_context_and_its_minibatches(corpus: Path) -> None:
    objective = PPOConfig(group=2, answer_tokens=70, minibatches=4)
    config = small.policy(apply_overrides(small.config("chat", corpus), ["model.context=128"]), objective)
    copy = shrink(config)
    assert (copy.model.context, copy.objective, copy.schedule.peak) == (128, objective, config.schedule.peak)
    assert build.plan_batches(copy).microbatches.tolist() == [4] * 240
    assert shrink(replace(config, schedule=replace(config.schedule, peak=1e-5))).schedule.peak == 1e-5
