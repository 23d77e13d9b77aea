"""The rehearsal: that the small copy is small and still the same setup, and that a product that fails is noticed."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import Config, GPTConfig, MeshConfig, SourceConfig, UserError, presets
from lmjax.config.checks import check
from lmjax.config.codec import apply_overrides
from lmjax.diagnose import rehearsal, scenarios, small_copy
from lmjax.diagnose.small_copy import UPDATES
from lmjax.journal.history import Applied, History
from lmjax.journal.journal import Journal
from lmjax.models import costs, registry
from lmjax.run import build
from tests import ROOT
from tests.journal.records import DIGEST, START

SIZES = {"layers", "width", "heads", "key_heads", "head_dim", "mlp_width", "hidden", "context"}
FAULTS = (*scenarios.SCENARIOS[2:], *scenarios.POLICY_SCENARIOS[4:8])
SECTIONS = ("name", "seed", "data", "objective", "optimizer", "guard")


def batches(config: Config) -> np.ndarray:
    """The batch of every update, in sequences."""
    return build.plan_batches(config).sequences


# ---- The small copy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.names())
def test_the_copy_of_a_preset_is_small_and_has_all_its_switches(name: str) -> None:
    config = presets.load(name)
    small = small_copy.shrink(config)
    check(small)
    build.check(small)
    model = small.model
    for field in dataclasses.fields(model):
        if field.name not in SIZES:
            assert getattr(model, field.name) == getattr(config.model, field.name), field.name
    assert all(getattr(small, section) == getattr(config, section) for section in SECTIONS)
    assert small.parallel == dataclasses.replace(config.parallel, mesh=MeshConfig())
    assert dataclasses.replace(small.schedule, peak=config.schedule.peak) == config.schedule
    assert small.batch.growth == config.batch.growth
    # Without the vocabulary, which stays: two layers of at most 128 features, 512 wide within, are less.
    assert registry.parameters(dataclasses.replace(model, vocab_size=1))["total"] < 500_000
    if isinstance(model, GPTConfig):
        assert costs.resolve_gpt(model).head_dim % 2 == 0
        assert (model.key_heads == 0) == (config.model.key_heads == 0)
    assert getattr(model, "layers", 2) == min(getattr(config.model, "layers", 2), 2)
    assert model.context == min(config.model.context, 64)
    sizes = batches(small)
    assert len(sizes) == 240
    assert sizes.max() <= 2 * small.batch.microbatch <= 16
    assert len(set(sizes)) == min(len(set(batches(config))), 2)
    assert small_copy.spike_update(small) > small.guard.armed


def test_heads_stay_shared_as_they_are(tiny: Config) -> None:
    def shapes(*words: str) -> tuple[int, int, int]:
        model = costs.resolve_gpt(small_copy.shrink(apply_overrides(tiny, words)).model)
        return model.heads, model.key_heads, model.head_dim

    assert shapes("model.width=1024", "model.heads=16") == (2, 2, 32)
    assert shapes("model.width=1024", "model.heads=16", "model.key_heads=4") == (4, 2, 32)
    assert shapes("model.width=1024", "model.heads=16", "model.key_heads=1") == (2, 1, 32)
    assert shapes("model.width=96", "model.heads=8", "model.head_dim=10") == (2, 2, 10)
    assert shapes("model.heads=1") == (1, 1, 16)


def test_what_is_placed_in_the_run_keeps_its_share_of_it(tiny: Config) -> None:
    words = ["train.updates=2400", "batch.tokens=((0,640),)", "schedule.cuts=((1200,0.5,100),)"]
    changes = ((0.25 * 2400 * 640, (1.0, 3.0)), (0.5 * 2400 * 640, (2.0, 1.0)))
    data = dataclasses.replace(
        tiny.data,
        files=(),
        mixture=(SourceConfig(files=tiny.data.files), SourceConfig()),
        mixture_changes=tuple((int(token), weights) for token, weights in changes),
    )
    small = small_copy.shrink(dataclasses.replace(apply_overrides(tiny, words), data=data))
    assert small.schedule.cuts == ((120, 0.5, 10),)
    tokens = 240 * batches(small)[0] * small.model.context
    assert small.data.mixture_changes == ((tokens // 4, (1.0, 3.0)), (tokens // 2, (2.0, 1.0)))
    assert small_copy.spike_update(small) == 240 - small_copy.ROOM  # the longest stretch is the last one


@pytest.mark.parametrize(("microbatch", "devices"), [(12, 4), (64, 0), (96, 32), (7, 0), (6, 2)])
def test_the_copy_keeps_its_devices_busy(tiny: Config, microbatch: int, devices: int) -> None:
    tokens = microbatch * tiny.model.context
    words = [f"batch.microbatch={microbatch}", f"parallel.devices={devices}", f"batch.tokens=((0,{tokens}),)"]
    small = small_copy.shrink(apply_overrides(tiny, words))
    assert small.parallel.devices == devices
    assert small.batch.microbatch % max(devices, 1) == 0
    assert small.batch.microbatch <= max(8, devices)
    assert set(batches(small)) == {small.batch.microbatch}


@pytest.mark.parametrize(
    ("word", "excluded"),
    [
        ("guard.policy=rollback", set()),
        ("guard.policy=skip", {"a transient spike", "poisoned data"}),
        ("guard.policy=off", {"one NaN batch", "a transient spike", "poisoned data"}),
        ("guard.attribute=false", {"a transient spike"}),
        ("guard.armed=230 guard.window=230", {"a transient spike", "poisoned data"}),
    ],
)
def test_what_a_setting_of_the_guard_excludes_is_said(tiny: Config, word: str, excluded: set[str]) -> None:
    small = small_copy.shrink(apply_overrides(tiny, word.split()))
    why = {scenario.fault: scenario.excluded(small) for scenario in scenarios.SCENARIOS}
    assert {fault for fault, text in why.items() if text} == excluded
    assert all(text.startswith(f"not with {word.split()[0]}") for text in why.values() if text)


def test_a_policy_rehearses_its_rewards_in_place_of_its_data() -> None:
    names = [scenario.fault for scenario in scenarios.scenarios_of(small_copy.shrink(presets.load("grpo")))]
    own = ["a reward that is NaN", "a leap of the reward", "equal rewards", "another sampler"]
    assert names == [scenario.fault for scenario in scenarios.SCENARIOS[:4]] + own + ["disk full during a save"]


# ---- What is noticed ------------------------------------------------------------------------------------------------


class Product:
    """In place of lmjax: each command only writes the journal that it should, with the digest it is told to."""

    def __init__(
        self, *, digests: dict[str, str] | None = None, statuses: dict[str, int] | None = None, error: str = ""
    ):
        self.digests, self.statuses, self.error = digests or {}, statuses or {}, error

    def __call__(self, words: Sequence[str], *, fault: str, log: Path) -> int:
        log.write_text(f"{self.error or 'the last line'}\n")
        if self.error and words[0] == "train":
            return 2
        if words[0] == "train":
            run = Path(words[-1])
            run.mkdir(exist_ok=True)
            journal = Journal(run / "journal.jsonl")
            event = "signal" if "SIGTERM" in fault else "end"
            digest = self.digests.get(run.name, DIGEST)
            if not journal.records:
                journal.write("start", wall_step=0, update=0, cursor=0, **START)
                journal.note(update=1, cursor=1, loss=1.0, grad_norm=1.0)
            journal.write(event, wall_step=1, update=1, cursor=1, name="SIGTERM", status="finished", digest=digest)
        return self.statuses.get(words[0], 0)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenarios: they need no more than a journal."""
    monkeypatch.setattr(scenarios, "SCENARIOS", scenarios.SCENARIOS[:2])


