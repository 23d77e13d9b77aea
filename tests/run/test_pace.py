"""The expected time of a run: by the peak of the machine, or as updates were measured here."""

import re
import time
from pathlib import Path

import jax
import pytest

from lmjax.config import Config, presets
from lmjax.config.codec import apply_overrides
from lmjax.models import registry
from lmjax.run import build, pace, plan
from lmjax.run.build import Run
from lmjax.run.pace import Pace
from lmjax.system import files, machine

SMALL = ("data.tokenizer.kind=bytes", "model.layers=1", "model.width=64", "model.heads=2", "model.context=32")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of 1 GFLOP/s and 4 GiB that has measured nothing yet."""
    monkeypatch.setattr(machine, "peak_flops", lambda dtype, *, devices=None: 1e9)
    monkeypatch.setattr(machine, "device_memory", lambda device=None: {})
    monkeypatch.setattr(machine, "total_memory", lambda: 4 << 30)
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)


def run(*changes: str) -> Run:
    batch = ("batch.tokens=((0,128),(1280,512))", "batch.microbatch=4", "train.updates=30")
    return build.without_data(apply_overrides(Config(), [*SMALL, *batch, *changes]))


def test_without_a_measurement_the_peak_decides() -> None:
    planned = run()
    tokens = 10 * 128 + 20 * 512
    assert pace.seconds(planned) == pytest.approx(registry.flops_per_token(planned.config.model) * tokens / 0.4e9)
    assert pace.describe(planned).endswith("s at 40% of that, without evaluations")
    assert pace.seconds(planned, 29) == pytest.approx(pace.seconds(planned) * 512 / tokens)


def test_a_session_that_was_long_enough_decides_from_then_on() -> None:
    planned = run()
    pace.remember(planned, tokens=1000, seconds=pace.SHORTEST - 1)
    assert pace.known(planned) is None
    pace.remember(planned, tokens=1280, seconds=20.0)  # 2 s a microbatch of 4 rows of 32
    assert pace.known(planned) == Pace(0.0, 2.0, 1.0)
    assert pace.seconds(planned, 5) == 2.0 * (5 + 20 * 4)
    assert pace.describe(planned, 5) == "2m50s as measured here, without evaluations"
    assert pace.known(run("model.layers=2")) is None
    assert pace.known(run("batch.tokens=128")) is not None  # another length, the same update


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"fixed": 1}', '{"fixed": "x", "each": 1, "share": 1}', '{"fixed": 0, "each": 0, "share": 1}'],
)
def test_a_damaged_file_is_as_none(content: str) -> None:
    planned = run()
    pace.remember(planned, tokens=1280, seconds=20.0)
    pace._file(planned).write_text(content)
    assert pace.known(planned) is None


def test_a_plan_that_is_not_for_this_machine_says_so_first() -> None:
    assert plan.warning(run()) == ""
    large = plan.warning(run("model.layers=100", "model.width=4096", "train.updates=10000000"))
    assert large.startswith("does not fit in 4.00 GiB, needs about ")
    assert " years here; " in large
    assert large.endswith("plan it for other devices: --topology v5e:8x8")


def test_a_plan_that_fits_with_a_smaller_microbatch_names_it() -> None:
    planned = run("model.context=512", "batch.tokens=2097152", "batch.microbatch=4096")
    warning = plan.warning(planned)
    fitting = int(re.search(r"batch\.microbatch=(\d+) fits", warning)[1])
    assert 4 <= fitting < 4096
    assert plan.warning(run("model.context=512", "batch.tokens=2097152", f"batch.microbatch={fitting}")) == ""


@pytest.mark.slow
def test_labels_that_only_the_data_know_do_not_stop_a_plan() -> None:
    config = apply_overrides(presets.load("classify"), ["model.layers=1", "model.width=16", "model.heads=2"])
    planned = build.without_data(config)
    pace.measure(planned)
    assert pace.known(planned) is not None


@pytest.mark.slow
def test_a_measurement_times_the_update_that_the_run_will_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the wall clock of the same compiled step; a factor of 3, because other processes run meanwhile."""
    planned = run()
    pace.measure(planned)
    assert pace.known(planned) is not None
    step, state, batch = build.step_function(planned), build.init(planned), pace._blank(planned, 4)
    state, _ = jax.block_until_ready(step(state, [batch]))
    begun = time.perf_counter()
    for _ in range(20):
        state, _ = jax.block_until_ready(step(state, [batch]))
    assert 1 / 3 < pace.seconds(planned, 29) / ((time.perf_counter() - begun) / 20) < 3
    monkeypatch.setattr(build, "init", lambda planned: pytest.fail("measured again"))
    pace.measure(planned)
