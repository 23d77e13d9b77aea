"""A run that cannot fit into the memory is refused before anything is allocated."""

import pytest

from lmjax.config import Config, UserError
from lmjax.config.codec import apply_overrides
from lmjax.run import plan
from lmjax.system import machine

SMALL = ("data.tokenizer.kind=bytes", "model.layers=1", "model.width=64", "model.heads=2", "model.context=32")


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 4 GiB without accelerators."""
    monkeypatch.setattr(machine, "device_memory", lambda device=None: {})
    monkeypatch.setattr(machine, "total_memory", lambda: 4 << 30)


def test_a_small_run_fits() -> None:
    plan.check_memory(apply_overrides(Config(), [*SMALL, "batch.tokens=((0,1024),)"]))


@pytest.mark.parametrize(
    "change",
    ["model.width=1048576", "model.layers=1000000", "model.vocab_size=2000000000", "model.mlp_width=100000000",
     "batch.microbatch=100000000"],
)  # fmt: skip
def test_a_run_that_is_much_too_large_is_refused_with_what_it_needs(change: str) -> None:
    config = apply_overrides(Config(), [*SMALL, change])
    with pytest.raises(UserError, match=r"needs more than the 4.0 GiB of memory here: parameters .* GiB, .* total"):
        plan.check_memory(config)
