"""Curves of one or several runs, drawn from their run directories alone.

`loss_figure` and `health_figure` return matplotlib Figures; `draw` saves them. The module avoids pyplot and its global
state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter

from lmjax.config import UserError
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.display.figures import (
    COLOURS,
    FAINT,
    LINES,
    NOT_FINITE,
    REFERENCE,
    WIDTH,
    colour,
    literal,
    mark_not_finite,
    own_style,
    panels,
    save,
    smooth,
    thin,
)
from lmjax.evaluation.shot_curves import MEASURED, emergence
from lmjax.training.metrics import read

_LARGEST = 1e100  # of a value; the sums and products of a figure stay finite
_MOST_SKIPPED = 1000  # updates of a record
_MOST_COLUMNS = 500  # scores of tasks in a run
_DRAWN = {"update", "tokens", "loss", "val_loss", "val_bits_per_byte", "batch_size", "learning_rate", "skipped"}
_DRAWN |= {"grad_norm", "update_norm", "param_norm", "tokens_per_second", "mfu"}
BASELINES = (
    ("kneser_ney_5gram_bits_per_byte", "Kneser-Ney 5-gram", (0, (6, 2))),
    ("unigram_bits_per_byte", "byte unigram", (0, (1, 1.5))),
)


@dataclass(frozen=True)
class Run:
    """The contents of a run directory; missing values are NaN."""

    #: Name of the run.
    name: str
    #: Columns of the training records.
    train: dict[str, np.ndarray]
    #: Columns of the evaluation records.
    validation: dict[str, np.ndarray]
    #: Scores of the baselines.
    baselines: dict[str, float]
    #: Nats per token that equal one bit per byte with the run's tokenizer; None before any evaluation.
    nats: float | None
    #: Tokens per sequence; 0 if unknown.
    context: int
    #: Updates whose batch was not applied.
    rejected: np.ndarray
    #: Tokens at the records with a value that is not finite, by key.
    not_finite: dict[str, np.ndarray]
    #: The run's tokenizer.json; None if it is missing.
    tokenizer: bytes | None

    def column(self, key: str) -> np.ndarray:
        """Return a column of the training records; all NaN if there is no such column."""
        return self.train.get(key, np.full(len(self.train["tokens"]), np.nan))


def draw(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Draw `loss.png` and `health.png` of the runs, overlaid, into the folder `out`.

    A single run that was evaluated in context also gets `shots.png`.

    Args:
        run_dirs: The run directories.
        out: Default: `plots/` of the run; for several runs, `plots/overlaid/` of the first.

    Returns:
        The paths of the files.

    Raises:
        UserError: A directory is not a run or has no metrics yet, or the pictures cannot be written.
    """
    runs = load(run_dirs)
    folder = Path(out) if out else Path(run_dirs[0]) / "plots" / ("overlaid" if len(runs) > 1 else "")
    figures = {"loss.png": loss_figure(runs), "health.png": health_figure(runs)}
    shots = emergence(runs[0].validation) if len(runs) == 1 else None
    return [save(figure, folder / name) for name, figure in (figures | ({"shots.png": shots} if shots else {})).items()]


# ---- Reading ----------------------------------------------------------------------------------------------------


def load(run_dirs: Sequence[str | Path]) -> list[Run]:
    """Load the runs of these directories, named by directory.

    Raises:
        UserError: A directory is not a run, or has no metrics.
    """
    if not run_dirs:
        raise UserError("no run to plot: give one or more run directories")
    names = [Path(run_dir).resolve().name for run_dir in run_dirs]
    unique = len(set(names)) == len(names)
    return [_load(Path(d), name if unique else str(d)) for d, name in zip(run_dirs, names, strict=True)]


def _load(run_dir: Path, name: str) -> Run:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"'{run_dir}' is not a run directory: it has no metrics.jsonl")
    records = [record for record in read(path) if _finite(record.get("tokens"))]
    if not records:
        raise UserError(f"'{path}' has no records yet: nothing to plot")
    train = _columns([record for record in records if "val_loss" not in record])
    validation = _columns([record for record in records if "val_loss" in record])
    loss, bits = validation.get("val_loss"), validation.get("val_bits_per_byte")
    ratios = loss / bits if loss is not None and bits is not None else np.empty(0)
    ratios = ratios[np.isfinite(ratios)]
    baselines = _object(_json(run_dir / "summary.json").get("baselines"))
    context = _object(_json(run_dir / "config.json").get("model")).get("context", 0)
    return Run(
        name=name,
        train=train,
        validation=validation,
        baselines={k: v for k, v in baselines.items() if _finite(v)},
        nats=float(ratios[-1]) if len(ratios) else None,
        context=context if isinstance(context, int) and 0 <= context < 1 << 31 else 0,
        rejected=_rejected(run_dir / "journal.jsonl", train),
        not_finite={key: _broken(records, key) for key in ("loss", "val_loss", "grad_norm")},
        tokenizer=_bytes(tokenizer) if (tokenizer := run_dir / "tokenizer.json").is_file() else None,
    )


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    scores = {key for record in records for key in record.keys() - _DRAWN if MEASURED.fullmatch(key)}
    if len(scores) > _MOST_COLUMNS:
        raise UserError(f"metrics.jsonl has the scores of {len(scores):,} tasks; at most {_MOST_COLUMNS} can be drawn")
    keys = {key for record in records for key in record.keys() & _DRAWN} | scores | {"update", "tokens"}
    return {
        key: np.array([r[key] if _finite(r.get(key)) else np.nan for r in records], np.float64) for key in sorted(keys)
    }


