"""Settings of the environment that are missing or unusual cost a feature or give one line, never a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

SMALL = (
    "model.layers=1 model.width=16 model.heads=2 model.mlp_width=16 model.context=16 batch.microbatch=4 "
    "batch.tokens=((0,64)) train.updates=2 train.sample_tokens=2 train.evaluate_every=0 checkpoint.every=0 "
    "data.tokenizer.kind=bytes data.validation_fraction=0.1"
)


def lmjax(*words: str | Path, shell: str = "", **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command; a variable of value None is removed, and `shell` is appended to the command line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    environment = {name: value for name, value in environment.items() if value is not None}
    line = ["sh", "-c", f'"$0" "$@" {shell}', sys.executable, "-m", "lmjax", *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, errors="replace", timeout=300)


@pytest.mark.parametrize(
    "changes",
    [
        {"HOME": "", "TERM": None, "COLUMNS": "0", "TMPDIR": "/nowhere"},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": None},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1"},
        {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "/dev/null", "HF_HOME": "/dev/null"},
    ],
)
def test_a_plan_needs_nothing_of_the_environment(changes: dict[str, str | None]) -> None:
    result = lmjax("plan", "quickstart", "--no-measure", **changes)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "FLOPs" in result.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PLATFORMS": "nonsense"}, "Unable to initialize backend 'nonsense'"),
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64 = true would change the numbers of the run"),
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=maybe"}, "XLA cannot read the value 'maybe' of the flag"),
        ({"JAX_ENABLE_X64": "maybe"}, "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_a_variable_that_jax_refuses_is_named_in_one_line(changes: dict[str, str], message: str) -> None:
    result = lmjax("plan", "quickstart", **changes)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MPLBACKEND": "nonsense"}, "'nonsense' is not a valid value for backend"),
        ({"MATPLOTLIBRC": "latin"}, "'utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_a_setting_that_matplotlib_refuses_is_one_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "tokens": 1, "loss": 1.0}\n')
    (tmp_path / "latin").write_bytes(b"lines.linewidth: 1 # caf\xe9\n")
    changes = {name: value.replace("latin", str(tmp_path / "latin")) for name, value in changes.items()}
    result = lmjax("plot", tmp_path, **changes)
    assert result.returncode == 2
    *_, line = result.stderr.splitlines()  # matplotlib may have logged one before
    assert line.startswith("error: matplotlib cannot start: ")
    assert message in line
    assert line.endswith("; change MPLBACKEND, or the file matplotlibrc")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("shell", "changes"),
    [
        (">&- 2>&- <&-", {"MPLBACKEND": "nonsense"}),
        ("", {"PYTHONIOENCODING": "ascii", "MPLCONFIGDIR": "/dev/null", "HOME": "/dev/null"}),
        ("| head -c 100", {"COLUMNS": "0"}),
    ],
)
def test_a_run_is_finished_whatever_its_output_and_its_pictures_meet(
    corpus: Path, tmp_path: Path, shell: str, changes: dict[str, str]
) -> None:
    style, text, run = tmp_path / "matplotlibrc", tmp_path / "text.txt", tmp_path / "run"
    style.write_text("text.usetex: True\nno_such_key: 1\n")
    text.write_text(corpus.read_text().replace("cat", "c\u00e4t \u4e2d"))
    words = (
        "train",
        "quickstart",
        f"data.files=[{text}]",
        f"data.cache={tmp_path}/cache",
        *SMALL.split(),
        "--run-dir",
        run,
    )
    result = lmjax(*words, shell=shell, MATPLOTLIBRC=str(style), PATH="/usr/bin:/bin", **changes)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["baselines"]
    assert set(summary.get("failed", {})) <= ({"drawing"} if "MPLBACKEND" in changes else set())
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert (journal[0]["event"], journal[-1]["event"]) == ("start", "end")
