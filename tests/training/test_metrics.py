"""metrics.jsonl and the trackers: strict JSON, torn lines, going back, and trackers that are missing or fail."""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import TrackConfig, UserError
from lmjax.training.metrics import Recorder, read, scores
from lmjax.training.trackers import open_trackers


def record(update: int, **fields: Any) -> dict[str, Any]:
    return {"update": update, "loss": 1.0 / update, **fields}


def test_every_line_is_strict_json_and_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder(path)
    written = recorder.write(record(1, grad_norm=math.nan, lr=np.float32(0.5), n=np.int32(3), up=-math.inf, note="x"))
    expected = {"update": 1, "loss": 1.0, "grad_norm": None, "lr": 0.5, "n": 3, "up": None, "note": "x"}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse) == expected == written  # before it is closed
    recorder.close()
    recorder.close()
    assert read(path) == [expected]


def test_floats_survive_bit_for_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    with Recorder(tmp_path / "m.jsonl") as recorder:
        for i, value in enumerate(values):
            recorder.write({"update": i, "loss": value})
    assert np.array_equal(np.array([r["loss"] for r in read(tmp_path / "m.jsonl")], np.float32), values)


@pytest.mark.parametrize(
    "tail", [b'{"update": 4, "lo', b'{"update": 4}\n\x00\x00\x00', b'{"note": "\xc3', b"17\n", b""]
)
def test_resuming_cuts_later_records_and_a_torn_tail(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    with Recorder(path) as recorder:
        for update in (1, 2, 3):
            recorder.write(record(update))
        recorder.write({"update": 3, "val_loss": 2.0})
    path.write_bytes(path.read_bytes() + tail)
    assert [r["update"] for r in read(path)][:4] == [1, 2, 3, 3]  # reading tolerates it too

    with Recorder(path, update=2) as recorder:
        recorder.write(record(3, again=True))
    assert read(path) == [record(1), record(2), record(3, again=True)]
    assert path.read_bytes().endswith(b"}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_every_cut_of_the_file_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Recorder(path) as recorder:
        for update in (1, 2, 3):
            recorder.write(record(update))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Recorder(path, update=10) as recorder:
            recorder.write(record(11))
        updates = [r["update"] for r in read(path)]
        complete = [n for n in (1, 2, 3) if length >= len(b"".join(whole.splitlines(True)[:n])) - 1]
        assert updates == [*complete, 11]  # a record that lacks only its newline is whole


def test_a_rollback_forgets_what_came_later_and_tells_the_sinks(tmp_path: Path) -> None:
    sink = Sink()
    with Recorder(tmp_path / "m.jsonl", sinks=[sink]) as recorder:
        for update in (1, 2, 3):
            recorder.write(record(update))
        recorder.rewind(1)
        recorder.write(record(2, again=True))
    assert [r["update"] for r in read(tmp_path / "m.jsonl")] == [1, 2]
    assert [call[0] for call in sink.calls] == ["write"] * 3 + ["rewind", "write", "close"]


def test_a_fresh_run_starts_an_empty_file_and_an_untouched_one_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Recorder(path) as recorder:
        recorder.write(record(1))
    inode = path.stat().st_ino
    Recorder(path, update=1).close()
    assert path.stat().st_ino == inode
    Recorder(path).close()
    assert read(path) == []


def test_scores_are_finite_numbers(tmp_path: Path) -> None:
    losses = [None, "x", 10**400, True, 2, 2.5, [1]]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"update": n, "val_loss": loss}) + "\n" for n, loss in enumerate(losses)))
    assert scores(read(path)) == {3: 1.0, 4: 2.0, 5: 2.5}


def test_a_sink_that_fails_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    good = Sink()
    with Recorder(tmp_path / "m.jsonl", sinks=[Sink(fail=True), good], report=said.append) as recorder:
        recorder.write(record(1))
        recorder.write(record(2))
    assert said == ["Sink failed and is off: ConnectionError: gone"]
    assert len(good.calls) == 3
    assert len(read(tmp_path / "m.jsonl")) == 2


def test_a_missing_file_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read(tmp_path / "none.jsonl")


class Sink:
    def __init__(self, fail: bool = False):
        self.calls: list[tuple[Any, ...]] = []
        self.fail = fail

    def write(self, record: dict[str, Any]) -> None:
        if self.fail:
            raise ConnectionError("gone\nand a stack of details")
        self.calls.append(("write", record))

    def rewind(self, update: int) -> None:
        self.calls.append(("rewind", update))

    def close(self) -> None:
        self.calls.append(("close",))


