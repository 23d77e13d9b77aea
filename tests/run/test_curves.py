"""The plots, by the data in their axes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lmjax.config import UserError
from lmjax.run.curves import draw, loss_figure
from lmjax.run.health_curves import health_figure
from lmjax.run.recorded import load
from tests import ROOT

LAST = 40


def write_run(folder: Path, *, nats: float = 2.0, baselines: dict[str, float] | None = None, **changes: Any) -> Path:
    """A run of `LAST` updates whose loss falls from 8 to 3, evaluated twice."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for update in range(1, LAST + 1):
        loss = 3 + 5 * 0.8 ** (update - 1)
        record = {
            "update": update,
            "loss": loss,
            "learning_rate": 1e-3 * update / LAST,
            "grad_norm": 2.0,
            "batch_size": 4 if update <= 20 else 8,
            "tokens": 40 * update,
            "tokens_per_second": 1000.0,
            "mfu": 0.4,
            "skipped": 0,
            "update_norm": 0.1,
            "param_norm": 10.0,
        }
        records.append(record | changes)
        if update % 20 == 0:
            val = {"val_loss": loss + 0.1, "val_bits_per_byte": (loss + 0.1) / nats}
            records.append({"update": update, "tokens": 40 * update, **val})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"torn')
    (folder / "config.json").write_text(json.dumps({"model": {"context": 10}}))
    if baselines:
        (folder / "summary.json").write_text(json.dumps({"baselines": baselines}))
    return folder


def line(figure: Figure, panel: int, number: int) -> np.ndarray:
    """The (points, 2) data of one line of a panel."""
    return np.asarray(figure.axes[panel].get_lines()[number].get_xydata())


def legend(figure: Figure) -> list[str]:
    found = figure.axes[0].get_legend()
    assert found
    return [text.get_text() for text in found.get_texts()]


# ---- Loss -------------------------------------------------------------------------------------------------------


def test_the_loss_plot_shows_losses_batch_and_learning_rate_against_tokens(tmp_path: Path) -> None:
    figure = loss_figure(load([write_run(tmp_path / "quick")]))
    curve, validation = (line(figure, 0, i) for i in range(2))  # without noise, the average is the curve
    tokens = 40.0 * np.arange(1, LAST + 1)
    assert np.allclose(curve, np.stack([tokens, 3 + 5 * 0.8 ** np.arange(LAST)], 1), rtol=1e-12)
    assert np.allclose(validation, [[800, 3.1 + 5 * 0.8**19], [1600, 3.1 + 5 * 0.8**39]], rtol=1e-12)
    batch = line(figure, 1, 0)
    assert set(batch[:20, 1]) == {40.0}  # sequences of 10 tokens
    assert set(batch[20:, 1]) == {80.0}
    assert np.allclose(line(figure, 2, 0)[:, 1], 1e-3 * np.arange(1, LAST + 1) / LAST)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss (nats per token)", "batch\n(tokens)", "learning\nrate"]
    assert figure.axes[2].get_xlabel() == "tokens"
    assert figure.axes[0].get_shared_x_axes().joined(figure.axes[0], figure.axes[2])
    assert figure.axes[0].get_title(loc="left") == "quick"
    assert legend(figure) == ["training, smoothed", f"validation, {3.1 + 5 * 0.8**39:.3f} at the end"]


def test_baselines_are_lines_in_nats_and_the_right_axis_is_in_bits(tmp_path: Path) -> None:
    baselines = {"kneser_ney_5gram_bits_per_byte": 2.2, "unigram_bits_per_byte": 4.5}
    figure = loss_figure(load([write_run(tmp_path / "run", baselines=baselines)]))
    heights = [np.unique(artist.get_ydata()) for artist in figure.axes[0].get_lines()]
    flat = [height for height in heights if len(height) == 1]
    assert np.allclose(flat, [[4.4]])  # 2.2 bits per byte at 2 nats a bit; 9.0 lies above the first loss
    assert legend(figure)[-2:] == [
        "Kneser-Ney 5-gram, 2.20 bits per byte",
        "byte unigram, 4.50 bits per byte (above the scale)",
    ]
    figure.draw_without_rendering()
    right = figure.axes[0].child_axes[0]
    assert np.allclose(np.array(right.get_ylim()) * 2.0, figure.axes[0].get_ylim())


def test_a_baseline_below_the_curve_is_on_the_plot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", baselines={"kneser_ney_5gram_bits_per_byte": 0.5})
    assert loss_figure(load([run])).axes[0].get_ylim()[0] < 1.0


def test_a_spike_does_not_flatten_the_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[30] = json.dumps(json.loads(lines[30]) | {"loss": 1000.0})
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]))
    figure = loss_figure(load([run]))
    assert line(figure, 0, 0)[:, 1].max() == 1000.0  # drawn, and cut by the frame
    assert 8 < figure.axes[0].get_ylim()[1] < 9


