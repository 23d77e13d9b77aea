"""Saves that fail, states that are not worth saving, and which checkpoints stay, with the loop in miniature."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config import CheckpointConfig
from lmjax.pytrees import all_finite
from lmjax.system import faults
from lmjax.training import checkpoint
from lmjax.training.checkpoint import CheckpointError, NotFinite
from lmjax.training.inputs import LoopInputs, Position
from lmjax.training.loop import train
from lmjax.training.signals import StopRequest
from lmjax.training.state import State
from tests.training.miniature import GUARD, LONG, at, events, fresh, options, parts, records, run, same

UPDATES = LONG["updates"]


def patiently(run_dir: Path, **more: Any) -> Position:
    """Every save is finished before the next batch is made, so that it is known when a failure is noticed."""

    def wait(before: int, x: list[float]) -> list[float]:
        made.checkpoints.wait()
        return x

    with parts(run_dir, **options(spoil=wait, **more)) as made:
        return train(made, fresh(made.guard), stop=StopRequest())


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Position:
    """The run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("quiet") / "run"
    end = run(run_dir)
    assert not {"suspect", "rollback", "fallback"} & set(events(run_dir))
    return end


# ---- Saves that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [pytest.param("save", marks=pytest.mark.slow), "save.manifest", "save.rename"])
def test_a_failed_save_is_tried_again_at_once(tmp_path: Path, quiet: Position, point: str) -> None:
    with faults.armed(f"{point}=full@3"):
        end = patiently(tmp_path / "run", saving=CheckpointConfig(every=8, keep=99))
    same(end, quiet)
    told = [record for record in records(tmp_path / "run") if record["event"] == "fallback"]
    assert [record["problems"][0].partition(":")[0] for record in told] == ["checkpoint 16 could not be written"]
    saved = [int(folder.name) for folder in checkpoint.folders(tmp_path / "run" / "checkpoints")]
    # Noticed after update 17, when 18 is already on its way.
    assert saved == [0, 8, 18, 24, 32, 40, 48, 56, 64]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def test_a_save_that_fails_three_times_ends_the_run_and_keeps_the_older_ones(tmp_path: Path) -> None:
    with faults.armed("save.rename=full@3-5"), pytest.raises(CheckpointError, match=r"No space.*tried 3 times.*resume"):
        patiently(tmp_path / "run")
    whole = checkpoint.folders(tmp_path / "run" / "checkpoints")
    assert [folder.name for folder in whole] == ["0", "8"]
    assert all(checkpoint.verify(folder) is None for folder in whole)


def test_or_it_goes_on_without_if_told_so(tmp_path: Path, quiet: Position) -> None:
    with faults.armed("save.rename=full@3-5"):
        end = patiently(tmp_path / "run", saving=CheckpointConfig(every=8, on_failure="continue"))
    same(end, quiet)
    assert events(tmp_path / "run").count("fallback") == 3


def test_the_end_must_be_saved_whatever_was_told(tmp_path: Path) -> None:
    saving = CheckpointConfig(on_failure="continue")
    with faults.armed("save=error@2-99"), pytest.raises(CheckpointError, match="update 64 could not be saved"):
        run(tmp_path / "run", saving=saving)


# ---- Not finite (I7) ------------------------------------------------------------------------------------------------


def breaking(made: LoopInputs, when: int, count: int = 1) -> LoopInputs:
    """The optimizer state breaks in the update `when`, after all that the guard looks at; so many times."""
    left = [count]

    def step(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, Any]]:
        state, metrics = made.step(state, batches)
        if int(batches[-1]["update"]) == when - 1 and left[0]:
            left[0] -= 1
            with jax.transfer_guard("allow"):
                broken = jax.tree.map(lambda x: x * math.nan if x.dtype == "f4" else x, state.opt_state)
            state = replace(state, opt_state=broken)
        return state, metrics

    return replace(made, step=step)


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_not_saved_and_left(tmp_path: Path, quiet: Position) -> None:
    with parts(tmp_path / "run", **LONG) as made:
        end = train(breaking(made, when=24), fresh(GUARD), stop=StopRequest())
        template = jax.eval_shape(lambda: fresh(GUARD).state)
        for folder in checkpoint.folders(tmp_path / "run" / "checkpoints"):
            assert all_finite(checkpoint.restore(checkpoint.read(folder), template))
    same(end, quiet)
    (first,) = [record for record in records(tmp_path / "run") if record["event"] == "rollback"]
    assert (first["rule"], first["target"], first["trigger"]["update"]) == ("parameters not finite", 8, 23)
    assert events(tmp_path / "run").count("suspect") == 0


def test_without_rollbacks_the_end_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    guard = replace(GUARD, policy="skip")
    with parts(tmp_path / "run", **options(guard=guard)) as made, pytest.raises(NotFinite, match="update 64"):
        train(breaking(made, when=UPDATES), fresh(guard), stop=StopRequest())
    assert checkpoint.folders(tmp_path / "run" / "checkpoints")[-1].name == "56"


# ---- Retention (I8) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("every", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_retention_keeps_two_checkpoints_that_a_rollback_could_use(tmp_path: Path, seed: int, every: int) -> None:
    """Lone suspects at random. The rule, written out: 4 before the onset, which lies up to 8 before what is seen; no
    suspect from 4 before to min(8, save interval) after; 0 always."""
    rng = np.random.default_rng(seed)
    poison = at(*rng.choice(np.arange(6, 160), 3, replace=False))
    seen = []

    def look(state: State, whole: bool) -> dict[str, float]:
        made.checkpoints.wait()
        told = records(tmp_path / "run")
        suspects = [record["update"] for record in told if record["event"] == "suspect"]
        saved = {record["update"] for record in told if record.get("reason") == "saving"}
        after, onset = min(8, every), int(state.update) - 8
        good = sorted(
            n
            for n in saved
            if n == 0
            or (n + 4 <= onset and n + after < onset and not any(n - 4 <= bad <= n + after for bad in suspects))
        )
        kept = {int(folder.name) for folder in checkpoint.folders(made.checkpoints.folder)}
        seen.append(({0, *good[-2:]}, kept))  # an evaluation that fails would be passed over
        return {}

    saving = CheckpointConfig(every=every, keep=1, keep_best=False)
    with parts(tmp_path / "run", **options(poison=poison, saving=saving, evaluate=look)) as made:
        train(made, fresh(GUARD), stop=StopRequest())
    assert "suspect" in events(tmp_path / "run")
    for needed, kept in seen:
        assert needed <= kept
    assert len(seen) == 15
    assert max(len(needed) for needed, _ in seen) == 3
    # Update 0, the last one, two to go back to, those of 8 + 8 updates that may become such: the others are gone.
    assert max(len(kept) for _, kept in seen) <= 4 + 16 // every + 1
