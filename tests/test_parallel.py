"""The same run on one device and on several: the same samples, the same losses up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

from lmjax.config import Config, ParallelConfig, UserError
from lmjax.parallel import make_mesh, rows
from lmjax.typed import apply_overrides, to_json

ROOT = Path(__file__).parents[1]


def test_a_mesh_takes_the_devices_that_divide_the_microbatch() -> None:
    assert make_mesh(ParallelConfig(), microbatch=3).size == max(n for n in (1, 3) if n <= jax.device_count())
    assert rows(make_mesh(ParallelConfig(devices=1), microbatch=4), leading=1).spec == PartitionSpec(None, "data")


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"parallel\.devices=99, but JAX sees"):
        make_mesh(ParallelConfig(devices=99), microbatch=99)


@pytest.mark.slow
def test_four_devices_train_as_one_does(tiny: Config, tmp_path: Path) -> None:
    """Sums over rows associate otherwise on four devices: float32 rounding through twelve updates of Adam."""
    config = apply_overrides(tiny, ["train.baselines=false", "model.dropout=0"])
    (tmp_path / "config.json").write_text(to_json(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    losses = {}
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        words = [str(tmp_path / "config.json"), f"parallel.devices={devices}", "--run-dir", str(folder)]
        subprocess.run([sys.executable, ROOT / "train.py", *words], check=True, env=environment, capture_output=True)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[devices] = [record.get("loss", record.get("val_loss")) for record in records]
    assert len(losses[1]) == 15
    assert losses[4] == pytest.approx(losses[1], abs=1e-5)