def test_runs_are_overlaid_and_named_by_directory(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "_$two")]
    figure = loss_figure(load(runs))
    colours = [artist.get_color() for artist in figure.axes[0].get_lines()]
    assert len(set(colours[:2])) == len(set(colours[2:4])) == 1  # curve and validation
    assert colours[0] != colours[2]
    widths = [artist.get_linewidth() for artist in figure.axes[0].get_lines()]
    assert widths[0] > widths[2]  # equal curves are both visible
    assert figure.axes[1].get_ylabel() == "loss: second\nminus first"
    assert np.allclose(line(figure, 1, 0)[:, 1], 0)
    assert legend(figure) == ["one", r" _\$two", "training, smoothed", "validation"]
    assert draw(runs, tmp_path / "out")[0].stat().st_size > 0


def test_runs_with_other_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", nats=2.0), write_run(tmp_path / "b", nats=4.0)]
    figure = loss_figure(load(runs))
    assert figure.axes[0].get_ylabel() == "loss (bits per byte)"
    assert np.allclose(line(figure, 0, 0)[:, 1] * 2, line(figure, 0, 2)[:, 1] * 4)
    assert line(figure, 0, 0)[0, 1] == 4.0
    assert not figure.axes[0].child_axes


# ---- Health -----------------------------------------------------------------------------------------------------


def test_the_health_plot_shows_norms_speed_and_rejected_batches(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    events = [("suspect", 10), ("checkpoint", 10), ("suspect", 10), ("suspect", 30)]
    (run / "journal.jsonl").write_text("".join(json.dumps({"event": e, "update": u}) + "\n" for e, u in events) + "{")
    figure = health_figure(load([run]))
    assert figure is not None
    values = {axes.get_ylabel().replace("\n", " "): np.asarray(axes.get_lines()[0].get_ydata()) for axes in figure.axes}
    assert np.allclose(values["gradient norm"], 2.0)
    assert np.allclose(values["update norm / parameter norm"], 0.01)
    assert np.allclose(values["tokens per second"], 1000)
    figure.draw_without_rendering()
    (right,) = figure.axes[2].child_axes
    assert right.get_ylabel() == "share of\npeak speed"
    assert np.allclose(np.array(right.get_ylim()) / 0.4 * 1000, figure.axes[2].get_ylim())
    assert values["rejected batches"].tolist() == [0] * 9 + [2] * 20 + [3] * 11
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear", "linear"]


def test_without_a_journal_the_records_say_what_was_skipped(tmp_path: Path) -> None:
    figure = health_figure(load([write_run(tmp_path / "run", skipped=1)]))
    assert figure is not None
    assert np.asarray(figure.axes[-1].get_lines()[0].get_ydata()).tolist() == list(range(1, LAST + 1))


def test_what_a_run_does_not_know_has_no_panel(tmp_path: Path) -> None:
    figure = health_figure(load([write_run(tmp_path / "run", mfu=None, param_norm=None)]))
    assert figure is not None
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == ["gradient", "tokens per"]
    assert not figure.axes[1].child_axes
    nothing = write_run(tmp_path / "none", grad_norm=None, update_norm=None, tokens_per_second=None)
    assert health_figure(load([nothing])) is None


def test_a_curve_with_noise_is_drawn_with_its_average(tmp_path: Path) -> None:
    records = [{"update": n, "tokens": n, "loss": 3 + 0.5 * (-1) ** n} for n in range(1, 501)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    figure = loss_figure(load([tmp_path]))
    raw, average = line(figure, 0, 0)[:, 1], line(figure, 0, 1)[:, 1]
    assert raw.tolist() == [record["loss"] for record in records]
    assert np.abs(average[100:] - 3).max() < 0.1  # over 10 records


@pytest.mark.parametrize(("x", "last"), [("updates", 40), ("tokens", 1600), ("time", 40 * 0.5), ("flops", 1600 * 7e6)])
def test_the_horizontal_axis_is_a_choice(tmp_path: Path, x: str, last: float) -> None:
    run = write_run(tmp_path / "run", seconds=0.5)
    (run / "summary.json").write_text(json.dumps({"flops_per_token": 7e6}))
    assert line(loss_figure(load([run]), x=x), 0, 0)[-1, 0] == pytest.approx(last)
    unknown = write_run(tmp_path / "unknown", seconds=None)
    if x in ("time", "flops"):
        with pytest.raises(UserError, match="choose another --x"):
            loss_figure(load([unknown]), x=x)


# ---- Files ------------------------------------------------------------------------------------------------------


def test_draw_writes_pictures_into_the_run_or_where_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    paths = draw([run])
    assert paths == [run / "plots" / "loss.png", run / "plots" / "health.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(path.name for path in (run / "plots").iterdir()) == ["health.png", "loss.png"]
    assert draw([str(run)], str(tmp_path / "other"))[0] == tmp_path / "other" / "loss.png"


@pytest.mark.slow
def test_several_runs_leave_the_pictures_of_the_first_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in draw([run])}
    assert draw([run, write_run(tmp_path / "other")])[0] == run / "plots" / "overlaid" / "loss.png"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 1e308, "grad_norm": 1e-320},
        {"skipped": 10**15, "batch_size": 10**300, "learning_rate": True},
        {"skipped": -3, "loss": 10**400, "param_norm": 0, "update_norm": 1e308, "mfu": "x"},
    ],
)
def test_forged_values_are_drawn_or_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", **changes)
    (run / "config.json").write_text(json.dumps({"model": {"context": 10**400}}))
    loss_figure(load([run])).draw_without_rendering()
    if figure := health_figure(load([run])):  # none of nothing that can be drawn
        figure.draw_without_rendering()


