"""The HTML report of runs, written from their directories alone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmjax.cli import main
from lmjax.config import UserError, presets
from lmjax.config.codec import to_json
from lmjax.run import html_report
from lmjax.system import runtime


def recorded(folder: Path, *changes: str, **summary: Any) -> Path:
    """A run directory as a run of the quickstart writes it."""
    folder.mkdir(parents=True)
    config = presets.load("quickstart", changes)
    records: list[dict[str, Any]] = [
        {"update": n, "tokens": 100 * n, "loss": 5 - n / 10, "learning_rate": 1e-3, "grad_norm": 1.0, "seconds": 0.5,
         "batch_size": 4, "tokens_per_second": 200.0, "own_metric": n}
        for n in range(1, 9)
    ]  # fmt: skip
    records.insert(4, {"update": 4, "tokens": 400, "val_loss": 4.75, "val_bits_per_byte": 2.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.json").write_text(to_json(config))
    done = {"status": "finished", "updates": 8, "tokens": 800, "seconds": 4.0, "val_loss": 4.25, "digest": "ab" * 32}
    (folder / "summary.json").write_text(json.dumps(done | summary))
    (folder / "journal.jsonl").write_text(json.dumps({"event": "start", "jax": "0.99"}) + "\n")
    (folder / "sample.txt").write_text("Once <b>upon</b> a time\n")
    (folder / "spikes").mkdir()
    (folder / "spikes/7.md").write_text("a spike")
    return folder


def test_a_report_has_the_results_and_what_the_preset_has_otherwise(tmp_path: Path) -> None:
    run = recorded(tmp_path / "mine", "schedule.peak=0.125", parameters=1234)
    written = html_report.write([run]).read_text()
    for text in ("finished, 8 updates", "4.250", "1,234", "Once &lt;b&gt;upon&lt;/b&gt; a time", "0.99", "own_metric"):
        assert text in written
    assert "<td>0.125</td>" in written
    assert f"<td>{presets.load('quickstart').schedule.peak}</td>" in written  # what the preset has
    assert 'href="spikes/7.md"' in written
    assert f"lmjax audit {run}" in written


def test_several_runs_show_what_differs(tmp_path: Path) -> None:
    runs = [recorded(tmp_path / name, f"seed={n}", val_loss=4.0 + n) for n, name in enumerate(("a", "b"))]
    path = html_report.write(runs, tmp_path / "both.html")
    page = html_report.page(html_report.load(runs), base=tmp_path)
    (configuration,) = (section for section in page.sections if section.title == "Configuration")
    assert configuration.blocks[0].rows == [("seed", "0", "1")]  # type: ignore[union-attr]
    written = path.read_text()
    assert "4.000" in written
    assert "5.000" in written
    assert 'href="a/spikes/7.md"' in written


def test_what_is_missing_or_damaged_costs_only_itself(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    for name, content in (("summary.json", "{"), ("config.json", "[]"), ("journal.jsonl", "x"), ("sample.txt", "")):
        (run / name).write_text(content)
    assert "not finished" in html_report.write([run]).read_text()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no records yet"):
        html_report.write([run])
    with pytest.raises(UserError, match="is not a run directory"):
        html_report.write([tmp_path])


def test_the_command_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "prepare", lambda config=None: None)
    run = recorded(tmp_path / "run")
    for words, status, text in (
        ([str(run)], 0, f"{run}/report.html"),
        ([str(run), "--out", str(tmp_path / "a.png")], 2, "give the name of a file that ends in .html"),
        ([str(run), "--out", str(tmp_path / "no/a.html")], 2, "cannot write"),
        ([str(tmp_path)], 2, "is not a run directory"),
    ):
        with pytest.raises(SystemExit) as left:
            main.main(["report", *words])
        shown = capsys.readouterr()
        assert (left.value.code, text in shown.out + shown.err) == (status, True), shown


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", {"update": 0, "tokens": 0, "val_loss": 5.0}),
        ("config.json", {"objective": {"family": ["causal"]}, "model": {"family": "gpt", "context": 10**300}}),
        ("summary.json", {"seconds": 10**400, "parameters": -1, "val_loss": 10**400, "expect": [["val_loss", "x", 1]]}),
        ("summary.json", {"status": ["<b>"], "peak_memory_bytes": float("inf"), "baselines": {"x_loss": 10**400}}),
    ],
)
def test_forged_files_are_shown_or_left_out(tmp_path: Path, name: str, content: Any) -> None:
    run = recorded(tmp_path / "run")
    (run / name).write_text(json.dumps(content) + "\n")
    assert "<b>" not in html_report.write([run, run], tmp_path / "out.html").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_a_pipe_and_a_name_that_is_no_text_do_not_stop_a_report(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    (run / "sample.txt").unlink()
    os.mkfifo(run / "sample.txt")
    (run / os.fsdecode(b"spikes/\xff.md")).write_text("a spike")
    assert 'href="spikes/%FF.md"' in html_report.write([run]).read_text()


def test_baselines_ranges_and_reports_are_shown(tmp_path: Path) -> None:
    baselines = {"kneser_ney_5gram_bits_per_byte": 2.0, "other_accuracy": 0.5}
    run = recorded(tmp_path / "run", baselines=baselines, expect=[["val_loss", 4.0, 4.5]])
    (run / "rl_report.md").write_text("healthy")
    suspects = [json.dumps({"event": "suspect", "update": update}) + "\n" for update in (3, 3, 6)]
    (run / "journal.jsonl").write_text("".join(suspects))
    page = html_report.page(html_report.load([run], all_metrics=True), base=run)
    curves, health = (next(s.blocks for s in page.sections if s.title == title) for title in ("Curves", "Health"))
    assert curves[0].references == {"kneser ney 5gram": pytest.approx(2.0 * 4.75 / 2.5)}  # type: ignore[union-attr]
    (rejected,) = (chart for chart in health if getattr(chart, "title", "") == "batches that were rejected")
    assert rejected.series[0].y.tolist() == [0, 0, 2, 2, 2, 3, 3, 3]  # type: ignore[union-attr]
    written = html_report.write([run]).read_text()
    assert "4.250 (expected: 4.000 to 4.500)" in written
    assert 'href="rl_report.md"' in written
