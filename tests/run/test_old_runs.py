"""Runs made before the package had its present layout (tests/fixtures/runs) are read, resumed and audited."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests import FIXTURES, ROOT
from tests.fixtures.runs.make import end, machine

RUNS = FIXTURES / "runs"
ENDS = json.loads((RUNS / "ends.json").read_text())


def command(*words: str | Path) -> str:
    """The output of `python -m WORDS` or of train.py; the test fails where the command does."""
    result = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(params=["finished", "interrupted"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run, its text where its configuration says."""
    with tarfile.open(RUNS / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(RUNS / "corpus.txt", tmp_path)
    run = tmp_path / request.param
    config = (run / "config.json").read_text().replace("FOLDER", str(tmp_path))
    (run / "config.json").write_text(config.replace('"cache": "cache"', f'"cache": "{tmp_path}/cache"'))
    return run


@pytest.mark.slow
def test_an_old_run_resumes_with_the_bits_it_would_have_had(old: Path) -> None:
    """Bit for bit where the processor and JAX are those the fixture was made with; elsewhere the losses agree up to
    the rounding of bfloat16 (8 bits) in the products."""
    command("-m", "lmjax", "audit", old)
    more = ("train.updates=40", "--allow-change", "train.updates") if old.name == "finished" else ()
    command(ROOT / "train.py", "--resume", old, *more)
    reached, expected = end(old), ENDS[old.name]
    losses = {int(update): loss for update, loss in expected["losses"].items()}
    assert reached["losses"] == pytest.approx(losses, rel=2e-2)
    if machine() == ENDS["made_on"]:
        assert reached == {"digest": expected["digest"], "losses": losses}
    told = command("-m", "lmjax", "audit", old)
    assert "40" in told
    assert command("-m", "lmjax", "generate", old, "--prompt", "the cat", "--max-tokens", "4").startswith("the cat")
