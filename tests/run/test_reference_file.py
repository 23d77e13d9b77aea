"""What a run takes from its reference is computed once, verified, and computed again if it is lost."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.config import Config, UserError
from lmjax.diagnose import audit
from lmjax.display.console import Console
from lmjax.objectives import reward_calibration
from lmjax.objectives.direct import DirectPreference
from lmjax.objectives.reward import RewardModel
from lmjax.pytrees import path_name
from lmjax.run import reference_file, saved
from tests import ROOT, small
from tests.faults import runs

FILES = {"dpo": "reference_logprobs.bin", "reward": "reference_samples.jsonl"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_calibration, "PROMPTS", 2)
    monkeypatch.setattr(reward_calibration, "EACH", 4)
    monkeypatch.setattr(DirectPreference, "sample", lambda *_: "")


def config(name: str, corpus: Path) -> Config:
    """Eight updates from given parameters, a save every four."""
    own, source = small.config(name, corpus), corpus.parent / "start.safetensors"
    params = small.rough(small.build("dpo", corpus).objective)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    save_file({leaf_name.replace("/", "."): leaf for leaf_name, leaf in leaves.items()}, source)
    return replace(
        own,
        init_from=str(source),
        data=replace(own.data, limit=60),
        train=replace(own.train, updates=8, evaluate_every=0),
        checkpoint=replace(own.checkpoint, every=4),
        optimizer=replace(own.optimizer, ema=0.5),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_interrupted_and_without_its_file_it_ends_with_the_same_bits(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resume and an audit verify the file by the journal; if it is missing, they compute the same one."""
    settings, folder, fresh = config(name, corpus), tmp_path / "run", tmp_path / "fresh"
    assert runs.start(settings, fresh) == 0
    with pytest.raises(OSError, match="error"):
        runs.start(settings, folder, "update=error@7")
    path, content = folder / FILES[name], (fresh / FILES[name]).read_bytes()
    (start,) = runs.records(folder, "start")
    assert start["reference_sha256"] == hashlib.sha256(content).hexdigest()
    path.unlink()
    assert runs.resume(folder) == 0
    assert path.read_bytes() == content
    assert runs.losses(folder) == runs.losses(fresh)
    assert runs.digest(folder) == runs.digest(fresh)
    path.unlink()
    assert audit.show(folder, replay=(5, 8)) == 0
    assert not path.exists()  # an audit changes nothing
    assert "replayed updates 5 to 8 from checkpoint 4: as in the journal, bit for bit" in capsys.readouterr().out
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert audit.show(folder) == 1
    assert f"{FILES[name]}' was damaged or edited" in capsys.readouterr().out
    if name == "reward":
        is_calibrated(corpus, fresh)


def is_calibrated(corpus: Path, folder: Path) -> None:
    """Check gain and bias of the average of the parameters; float32 scores of about 1: 1e-5."""
    run = small.build("reward", corpus, "data.limit=60")
    (start,) = runs.records(folder, "start")
    objective = reference_file.recorded(run, folder, start, Console()).objective
    assert isinstance(objective, RewardModel)
    assert objective.answers is not None
    before, after = (saved.load(folder, update).params for update in (4, 8))
    raw, numbers = objective.score_rows(after, objective.answers.rows), after["calibration"]
    np.testing.assert_allclose(raw.std() * numbers["gain"], 1, atol=1e-5)
    np.testing.assert_allclose(raw.mean() * numbers["gain"] + numbers["bias"], 0, atol=1e-5)
    assert [float(number) for number in before["calibration"].values()] == [0, 1]  # bias, gain
    assert {"reward_report.md", "reward_report.png"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_file_that_comes_out_otherwise_is_refused(corpus: Path, tmp_path: Path) -> None:
    run = small.build("dpo", corpus, "data.limit=20")
    start: dict[str, Any] = {"reference_sha256": "0" * 64}
    with pytest.raises(UserError, match="is missing, and is not the same when computed again"):
        reference_file.recorded(run, tmp_path, start, Console())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_mesh_learns_the_same(corpus: Path, tmp_path: Path) -> None:
    """float32: sums of some 200 log-probabilities, of about 1,000, in another order; gain and bias after an update."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    words = [sys.executable, "-m", "tests.run.preference_meshes", corpus, tmp_path]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in FILES:
        one, mesh = found[f"{name} one"], found[f"{name} mesh"]
        np.testing.assert_allclose(mesh["metrics"], one["metrics"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mesh["taken"], one["taken"], rtol=1e-4, atol=1e-4)
