"""Curves of one or several runs, drawn from their run directories alone.

`loss_figure` returns a matplotlib Figure; `draw` saves all figures. The module avoids pyplot and its global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter

from lmjax.display.figures import COLOURS, NOT_FINITE, REFERENCE, WIDTH, mark_not_finite, own_style, save
from lmjax.display.thinning import smooth
from lmjax.evaluation.shot_curves import emergence
from lmjax.run.curve_panels import draw_smoothed, from_zero, label_ends, place, run_handles, run_panels, styles
from lmjax.run.health_curves import health_figure
from lmjax.run.recorded import RecordedRun, load, unit_of_loss

BASELINES = (
    ("kneser_ney_5gram_bits_per_byte", "Kneser-Ney 5-gram", (0, (6, 2))),
    ("unigram_bits_per_byte", "byte unigram", (0, (1, 1.5))),
)


def draw(run_dirs: Sequence[str | Path], out: str | Path | None = None, *, x: str = "tokens") -> list[Path]:
    """Draw `loss.png` and `health.png` of the runs, overlaid, into the folder `out`.

    A single run that was evaluated in context also gets `shots.png`. A run that has nothing to show of its health gets
    no `health.png`.

    Args:
        run_dirs: The run directories.
        out: Default: `plots/` of the run; for several runs, `plots/overlaid/` of the first.
        x: The horizontal axis, one of `recorded.AXES`.

    Returns:
        The paths of the files.

    Raises:
        UserError: A directory is not a run or has no metrics yet, or does not know the axis, or the pictures cannot be
            written.
    """
    runs = load(run_dirs)
    folder = Path(out) if out else Path(run_dirs[0]) / "plots" / ("overlaid" if len(runs) > 1 else "")
    figures = {"loss.png": loss_figure(runs, x=x), "health.png": health_figure(runs, x=x)}
    figures["shots.png"] = emergence(runs[0].validation) if len(runs) == 1 else None
    return [save(figure, folder / name) for name, figure in figures.items() if figure]


@own_style()
def loss_figure(runs: Sequence[RecordedRun], *, x: str = "tokens") -> Figure:
    """Plot loss, batch size and learning rate, and the difference of two runs.

    The loss axes show nats per token on the left and bits per byte on the right. If the runs' tokenizers differ, nats
    per token are not comparable, and the axis shows only bits per byte. If a tokenizer loses text, the run has no bits
    per byte, and the axis says that the runs do not compare.
    """
    ratios = [run.nats for run in runs if run.nats]
    known = len(ratios) == len(runs)
    same = known and max(ratios) <= 1.001 * min(ratios)
    scales = [1 / run.nats if known and not same and run.nats else 1.0 for run in runs]
    differ = not known and len({run.tokenizer for run in runs}) > 1
    compared = len(runs) == 2 and not differ
    figure, (loss, *middle, batch, rate) = run_panels((4, 1.2, 1, 1) if compared else (4, 1, 1), runs, x=x)
    for run, style, scale in zip(runs, styles(runs), scales, strict=True):
        _draw_loss(loss, run, style, x=x, scale=scale, several=len(runs) > 1)
        places = place(run, x, run.train)
        batch.step(places, run.column("batch_size") * (run.context or 1), where="pre", **style)
        rate.plot(places, run.column("learning_rate"), **style)
    for axes in middle:
        _draw_difference(axes, runs, scales, x=x)
    _limit(loss)
    _loss_legend(loss, runs, _draw_baselines(loss, runs, ratios[0]) if same else [])
    label_ends(loss, _ends(runs, scales, x=x))
    nats = f"loss{unit_of_loss(runs)}"
    if differ:
        nats = "loss (nats per token;\ntokenizers differ: not comparable)"
    loss.set_ylabel("loss (bits per byte)" if known and not same else nats)
    if same:
        ratio = ratios[0]
        there_and_back = (lambda nats: np.divide(nats, ratio), lambda bits: np.multiply(bits, ratio))
        right = loss.secondary_yaxis("right", functions=there_and_back)
        right.set_ylabel("bits per byte")
    batch.set_ylabel("batch\n(tokens)" if all(run.context for run in runs) else "batch\n(sequences)")
    batch.yaxis.set_major_formatter(EngFormatter(sep=""))
    rate.set_ylabel("learning\nrate")
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))
    for axes in (batch, rate):
        from_zero(axes)
    return figure


def _draw_loss(axes: Axes, run: RecordedRun, style: dict[str, Any], *, x: str, scale: float, several: bool) -> None:
    draw_smoothed(axes, place(run, x, run.train), run.column("loss") * scale, style)
    if "val_loss" in run.validation:
        points: dict[str, Any] = {
            "color": style["color"] if several else COLOURS[1],
            "marker": "o",
            "markeredgecolor": "white",
            "zorder": 4,
        }
        thinner = style | {"linewidth": 0.8, "markersize": 2.5 + 1.5 * style["linewidth"]}
        axes.plot(place(run, x, run.validation), run.validation["val_loss"] * scale, **thinner | points)
    for key in ("loss", "val_loss"):
        if len(run.not_finite[key]["update"]):
            places = place(run, x, run.not_finite[key])
            mark_not_finite(axes, places, **({"color": style["color"]} if several else {}))


def _draw_difference(axes: Axes, runs: Sequence[RecordedRun], scales: Sequence[float], *, x: str) -> None:
    """Draw the losses of the second run minus those of the first, where both have them."""
    for columns, key, style in (
        ("train", "loss", {"color": "0.3", "linewidth": WIDTH}),
        ("validation", "val_loss", {"color": COLOURS[1], "linewidth": 0.8, "marker": "o", "markersize": 4}),
    ):
        sides = []
        for run, scale in zip(runs, scales, strict=True):
            records = getattr(run, columns)
            values = records.get(key, np.full(len(records["tokens"]), np.nan)) * scale
            sides.append((place(run, x, records), smooth(values) if key == "loss" else values))
        (x_first, y_first), (x_second, y_second) = ((p[np.isfinite(v)], v[np.isfinite(v)]) for p, v in sides)
        if len(x_first) and len(x_second):
            both = (x_second >= x_first[0]) & (x_second <= x_first[-1])
            axes.plot(x_second[both], y_second[both] - np.interp(x_second[both], x_first, y_first), **style)
    axes.axhline(0, zorder=1, **REFERENCE)
    axes.set_ylabel("loss: second\nminus first")


def _ends(runs: Sequence[RecordedRun], scales: Sequence[float], *, x: str) -> list[tuple[float, float, str]]:
    """Return place, value and colour at the ends of the curves of losses."""
    ends = []
    for run, scale, style in zip(runs, scales, styles(runs), strict=True):
        sides = [(run.validation, run.validation.get("val_loss", np.empty(0)), COLOURS[1])]
        if len(runs) == 1 or not len(sides[0][1]):
            sides.append((run.train, smooth(run.column("loss")), COLOURS[0]))
        for columns, values, own in sides:
            if len(values) and np.isfinite(values[-1]):
                end_colour = style["color"] if len(runs) > 1 else own
                ends.append((float(place(run, x, columns)[-1]), float(values[-1] * scale), end_colour))
    return ends


def _limit(axes: Axes) -> None:
    """Limit the axis to the range from the lowest point to the first point.

    A spike thus does not flatten the curves.
    """
    lines = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    lines = [line[np.isfinite(line)] for line in lines]
    lines = [line for line in lines if len(line)]
    if lines:
        low, high = min(line.min() for line in lines), max(line[0] for line in lines)
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def _draw_baselines(axes: Axes, runs: Sequence[RecordedRun], nats: float) -> list[Line2D]:
    """Draw the baselines of the first run that has them, and return their legend.

    A baseline above the scale appears only in the legend.
    """
    baselines = next((run.baselines for run in runs if run.baselines), {})
    handles = []
    for key, name, dashes in BASELINES:
        if key not in baselines:
            continue
        value, (low, high) = baselines[key] * nats, axes.get_ylim()
        if value < low:
            axes.set_ylim(bottom=value - 0.05 * (high - value))
        style: dict[str, Any] = REFERENCE | {"linestyle": dashes}
        if value <= high:
            axes.axhline(value, zorder=1, **style)
        where = " (above the scale)" if value > high else ""
        handles.append(Line2D([], [], label=f"{name}, {baselines[key]:.2f} bits per byte{where}", **style))
    return handles


def _loss_legend(axes: Axes, runs: Sequence[RecordedRun], baselines: Sequence[Line2D]) -> None:
    several = len(runs) > 1
    colours = ("0.3", "0.3") if several else COLOURS[:2]
    kinds = [Line2D([], [], color=colours[0], linewidth=WIDTH, label="training, smoothed")]
    if any("val_loss" in run.validation for run in runs):
        last = "" if several else f", {runs[0].validation['val_loss'][-1]:.3f} at the end"
        style = {"color": colours[1], "linewidth": 0.8, "marker": "o", "markersize": 5}
        kinds.append(Line2D([], [], label=f"validation{last}", **style))
    if any(len(run.not_finite[key]["update"]) for run in runs for key in ("loss", "val_loss")):
        kinds.append(Line2D([], [], label="not finite", **NOT_FINITE))
    handles = [*(run_handles(runs) if several else []), *kinds, *baselines]
    axes.legend(handles=handles, loc="upper right", fontsize="small", framealpha=0.9)
