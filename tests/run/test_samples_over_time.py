"""Samples over time: their file follows the run, and they change nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

import lmjax
from lmjax.config import Config
from lmjax.run import samples_over_time
from tests.faults import runs


def test_a_run_that_goes_back_replaces_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for update in (10, 20, 30, 20, 40):
        samples_over_time.add(path, update, f"é {update}\n")
    found = samples_over_time.read(path)
    assert [sample["update"] for sample in found] == [10, 20, 40]
    assert found[-1]["text"] == "é 40\n"
    path.write_text(path.read_text() + '{"update": 50, "text"\n[]\n{"update": "x", "text": "y"}\n')
    assert samples_over_time.read(path) == found
    assert samples_over_time.read(tmp_path / "none") == []


@pytest.mark.slow
def test_samples_do_not_change_a_run(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("train.baselines=false", "train.updates=12", "train.evaluate_every=3", "train.sample_tokens=4")
    for every in (0, 2):
        lmjax.train(tiny, *own, f"train.sample_every={every}", run_dir=tmp_path / str(every), quiet=True)
    assert runs.digest(tmp_path / "0") == runs.digest(tmp_path / "2")
    assert not (tmp_path / "0/samples.jsonl").exists()
    found = [json.loads(line) for line in (tmp_path / "2/samples.jsonl").read_text().splitlines()]
    assert [sample["update"] for sample in found] == [6]  # the second of the evaluations after 3, 6 and 9 updates
    assert "update 6" in (tmp_path / "2/report.html").read_text()

    def fail(*_: Any) -> str:
        raise RuntimeError("of the user")

    monkeypatch.setattr(samples_over_time, "add", fail)
    result = lmjax.train(tiny, *own, "train.sample_every=1", run_dir=tmp_path / "fails", quiet=True)
    assert result.status == "finished"
    assert runs.digest(tmp_path / "fails") == runs.digest(tmp_path / "0")