@pytest.mark.usefixtures("two")
def test_equal_digests_pass_and_nothing_stays(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenarios, "command", Product())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert rehearsal.show(tiny, keep=None) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 passed" in printed
    assert re.search(r"train\.updates +12 +240", printed)
    assert not list(tmp_path.glob("lmjax-rehearsal-*"))


@pytest.mark.usefixtures("two")
def test_another_digest_fails_and_the_runs_stay(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenarios, "command", Product(digests={"stopped": "cd" * 32}))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert rehearsal.show(tiny, keep=None) == 1
    printed = capsys.readouterr().out
    assert "FAIL  stopped by SIGTERM: another digest" in printed
    assert "1 of 2 passed" in printed
    assert "the last line" in printed
    (folder,) = tmp_path.glob("lmjax-rehearsal-*")
    assert (folder / "stopped" / "journal.jsonl").is_file()


@pytest.mark.usefixtures("two")
def test_without_a_clean_run_nothing_else_is_tried(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenarios, "command", Product(statuses={"audit": 1}))
    assert rehearsal.show(tiny, keep=tmp_path / "kept") == 1
    printed = capsys.readouterr().out
    assert "FAIL  none: `audit` ended with status 1, not 0" in printed
    assert "0 of 1 passed" in printed
    assert not (tmp_path / "kept" / "stopped").exists()


def test_a_configuration_that_cannot_run_is_one_line(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "command", Product(error="error: JAX sees 1 device"))
    with pytest.raises(UserError, match=r"^JAX sees 1 device$"):
        rehearsal.show(tiny, keep=tmp_path / "kept")


@pytest.mark.parametrize("act", [scenario.act for scenario in FAULTS])
def test_a_fault_that_leaves_no_trace_is_no_success(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[scenarios.Stage], str]
) -> None:
    """Every run ends as the clean one does: so the fault was never there, or nobody noticed it."""
    monkeypatch.setattr(scenarios, "command", Product())
    stage = scenarios.Stage(tmp_path, small_copy.shrink(tiny))
    scenarios.clean(stage)
    path = [Applied(cursor, "0x1p0", "0x1p0", ()) for cursor in range(UPDATES)]
    monkeypatch.setattr(scenarios, "fold", lambda _: History(path=path))
    whole = tmp_path / "clean" / "checkpoints" / "240"
    whole.mkdir(parents=True)
    (whole / "meta.json").write_text("{}")
    (tmp_path / "clean" / "summary.json").write_text("{}")
    with pytest.raises(scenarios.Failed, match=r"not noticed|not -9|not 1|was applied"):
        act(stage)


# ---- The door -------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="not an empty folder"):
            rehearsal.show(tiny, keep=path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_product_survives_its_rehearsal(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert rehearsal.show(tiny, keep=tmp_path / "kept") == 0, capsys.readouterr().out
    assert "8 of 8 passed" in capsys.readouterr().out
