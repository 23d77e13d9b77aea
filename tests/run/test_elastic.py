"""A run goes on with other devices than it began with: the same samples in the same batches, the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.config import Config
from lmjax.config.codec import apply_overrides, to_json
from lmjax.diagnose import audit
from lmjax.journal import journal
from lmjax.journal.history import Record, fold, last
from lmjax.training import metrics
from tests import ROOT, small

BEGAN = "parallel.mesh=(data=1, fsdp=8)"
THEN = {"one": "parallel.mesh=(data=1, fsdp=1)", "other": "parallel.mesh=(data=2, fsdp=4)"}
CHANGES = [
    "batch.microbatch=8", "batch.tokens=((0, 128), (768, 256))", "train.updates=12", "train.evaluate_every=0",
    "train.baselines=false", "train.sample_tokens=1", "checkpoint.every=4",
]  # fmt: skip
# One process of eight virtual devices does it all: a run to its end, the same on one device, the first one stopped, and
# that on other devices.
SCRIPT = """
import json, shutil, sys
from pathlib import Path
from lmjax.system import runtime
runtime.prepare()
from lmjax.config import presets
from lmjax.run import curves, launch
from lmjax.run.resume import resume
from lmjax.system import faults
from lmjax.config.codec import apply_overrides

curves.draw = lambda *_: []  # it takes longer than these runs
folder, began, then = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
config = apply_overrides(presets.load(str(folder / "config.json")), [began])
launch.start(config, folder / "whole")
launch.start(apply_overrides(config, [then["one"]]), folder / "alone")
with faults.armed("update=SIGTERM@7"):
    launch.start(config, folder / "cut")
for name, mesh in then.items():
    shutil.copytree(folder / "cut", folder / name)
    resume(apply_overrides(config, [mesh]), folder / name)
"""


def losses(folder: Path) -> list[float]:
    return [record.get("loss", record.get("val_loss")) for record in metrics.read(folder / "metrics.jsonl")]


def records(folder: Path) -> list[Record]:
    return journal.read(folder / "journal.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["nnlm", pytest.param("gpt", marks=pytest.mark.exhaustive)])
def test_a_run_goes_on_with_other_devices(
    family: str, tiny: Config, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout. Sums over rows associate otherwise: float32 rounding through twelve updates of Adam."""
    config = tiny if family == "gpt" else small.config(family, corpus)
    (tmp_path / "config.json").write_text(to_json(apply_overrides(config, CHANGES)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), BEGAN, json.dumps(THEN)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert len(losses(whole)) == 13
    assert losses(tmp_path / "alone") == pytest.approx(losses(whole), abs=1e-5)
    saved = last(records(cut), "signal")
    assert saved is not None
    assert saved["update"] == 7
    for name, mesh in (("one", "one device"), ("other", "data=2, fsdp=4")):
        resumed = next(record for record in records(tmp_path / name) if record["event"] == "resume")
        assert (resumed["update"], resumed["cursor"]) == (7, saved["cursor"])
        assert (resumed["mesh"], resumed["form"]) == (mesh, "mesh")
        assert all(line.startswith("parallel.mesh.") for line in resumed["changed"])
        assert losses(tmp_path / name) == pytest.approx(losses(whole), abs=1e-5)
        ways = [[applied.cursor for applied in fold(records(folder)).path] for folder in (whole, tmp_path / name)]
        assert ways[0] == ways[1]  # the journal knows every sample by its position

    # Here there is one device: what eight computed comes again up to rounding.
    capsys.readouterr()
    assert audit.show(tmp_path / "other", replay=(6, 9)) == 0
    assert "compared to within 1e-05" in capsys.readouterr().out
