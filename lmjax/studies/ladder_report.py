"""The table and the figure of the ladder."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from lmjax.display.console import Console
from lmjax.display.figures import REFERENCE, WIDTH, colour, log_ticks, moved_apart, own_style, panels
from lmjax.display.format import duration, quantity
from lmjax.models import registry
from lmjax.run import recorded
from lmjax.run.saved import saved_config
from lmjax.studies.outputs import write_study

COUNTS = (
    "Compute is that of the matrix products of model and gradient, by their closed form; what the optimizer and the "
    "evaluations do comes on top. Bits per byte are those of the validation split."
)
APART = (
    "BERT sees both sides of each token that it is asked for, and its tokenizer forgets case and spacing: this is no "
    "probability of the text, and does not compare with the others."
)


HEADER = ("rung", "parameters", "compute", "tokens", "bits per byte", "time")


@dataclass(frozen=True)
class Level:
    """The result of a rung."""

    #: Name of the rung.
    rung: str
    #: Number of values that the model stores.
    parameters: int
    #: Training FLOPs.
    compute: float
    #: Number of tokens read in training, including repetitions.
    tokens: int
    #: Bits per byte on the validation split.
    bits_per_byte: float
    #: Seconds of training and measuring.
    seconds: float


def write_ladder(out: Path, levels: Sequence[Level], apart: Sequence[Level], *, compute: float) -> None:
    """Print the table, and write ladder.md, ladder.json and ladder.png to `out`."""

    def show(console: Console) -> None:
        console.table("The ladder", [_cells(level) for level in levels], HEADER)
        if apart:
            console.table("Not comparable", [_cells(level) for level in apart], HEADER)
            console.event(APART)

    results = {"levels": [asdict(level) for level in levels], "not_comparable": [asdict(level) for level in apart]}
    text, draw = markdown(levels, apart), lambda: figure(levels, out)
    write_study(out, "ladder", text=text, results={"compute": compute} | results, draw=draw, show=show)


def _cells(level: Level) -> tuple[str, ...]:
    compute = f"{level.compute:.3g}" if level.compute else "counting"
    return (
        level.rung,
        f"{level.parameters:,}",
        compute,
        quantity(level.tokens),
        f"{level.bits_per_byte:.3f}",
        duration(level.seconds),
    )


def markdown(levels: Sequence[Level], apart: Sequence[Level] = ()) -> str:
    """Return Markdown tables of the levels, and of those that are not comparable."""

    def table(rows: Sequence[Level]) -> Iterator[str]:
        yield f"| {' | '.join(HEADER)} |"
        yield f"|---|{'---:|' * (len(HEADER) - 1)}"
        yield from (f"| {' | '.join(_cells(level))} |" for level in rows)

    lines = [*table(levels), "", COUNTS, *(["", APART, "", *table(apart)] if apart else [])]
    return "\n".join(lines) + "\n"


@own_style()
def figure(levels: Sequence[Level], out: Path) -> Figure:
    """Plot bits per byte against training compute and against parameters.

    Compute is that of the records in `out`.
    The n-gram levels, which take no training compute, are horizontal lines.
    """
    result, (left, right) = panels((10, 4.5), columns=2, share_y=True)
    for axes, label in ((left, "training compute (FLOPs)"), (right, "parameters")):
        axes.set_xlabel(label)
    levels = [level for level in levels if isfinite(level.bits_per_byte)]
    counted = sorted((level for level in levels if not level.compute), key=lambda level: level.bits_per_byte)
    trained = [level for level in levels if level.compute]
    lowest = [level.bits_per_byte for level in levels]
    for at, level in enumerate(trained):
        (run,) = recorded.load([out / level.rung])
        compute = run.validation["tokens"] * rung_flops_per_token(out / level.rung)
        bits = run.validation["val_bits_per_byte"]
        left.plot(compute, bits, color=colour(at), marker="o", markersize=4, linewidth=WIDTH, label=level.rung)
        right.plot([level.parameters], [level.bits_per_byte], color=colour(at), marker="o", markersize=8, linestyle="")
        _name(right, level.rung, level.parameters, level.bits_per_byte)
        lowest.extend(bits[np.isfinite(bits)])
    if not lowest:
        return result
    top = max((level.bits_per_byte for level in trained), default=max(lowest)) * 1.25
    margin = 0.05 * (top - min(lowest))
    left.set_ylim(min(lowest) - margin, top)
    if trained:
        left.legend(loc="upper right", fontsize="small", framealpha=0.9)
        right.margins(x=0.25)
        left.set_xscale("log")
        right.set_xscale("log")
        log_ticks(left.xaxis, FuncFormatter(lambda value, _: f"{value:.0e}".replace("+", "")))
        log_ticks(right.xaxis, EngFormatter(sep=""))
    _draw_counted(left, right, [level for level in counted if level.bits_per_byte < top])
    left.set_ylabel("validation bits per byte")
    return result


def _draw_counted(left: Axes, right: Axes, counted: Sequence[Level]) -> None:
    style: dict[str, Any] = REFERENCE | {"linestyle": (0, (6, 2)), "zorder": 1}
    for level in counted:
        for axes in (left, right):
            axes.axhline(level.bits_per_byte, **style)
    across = left.get_yaxis_transform()
    heights = moved_apart(left, [level.bits_per_byte for level in counted])
    for level, y in zip(counted, heights, strict=True):
        left.text(
            0.01,
            y,
            f"{level.rung}: {level.bits_per_byte:.2f}",
            transform=across,
            fontsize="small",
            va="bottom",
            color="0.3",
        )


def _name(axes: Axes, name: str, x: float, y: float) -> None:
    axes.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", fontsize="small")


def rung_flops_per_token(run_dir: Path) -> float:
    """Return the training FLOPs per token of a run."""
    return registry.flops_per_token(saved_config(run_dir).model)