def _broken(records: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Return the tokens at the records in which a value is there, but not finite."""
    return np.array([r["tokens"] for r in records if key in r and not _finite(r[key])], np.float64)


def _rejected(journal: Path, train: dict[str, np.ndarray]) -> np.ndarray:
    """Return the updates with a rejected batch, from the journal or else from `skipped`."""
    if journal.exists():
        lines = [_parse(line) for line in _bytes(journal).splitlines()]
        updates = [r["update"] for r in lines if r.get("event") == "suspect" and _finite(r.get("update"))]
        return np.array(updates, np.float64)
    skipped = np.nan_to_num(train.get("skipped", np.zeros(len(train["update"]))))
    most = min(_MOST_SKIPPED, 10_000_000 // max(len(skipped), 1))
    return np.repeat(train["update"], np.clip(skipped, 0, most).astype(int))


def _json(path: Path) -> dict[str, Any]:
    return _parse(_bytes(path)) if path.exists() else {}


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = parse_json(text, "it")
    except ValueError:
        return {}
    return _object(value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _LARGEST


# ---- Loss -------------------------------------------------------------------------------------------------------


@own_style()
def loss_figure(runs: Sequence[Run]) -> Figure:
    """Plot loss, batch size and learning rate against tokens.

    The loss axes show nats per token on the left and bits per byte on the right. If the runs' tokenizers differ, nats
    per token are not comparable, and the axis shows only bits per byte. If a tokenizer loses text, the run has no bits
    per byte, and the axis says that the runs do not compare.
    """
    figure, (loss, batch, rate) = _panels((4, 1, 1), runs)
    ratios = [run.nats for run in runs if run.nats]
    known = len(ratios) == len(runs)
    same = known and max(ratios) <= 1.001 * min(ratios)
    in_bits = known and not same
    for run, style in zip(runs, _styles(runs), strict=True):
        scale = 1 / run.nats if in_bits and run.nats else 1.0
        _draw_loss(loss, run, style, scale=scale, several=len(runs) > 1)
        tokens = run.train["tokens"]
        batch.step(tokens, run.column("batch_size") * (run.context or 1), where="pre", **style)
        rate.plot(tokens, run.column("learning_rate"), **style)
    _limit(loss)
    _loss_legend(loss, runs, _draw_baselines(loss, runs, ratios[0]) if same else [])
    differ = not known and len({run.tokenizer for run in runs}) > 1
    nats = "loss (nats per token;\ntokenizers differ: not comparable)" if differ else "loss (nats per token)"
    loss.set_ylabel("loss (bits per byte)" if in_bits else nats)
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
        _from_zero(axes)
    return figure


def _draw_loss(axes: Axes, run: Run, style: dict[str, Any], *, scale: float, several: bool) -> None:
    tokens, losses = run.train["tokens"], run.column("loss") * scale
    axes.plot(*thin(tokens, losses), **style | FAINT)
    axes.plot(tokens, smooth(losses), **style)
    if "val_loss" in run.validation:
        points: dict[str, Any] = {
            "color": style["color"] if several else COLOURS[1],
            "marker": "o",
            "markeredgecolor": "white",
            "zorder": 4,
        }
        thinner = style | {"linewidth": 0.8, "markersize": 5}
        axes.plot(run.validation["tokens"], run.validation["val_loss"] * scale, **thinner | points)
    for key in ("loss", "val_loss"):
        if len(run.not_finite[key]):
            mark_not_finite(axes, run.not_finite[key], **({"color": style["color"]} if several else {}))


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


def _draw_baselines(axes: Axes, runs: Sequence[Run], nats: float) -> list[Line2D]:
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


def _loss_legend(axes: Axes, runs: Sequence[Run], baselines: Sequence[Line2D]) -> None:
    several = len(runs) > 1
    colours = ("0.3", "0.3") if several else COLOURS[:2]
    kinds = [Line2D([], [], color=colours[0], linewidth=WIDTH, label="training, smoothed")]
    if any("val_loss" in run.validation for run in runs):
        last = "" if several else f", {runs[0].validation['val_loss'][-1]:.3f} at the end"
        style = {"color": colours[1], "linewidth": 0.8, "marker": "o", "markersize": 5}
        kinds.append(Line2D([], [], label=f"validation{last}", **style))
    if any(len(run.not_finite[key]) for run in runs for key in ("loss", "val_loss")):
        kinds.append(Line2D([], [], label="not finite", **NOT_FINITE))
    handles = [*(_run_handles(runs) if several else []), *kinds, *baselines]
    axes.legend(handles=handles, loc="upper right", fontsize="small", framealpha=0.9)


# ---- Health -----------------------------------------------------------------------------------------------------


@own_style()
def health_figure(runs: Sequence[Run]) -> Figure:
    """Plot gradient norm, update size, rejected batches, speed and utilisation against tokens."""
    quantities = [
        _Panel("gradient\nnorm", lambda run: run.column("grad_norm"), log=True, marked="grad_norm"),
        _Panel(
            "update norm /\nparameter norm",
            lambda run: run.column("update_norm") / run.column("param_norm"),
            log=True,
        ),
        _Panel("tokens per\nsecond", lambda run: run.column("tokens_per_second"), EngFormatter(sep="")),
        _Panel("share of\npeak speed", lambda run: run.column("mfu"), PercentFormatter(1.0, decimals=0)),
    ]
    known = [panel for panel in quantities if any(np.isfinite(panel.values(run)).any() for run in runs)]
    figure, (*axes, rejected) = _panels((1,) * (len(known) + 1), runs)
    for ax, panel in zip(axes, known, strict=True):
        for run, style in zip(runs, _styles(runs), strict=True):
            panel.draw(ax, run, style)
        ax.set_ylabel(panel.label)
    for run, style in zip(runs, _styles(runs), strict=True):
        so_far = np.searchsorted(np.sort(run.rejected), run.train["update"], side="right")
        rejected.step(run.train["tokens"], so_far, where="post", **style)
    rejected.set_ylabel("rejected\nbatches")
    rejected.yaxis.set_major_locator(MaxNLocator(integer=True))
    _from_zero(rejected)
    if len(runs) > 1:
        figure.axes[0].legend(handles=_run_handles(runs), loc="upper right", fontsize="small", framealpha=0.9)
    return figure


@dataclass(frozen=True)
class _Panel:
    #: Label of the axis.
    label: str
    #: Values of a run, one per record.
    values: Callable[[Run], np.ndarray]
    #: Formatter of the tick labels.
    formatter: Formatter | None = None
    #: Logarithmic axis.
    log: bool = False
    #: Key whose values that are not finite are marked; empty: none.
    marked: str = ""

    def draw(self, axes: Axes, run: Run, style: dict[str, Any]) -> None:
        tokens, values = run.train["tokens"], self.values(run)
        if self.log:
            values = np.where(values > 0, values, np.nan)
        axes.plot(*thin(tokens, values), **style | FAINT)
        axes.plot(tokens, np.exp(smooth(np.log(values))) if self.log else smooth(values), **style)
        if len(places := run.not_finite.get(self.marked, ())):
            mark_not_finite(axes, np.asarray(places), color=style["color"])
        if self.log:
            axes.set_yscale("log")
        else:
            _from_zero(axes)
        if self.formatter:
            axes.yaxis.set_major_formatter(self.formatter)


# ---- Helpers ------------------------------------------------------------------------------------------------------


def _panels(heights: Sequence[float], runs: Sequence[Run]) -> tuple[Figure, list[Axes]]:
    """Return a column of panels that share the token axis."""
    figure, axes = panels((8, 1 + 1.1 * sum(heights)), len(heights), heights=heights, share_x=True)
    axes[-1].set_xlabel("tokens")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    ends = [columns["tokens"][-1] for run in runs for columns in (run.train, run.validation) if len(columns["tokens"])]
    axes[-1].set_xlim(0, 1.02 * max(ends) or 1)
    if len(runs) == 1:
        axes[0].set_title(literal(runs[0].name), loc="left", fontsize="medium")
    figure.align_ylabels(axes)
    return figure, axes


def _styles(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {"color": colour(i), "linestyle": LINES[i // len(COLOURS) % len(LINES)], "linewidth": WIDTH}
        for i in range(len(runs))
    ]


def _run_handles(runs: Sequence[Run]) -> list[Line2D]:
    return [Line2D([], [], label=literal(run.name), **style) for run, style in zip(runs, _styles(runs), strict=True)]


def _from_zero(axes: Axes) -> None:
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.08 * top if np.isfinite(top) and top > 0 else 1)