def test_forged_numbers_of_a_journal_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    events = [{"event": "suspect", "update": update} for update in (7, 10**400, 2**64, "x", None, True)]
    (run / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert load([run])[0].rejected.dtype == np.float64
    figure = health_figure(load([run]))
    assert figure is not None
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("records", "count"),
    [
        ([{"update": 0, "tokens": 0, "val_loss": 5.0, "val_bits_per_byte": 2.5}], 1),
        pytest.param([{"update": 1, "tokens": 10, "loss": None, "grad_norm": 0.0}], 2, marks=pytest.mark.slow),
        ([{"update": 1, "tokens": 10, "loss": 5.0}, {"update": 1, "tokens": 10, "val_loss": None}], 1),
    ],
)
def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path: Path, records: list[dict[str, Any]], count: int) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert len(draw([tmp_path])) == count


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to plot"):
        draw([])
    with pytest.raises(UserError, match=r"is not a run directory: it has no metrics\.jsonl"):
        draw([tmp_path / "none"])
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "tok')
    with pytest.raises(UserError, match="no records yet"):
        draw([tmp_path])
    run = write_run(tmp_path / "run")
    (run / "plots").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the picture to"):
        draw([run])


def test_two_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / side / "run") for side in "ab"]
    assert [run.name for run in load(runs)] == [str(run) for run in runs]


def test_drawing_leaves_pyplot_and_its_settings_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib as m; before = m.rcParams.copy();"
        "from lmjax.run.curves import draw; draw(sys.argv[1:]);"
        "sys.exit('matplotlib.pyplot' in sys.modules or before != m.rcParams)"
    )
    run = write_run(tmp_path / "run")
    assert subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT).returncode == 0


def test_losses_that_are_not_finite_are_gaps_and_marks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for number in (10, 11):
        lines[number] = json.dumps(json.loads(lines[number]) | {"loss": None, "grad_norm": None})
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]))
    runs = load([run])
    figure = loss_figure(runs)
    assert np.isnan(line(figure, 0, 0)[10:12, 1]).all()
    marks = [artist for artist in figure.axes[0].get_lines() if artist.get_marker() == "^"]
    assert [np.asarray(artist.get_xdata()).tolist() for artist in marks] == [[440, 480]]
    assert "not finite" in legend(figure)
    [gradient, *_] = health_figure(runs).axes
    assert [np.asarray(a.get_xdata()).tolist() for a in gradient.get_lines() if a.get_marker() == "^"] == [[440, 480]]


@pytest.mark.parametrize(("same", "label"), [(True, "loss (nats per token)"), (False, "not comparable")])
def test_a_tokenizer_that_loses_text_gives_no_axis_in_bits(tmp_path: Path, same: bool, label: str) -> None:
    runs = [write_run(tmp_path / "exact"), write_run(tmp_path / "lossy")]
    text = (runs[1] / "metrics.jsonl").read_text()
    (runs[1] / "metrics.jsonl").write_text(text.replace("val_bits_per_byte", "other"))
    for number, run in enumerate(runs):
        (run / "tokenizer.json").write_text("{}" if same else f"{number}")
    figure = loss_figure(load(runs))
    assert label in figure.axes[0].get_ylabel()
    assert not figure.axes[0].child_axes


def test_only_columns_that_are_drawn_are_read(tmp_path: Path) -> None:
    """A file with other names in every record takes no more memory than one without."""
    lines = [{"update": n, "tokens": n, "loss": 1.0, f"name {n}": 1.0} for n in range(2000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = load([tmp_path])
    assert sorted(run.train) == ["loss", "tokens", "update"]
    lines = [{"update": n, "tokens": n, "val_loss": 1.0, f"val_{n}_1_shot": 1.0} for n in range(600)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="the scores of 600 tasks; at most 500"):
        load([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:60]))
    with pytest.raises(UserError, match="evaluated on 60 tasks in context; at most 50"):
        draw([tmp_path], tmp_path / "out")
