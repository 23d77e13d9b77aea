"""The comparison of repeated updates with the journal: losses, and the answers that were sampled."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.config import GuardConfig
from lmjax.config.errors import RunError
from lmjax.journal.history import Applied, History, Sampled
from lmjax.training.loop_state import Watch, sampled

HERE, THERE = ("jax", 1), ("jax", 8)
BEFORE = Sampled("0x1.0p-1", "0x0.0p+0", "ab" * 32)
OTHER = BEFORE._replace(tokens="cd" * 32)


def watched(machine: Any, **guard: bool) -> tuple[Watch, Any, list[str]]:
    """A resume at update 3 that repeats updates 4 and 5, of loss -0.5."""
    lines: list[str] = []
    applied = Applied(8, (-0.5).hex(), (1.0).hex(), machine, BEFORE)
    watch = Watch(History(expected={4: applied, 5: applied}), resumed_at=3)
    console = SimpleNamespace(event=lines.append)
    return watch, SimpleNamespace(machine=HERE, tolerance=1e-5, guard=GuardConfig(**guard), console=console), lines


def test_the_same_answers_pass() -> None:
    watch, inputs, lines = watched(HERE)
    watch.compare(inputs, 4, -0.5, BEFORE)
    watch.compare(inputs, 5, -0.5, BEFORE)
    assert (watch.differs, lines) == (None, [])


def test_other_answers_on_the_same_machine_end_the_resume() -> None:
    """Also if the loss is equal."""
    watch, inputs, _ = watched(HERE)
    with pytest.raises(RunError, match="update 4: the first answers after the resume are not those in the journal"):
        watch.compare(inputs, 4, -0.5, OTHER)
    watch, inputs, lines = watched(HERE, canary=False)
    watch.compare(inputs, 4, -0.5, OTHER)
    assert watch.differs == 4
    assert lines == ["update 4: the answers are not those in the journal"]


def test_other_answers_on_another_machine_are_expected() -> None:
    watch, inputs, lines = watched(THERE)
    watch.compare(inputs, 4, -0.25, OTHER)
    watch.compare(inputs, 5, -0.75, OTHER)  # losses of other answers cannot be compared
    assert watch.differs == 4
    assert lines == ["update 4: the answers are not those in the journal, as is to be expected on another machine"]


def test_another_loss_of_the_same_answers_ends_the_resume() -> None:
    watch, inputs, _ = watched(HERE)
    with pytest.raises(RunError, match=r"the first loss after the resume is -0\.25, .*: the restored state is not the"):
        watch.compare(inputs, 4, -0.25, BEFORE)


def test_other_rewards_of_the_same_answers_are_blamed_on_the_reward() -> None:
    watch, inputs, _ = watched(HERE)
    with pytest.raises(RunError, match=r"the reward depends on more than the answer and its row"):
        watch.compare(inputs, 4, -0.25, BEFORE._replace(reward=(0.25).hex()))


def test_what_an_update_sampled_is_in_its_metrics() -> None:
    values = {"loss": -0.5, "reward": 0.5, "kl": 0.0, "tokens_sha256": BEFORE.tokens}
    assert sampled(values) == Sampled((0.5).hex(), (0.0).hex(), BEFORE.tokens)
    assert sampled({"loss": 1.0}) is None
