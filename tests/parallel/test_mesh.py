"""The processes of a run: how they find each other, and which rows each of them makes."""

import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmjax.config import ParallelConfig, UserError
from lmjax.parallel import mesh, processes
from lmjax.parallel.mesh import make_mesh, row_sharding
from lmjax.run import build, feed
from tests import ROOT, small

SCRIPTS = ROOT / "scripts"


def test_a_mesh_takes_the_devices_that_divide_the_microbatch() -> None:
    assert make_mesh(ParallelConfig(), microbatch=3).size == max(n for n in (1, 3) if n <= jax.device_count())
    assert row_sharding(make_mesh(ParallelConfig(devices=1), microbatch=4), leading=1).spec == PartitionSpec(
        None, ("data", "fsdp")
    )


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"parallel\.devices=99, but JAX sees"):
        make_mesh(ParallelConfig(devices=99), microbatch=99)


@pytest.mark.slow
def test_a_single_cpu_reads_the_hosts_arrays_and_computes_the_same(corpus: Path) -> None:
    made = small.build("masked", corpus, "parallel.devices=1")
    fed = next(feed.device_batches(made, 0, 0))
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fed.batch))
    placed = jax.device_put(fed.batch, mesh.replicated(made.mesh))
    update = build.update_function(made)
    found, expected = (jax.device_get(update(build.init(made), batch)) for batch in (fed.batch, placed))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_several_devices_are_handed_theirs(corpus: Path) -> None:
    made = small.build("masked", corpus)
    fed = next(feed.device_batches(made, 0, 0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fed.batch)) == (made.mesh.size > 1)


@pytest.mark.parametrize("name", ["masked", "lstm"])
def test_processes_make_the_rows_of_a_batch_between_them(name: str, corpus: Path) -> None:
    made = small.build(name, corpus)
    _, cursor, whole = next(feed.host_batches(made, 0, 0))
    halves = [next(feed.host_batches(made, 0, 0, own=own)) for own in (slice(0, 2), slice(2, 4))]
    assert [half[1] for half in halves] == [cursor, cursor]
    for array, *parts in zip(whole.values(), *(half[2].values() for half in halves), strict=True):
        of_each = [part.reshape(2, 2, *part.shape[1:]) for part in parts]  # two microbatches of four rows
        np.testing.assert_array_equal(np.concatenate(of_each, axis=1).reshape(array.shape), array)


@pytest.mark.parametrize("name", ["masked", "lstm"])
def test_batches_drawn_together_are_those_drawn_one_by_one(name: str, corpus: Path) -> None:
    """Over epochs and over samples left out, from any batch on: the ids, and the cursor behind each."""
    made = small.build(name, corpus)
    left_out = [(int(at), int(at) + 2) for at in made.order.sample_id(np.arange(9, 60, 5))]
    order, cursor = made.order.excluding(left_out), 3
    assert made.plan.updates > 4
    for update, behind, arrays in feed.host_batches(made, 1, cursor, order=order):
        ids, cursor = order.take(cursor, int(made.plan.sequences[update]))
        assert behind == cursor
        for found, expected in zip(arrays.values(), made.samples.arrays(ids).values(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_processes_that_cannot_be_found_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # which is added to
    with pytest.raises(UserError, match=r"parallel\.distributed=true, but no Slurm.*JAX_COORDINATOR_ADDRESS"):
        processes.connect(ParallelConfig(distributed=True))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r"cannot connect \(invalid literal.*'two'\).* for a single process"):
        processes.connect(ParallelConfig())


def test_processes_that_were_started_and_not_joined_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.overlooked() == ""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert processes.overlooked() == ""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert "Slurm started 4 processes" in processes.overlooked()


def test_a_mesh_that_is_not_here_gives_way() -> None:
    config = ParallelConfig(devices=1)
    assert mesh.here(config, microbatch=4) == config
    assert mesh.here(ParallelConfig(devices=99), microbatch=99) == ParallelConfig()


def test_the_recipe_for_slurm_starts_a_run_goes_on_with_it_and_comes_again(tmp_path: Path) -> None:
    """With commands in the place of Slurm's that print what they are told; the run is stopped once, then finished."""
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "run"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def told(status: str) -> list[str]:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}, indent=1))
        words = ["bash", str(SCRIPTS / "slurm_gpu.sh"), str(folder), "gpt2_124m", "seed=1", "parallel.devices=8"]
        made = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        return made.stdout.replace("srun --kill-on-bad-exit=1 python train.py ", "").splitlines()

    folder.mkdir()
    (folder / "summary.json").symlink_to(tmp_path / "summary.json")
    start = f"gpt2_124m seed=1 parallel.devices=8 --run-dir {folder} parallel.distributed=true"
    assert told("stopped") == [start, "scontrol requeue 7"]
    (folder / "config.json").touch()
    assert told("finished") == [f"--resume {folder} parallel.devices=8 parallel.distributed=true"]
