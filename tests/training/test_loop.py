"""The loop on a model of one number: counters, order of saving and evaluating, rejected updates, signals."""

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from lmjax.config import CheckpointConfig
from lmjax.journal import journal
from lmjax.training import checkpoint, settle
from lmjax.training.inputs import GaveUp
from lmjax.training.loop import evaluate, train
from lmjax.training.metrics import read
from lmjax.training.signals import Interrupted, StopRequest
from lmjax.training.state import State
from tests.training import miniature
from tests.training.miniature import SKIP, data, events, fresh, parts, weight


@pytest.fixture(
    autouse=True, scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)], ids="{} per dispatch".format
)
def updates_per_dispatch(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every test of this file twice: one update per dispatch, and several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "UPDATES_PER_DISPATCH", request.param)
        yield request.param


def newest(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.folders(folder)[-1]
    assert checkpoint.verify(found) is None
    return checkpoint.read(found)


def test_a_run_counts_records_and_saves(tmp_path: Path) -> None:
    with parts(tmp_path) as made:
        end = train(made, fresh(), stop=StopRequest())
    assert (end.update, end.cursor, end.wall_step, int(end.state.update)) == (12, 36, 12, 12)
    records = read(tmp_path / "metrics.jsonl")
    assert [record["update"] for record in records if "loss" in record] == list(range(1, 13))
    assert [record["update"] for record in records if "val_loss" in record] == [4, 8]
    assert [record["batch_size"] for record in records if "loss" in record] == [2] * 6 + [4] * 6
    assert [folder.name for folder in checkpoint.folders(tmp_path / "checkpoints")] == ["0", "4", "8", "12"]
    assert events(tmp_path).count("checkpoint") == 4


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    with parts(tmp_path / "whole") as made:
        whole = train(made, fresh(), stop=StopRequest())
    stop = StopRequest()

    def interrupt(state: State, _: bool) -> dict[str, float]:
        if int(state.update) == 8:
            stop.name = "SIGTERM"
        return {"val_loss": 1.0}

    with parts(tmp_path / "cut", evaluate=interrupt) as made:
        cut = train(made, fresh(), stop=stop)
        assert cut.update == 8
        found = newest(made.checkpoints.folder)
        state = checkpoint.restore(found, jax.eval_shape(lambda: fresh().state))
        resumed = train(made, replace(cut, state=state), stop=StopRequest())
    assert weight(resumed) == weight(whole)
    assert events(tmp_path / "cut").count("signal") == 1


@pytest.mark.parametrize("serialize", [True, False])
def test_a_serialized_update_waits_until_the_previous_one_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serialize: bool, updates_per_dispatch: int
) -> None:
    said, read = "", settle.fetch

    def fetch(metrics: dict[str, jax.Array], count: int) -> list[dict]:
        nonlocal said
        said += "settled "
        return read(metrics, count)

    monkeypatch.setattr(settle, "fetch", fetch)
    with parts(tmp_path) as made:

        def step(state: State, batches: Sequence[dict]) -> tuple[State, dict]:
            nonlocal said
            said += "sent "
            return made.step(state, batches)

        end = train(
            replace(made, step=step, dispatch=replace(made.dispatch, serialize=serialize)), fresh(), stop=StopRequest()
        )
    assert end.update == 12
    # Behind a save or an evaluation (updates 4, 8 and 12) none is on its way.
    more = 2 if updates_per_dispatch == 1 else 0
    in_a_row = "sent settled " * (2 + more) if serialize else "sent " + "sent settled " * more + "sent settled settled "
    assert said == 3 * in_a_row


@pytest.mark.parametrize("when", [0, 1, 5])
def test_a_signal_at_any_update_saves_what_was_sent_off(tmp_path: Path, when: int, updates_per_dispatch: int) -> None:
    stop, sent = StopRequest(), []
    with parts(tmp_path) as made:
        inner = made.step

        def step(state: State, batches: Sequence[dict]) -> tuple[State, dict]:
            sent.extend(int(batch["update"]) for batch in batches)
            if when in sent:
                stop.name = "SIGINT"
            return inner(state, batches)

        end = train(replace(made, step=step), fresh(), stop=stop)
        found = newest(made.checkpoints.folder)
    assert found.meta["update"] == end.update == sent[-1] + 1 <= when + updates_per_dispatch
    assert sent == list(range(end.update))
    assert found.meta["cursor"] == end.cursor