# ---- Trackers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "module"), [(TrackConfig(tensorboard=True), "tensorboardX"), (TrackConfig(wandb="p"), "wandb")]
)
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, config, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what Python does for a module that must not be found
    with pytest.raises(UserError, match=rf"needs {module}.*pip install -e '.*\[track\]'"):
        open_trackers(config, tmp_path, name="run", settings={})


def test_no_tracker_is_asked_for_by_default(tmp_path: Path) -> None:
    assert open_trackers(TrackConfig(), tmp_path, name="run", settings={}) == []


def test_tensorboard_gets_scalars_and_purges_after_a_rollback(tmp_path, monkeypatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, **arguments: Any):
            calls.append(("open", Path(folder).name, arguments["purge_step"]))

        def add_scalar(self, tag: str, value: float, global_step: int) -> None:
            calls.append((tag, value, global_step))

        def close(self) -> None:
            calls.append(("close",))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    sinks = open_trackers(TrackConfig(tensorboard=True), tmp_path, name="run", settings={}, update=4)
    with Recorder(tmp_path / "m.jsonl", update=4, sinks=sinks) as recorder:
        recorder.write({"update": 5, "loss": 2.0, "grad_norm": math.nan, "mfu": math.nan, "note": "text"})
        recorder.rewind(4)
        recorder.write({"update": 5, "val_loss": 3.0})
    assert calls == [
        ("open", "tensorboard", 5),
        ("train/loss", 2.0, 5),
        ("train/grad_norm", math.nan, 5),  # a curve that ends would look as if the last value held
        ("close",),
        ("open", "tensorboard", 5),
        ("validation/val_loss", 3.0, 5),
        ("close",),
    ]


class FakeWandb(types.SimpleNamespace):
    """Remembers how it was started; `fail` are the modes that it cannot start in."""

    def __init__(self, fail: tuple[str, ...] = ()):
        super().__init__(started=[], logged=[], axes=[], finished=0, torn_down=0, url="https://wandb.test/run")
        self.fail = fail

    class Settings(types.SimpleNamespace):
        pass

    def init(self, **arguments: Any) -> "FakeWandb":
        self.started.append(arguments)
        if arguments["mode"] in self.fail:
            raise TimeoutError("no route")
        return self

    def teardown(self) -> None:
        self.torn_down += 1

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_without_a_login_is_offline_and_asks_nothing(tmp_path, wandb) -> None:
    said: list[str] = []
    for _ in range(2):  # the second time as a resumed run
        sinks = open_trackers(
            TrackConfig(wandb="project"), tmp_path, name="run", settings={"seed": 1}, report=said.append
        )
        with Recorder(tmp_path / "m.jsonl", update=9, sinks=sinks) as recorder:
            recorder.write({"update": 7, "loss": 2.0, "grad_norm": math.inf})
            recorder.rewind(6)
    first, second = wandb.started
    assert (first["mode"], first["project"], first["name"], first["config"]) == (
        "offline",
        "project",
        "run",
        {"seed": 1},
    )
    assert first["id"] == second["id"]
    assert first["settings"].console == "off"
    assert wandb.logged == [{"train/loss": 2.0, "train/grad_norm": math.nan, "update": 7}] * 2
    assert wandb.axes == [("*", "update")] * 2
    assert wandb.finished == 2
    assert "offline" in said[0]
    assert "wandb sync" in said[0]


def test_wandb_goes_online_with_a_key_or_a_stored_login(tmp_path, wandb, monkeypatch) -> None:
    def mode() -> str:
        open_trackers(TrackConfig(wandb="p"), tmp_path, name="run", settings={})
        return wandb.started[-1]["mode"]

    (tmp_path / "netrc").write_text("machine elsewhere.org login me password x\n")
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert mode() == "online"
    (tmp_path / "netrc").write_text("not a netrc file\n")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"


def test_wandb_without_a_network_falls_back_to_offline(tmp_path, wandb, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    wandb.fail = ("online",)
    said: list[str] = []
    open_trackers(TrackConfig(wandb="p"), tmp_path, name="run", settings={}, report=said.append)
    assert [start["mode"] for start in wandb.started] == ["online", "offline"]
    assert wandb.torn_down == 1
    assert said[0] == "Weights & Biases cannot go online (TimeoutError: no route)"
