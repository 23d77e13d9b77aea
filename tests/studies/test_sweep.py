"""A sweep trains each point of its grid once and compares the seeds of each setting."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import lmjax
from lmjax.config import Config, UserError
from lmjax.studies import sweep, sweep_report
from lmjax.studies.sweep_report import Outcome
from tests.faults import runs

SHORT = ("train.sample_tokens=0", "train.baselines=false", "train.updates=6", "train.evaluate_every=0")


def outcome(peak: str, seed: str, loss: Any, status: str = "finished") -> Outcome:
    summary = {"val_loss": loss, "seconds": 2.0, "updates": 5}
    return Outcome({"schedule.peak": peak, "seed": seed}, Path(f"{peak}-{seed}"), status, summary)


OUTCOMES = [
    outcome("1e-4", "0", 3.0), outcome("1e-4", "1", 3.2), outcome("1e-3", "0", 2.5), outcome("1e-3", "1", 2.7),
    outcome("1e-1", "0", 1.0), outcome("1e-1", "1", None),
]  # fmt: skip


def test_settings_are_ranked_by_the_mean_over_their_seeds() -> None:
    """A setting of which one run has no finite loss comes last, however good the others are."""
    best, second, last = sweep_report.ranked(OUTCOMES, "val_loss")
    assert (best.name, second.name, last.name) == ("schedule.peak=1e-3", "schedule.peak=1e-4", "schedule.peak=1e-1")
    assert best.mean == pytest.approx(statistics.mean([2.5, 2.7]))
    assert best.deviation == pytest.approx(statistics.stdev([2.5, 2.7]))
    assert (last.scores, last.runs, last.seconds) == ([1.0], 2, 4.0)
    higher = [Outcome(o.point, o.run, o.status, {"val_reward": o.summary["val_loss"]}) for o in OUTCOMES[:4]]
    assert sweep_report.ranked(higher, "val_reward")[0].name == "schedule.peak=1e-4"


def test_the_report_says_when_the_seeds_differ_as_much_as_the_settings(tmp_path: Path) -> None:
    sweep_report.write_sweep(tmp_path, OUTCOMES, metric="val_loss")
    text = (tmp_path / "sweep.md").read_text()
    assert "no winner" not in text
    assert "| schedule.peak=1e-3 | 2.600 | 0.141 | 2.500 | 2.700 | 2 of 2 | 4.0s |" in text
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    close = [outcome("1e-4", "0", 2.6), outcome("1e-4", "1", 2.75), *OUTCOMES[2:4]]
    sweep_report.write_sweep(tmp_path, close, metric="val_loss")
    assert "less than twice the deviation: no winner" in (tmp_path / "sweep.md").read_text()
    gave_up = [*OUTCOMES[:3], outcome("1e-3", "1", 9.0, "gave up")]
    sweep_report.write_sweep(tmp_path, gave_up, metric="val_loss")
    assert "gave up: 1e-3-1;" in (tmp_path / "sweep.md").read_text()


def test_a_score_that_no_run_has_is_refused() -> None:
    assert sweep_report.score_of(OUTCOMES, "") == "val_loss"
    with pytest.raises(UserError, match="--metric val_los is no score of these runs; did you mean 'val_loss'"):
        sweep_report.score_of(OUTCOMES, "val_los")
    with pytest.raises(UserError, match="no run has a score"):
        sweep_report.score_of([outcome("1", "0", None)], "")


def test_folders_have_plain_and_distinct_names() -> None:
    points = [
        {"schedule.peak": "1e-3", "seed": "0"}, {"data.files": "[/a/b]"}, {"data.files": "[/a_b]"},
        {"model.layers": "2", "x.layers": "2"}, {"data.files": "x" * 300},
    ]  # fmt: skip
    names = [sweep.folder_name(point) for point in points]
    assert names[0] == "peak=1e-3,seed=0"
    assert len(set(names)) == len(points)
    assert all("/" not in name and len(name) < 120 for name in names)


@pytest.mark.slow
def test_a_sweep_trains_each_point_once_and_continues(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = (*SHORT, "schedule.peak=1e-3,1e-2", "seed=0:2")
    outcomes = lmjax.sweep(tiny, *grid, out=tmp_path, metric="val_loss", quiet=True)
    assert capsys.readouterr().out == ""
    assert [dict(o.point) for o in outcomes] == [
        {"schedule.peak": peak, "seed": seed} for peak in ("1e-3", "1e-2") for seed in ("0", "1")
    ]
    lmjax.train(tiny, *SHORT, "schedule.peak=1e-2", "seed=1", run_dir=tmp_path / "alone", quiet=True)
    assert runs.digest(tmp_path / "alone") == runs.digest(outcomes[3].run)  # a run like any other
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert [run["val_loss"] for run in written["runs"]] == [o.summary["val_loss"] for o in outcomes]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/journal.jsonl")}
    (outcomes[1].run / "summary.json").unlink()  # as if it was interrupted at its end
    lmjax.sweep(tiny, *grid, out=tmp_path, quiet=True)
    changed = {path.parent for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {outcomes[1].run}
    assert runs.summary(outcomes[1].run)["val_loss"] == outcomes[1].summary["val_loss"]
    with pytest.raises(UserError, match="has another configuration"):
        lmjax.sweep(tiny, *grid, "train.updates=7", out=tmp_path, quiet=True)