def test_a_signal_before_the_first_update_saves_update_zero(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.name = "SIGTERM"
    with parts(tmp_path) as made:
        end = train(made, fresh(), stop=stop)
        found = newest(made.checkpoints.folder)
    assert found.meta["update"] == end.update == 0


@pytest.mark.parametrize("poison", [(0,), (7,), (7, 8), (17,), (34,)])
def test_a_poisoned_batch_is_passed_over_as_if_it_had_been_excluded(tmp_path: Path, poison: tuple[int, ...]) -> None:
    with parts(tmp_path, poison=poison) as made:
        end = train(made, fresh(), stop=StopRequest())
    assert end.update == int(end.state.update) == 12
    suspects = [record for record in journal.read(tmp_path / "journal.jsonl") if record["event"] == "suspect"]
    skipped = sum(record["batch"] for record in suspects)
    assert end.cursor == 36 + skipped
    assert end.wall_step == 12 + len(suspects)

    # The same run written down in plain Python, with the batches that hold a poisoned sample left out.
    w, m, v, cursor = 1.0, 0.0, 0.0, 0
    for t in range(1, 13):
        size = 2 if t <= 6 else 4
        while set(range(cursor, cursor + size)) & set(poison):
            cursor += size
        g = sum(data(cursor + i) for i in range(size)) / size + 2 * w
        cursor += size
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert weight(end) == pytest.approx(w, abs=1e-5)  # float32 over twelve Adam updates


def test_data_that_stay_poisoned_end_the_run(tmp_path: Path) -> None:
    with parts(tmp_path, poison=tuple(range(8, 1000))) as made, pytest.raises(GaveUp):
        train(made, fresh(), stop=StopRequest())
    assert events(tmp_path)[-1] == "end"
    assert events(tmp_path).count("suspect") == 10


def test_the_bound_of_suspects_in_a_row_may_exceed_the_window(tmp_path: Path) -> None:
    guard = replace(SKIP, rejected_in_a_row=SKIP.divergence_window + 8)
    with parts(tmp_path, poison=tuple(range(8, 1000)), guard=guard) as made, pytest.raises(GaveUp):
        train(made, fresh(guard), stop=StopRequest())
    assert events(tmp_path).count("suspect") == guard.rejected_in_a_row


def test_saving_comes_before_an_evaluation_that_fails(tmp_path: Path) -> None:
    def fail(state: State, whole: bool) -> dict[str, float]:
        made.checkpoints.wait()
        assert int(state.update) in [int(folder.name) for folder in checkpoint.folders(made.checkpoints.folder)]
        raise RuntimeError("no such metric")

    with parts(tmp_path, evaluate=fail) as made:
        end = train(made, fresh(), stop=StopRequest())
        assert evaluate(made, end, whole=True) == {}
        assert "no such metric" in made.console._rich.file._file.getvalue()  # type: ignore[attr-defined]
    assert end.update == 12
    assert not [record for record in read(tmp_path / "metrics.jsonl") if "val_loss" in record]


def test_an_evaluation_that_a_signal_interrupts_did_not_fail(tmp_path: Path) -> None:
    stop = StopRequest()

    def interrupt(state: State, whole: bool) -> dict[str, float]:
        stop.hear(signal.SIGINT)
        raise Interrupted("the evaluation was interrupted by SIGINT")

    with parts(tmp_path, evaluate=interrupt) as made:
        assert train(made, fresh(), stop=stop).update == 4
        printed = made.console._rich.file._file.getvalue()  # type: ignore[attr-defined]
    assert "update 4: the evaluation was interrupted by SIGINT; a resume begins with it" in printed
    assert "failed" not in printed


def test_an_evaluation_that_is_due_precedes_the_first_update(tmp_path: Path) -> None:
    seen: list[int] = []

    def count(state: State, whole: bool) -> dict[str, float]:
        seen.append(int(state.update))
        return {"val_loss": 1.0}

    with parts(tmp_path, evaluate=count, evaluation_due=True) as made:
        train(made, fresh(), stop=StopRequest())
    assert seen == [0, 4, 8]


def test_without_periodic_saves_the_end_is_saved(tmp_path: Path) -> None:
    with parts(tmp_path, saving=CheckpointConfig()) as made:
        train(made, fresh(), stop=StopRequest())
    assert [folder.name for folder in checkpoint.folders(tmp_path / "checkpoints")] == ["0", "12"]
