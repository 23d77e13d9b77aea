"""The figure of a run's health: gradient, updates, throughput, rejected batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter

from lmjax.display.figures import log_ticks, mark_not_finite, own_style
from lmjax.run.curve_panels import draw_smoothed, from_zero, place, run_handles, run_panels, styles
from lmjax.run.recorded import RecordedRun

_SAME_RATIO = 1.01  # largest relative difference of the ratio of speed and share of the peak


@own_style()
def health_figure(runs: Sequence[RecordedRun], *, x: str = "tokens") -> Figure | None:
    """Plot gradients, updates, throughput and rejected batches; None if nothing is known.

    A quantity that no run knows has no panel; neither have rejected batches if there is none.
    """
    quantities = [
        _Panel("gradient\nnorm", lambda run: run.column("grad_norm"), log=True, marked="grad_norm"),
        _Panel(
            "update norm /\nparameter norm",
            lambda run: run.column("update_norm") / run.column("param_norm"),
            log=True,
        ),
        _Panel("tokens per\nsecond", lambda run: run.column("tokens_per_second"), EngFormatter(sep="")),
    ]
    known = [panel for panel in quantities if any(np.isfinite(panel.values(run)).any() for run in runs)]
    with_rejected = any(len(run.rejected) for run in runs)
    if not known and not with_rejected:
        return None
    figure, axes = run_panels((1,) * (len(known) + with_rejected), runs, x=x)
    for ax, panel in zip(axes, known, strict=False):
        for run, style in zip(runs, styles(runs), strict=True):
            panel.draw(ax, run, style, x=x)
        ax.set_ylabel(panel.label)
        if panel is quantities[2]:
            _share_of_peak(ax, runs)
    if with_rejected:
        _draw_rejected(axes[-1], runs, x=x)
    if len(runs) > 1:
        axes[0].legend(handles=run_handles(runs), loc="upper right", fontsize="small", framealpha=0.9)
    return figure


def _share_of_peak(axes: Axes, runs: Sequence[RecordedRun]) -> None:
    """Add a right axis with the share of the peak speed, if all runs have the same."""
    ratios = np.concatenate([run.column("mfu") / run.column("tokens_per_second") for run in runs])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(ratios) or ratios.max() > _SAME_RATIO * ratios.min():
        return
    ratio = float(np.median(ratios))
    functions = (lambda speed: np.multiply(speed, ratio), lambda share: np.divide(share, ratio))
    right = axes.secondary_yaxis("right", functions=functions)
    right.set_ylabel("share of\npeak speed")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_rejected(axes: Axes, runs: Sequence[RecordedRun], *, x: str) -> None:
    for run, style in zip(runs, styles(runs), strict=True):
        so_far = np.searchsorted(np.sort(run.rejected), run.train["update"], side="right")
        axes.step(place(run, x, run.train), so_far, where="post", **style)
    axes.set_ylabel("rejected\nbatches")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    from_zero(axes)


@dataclass(frozen=True)
class _Panel:
    #: Label of the axis.
    label: str
    #: Values of a run, one per record.
    values: Callable[[RecordedRun], np.ndarray]
    #: Formatter of the tick labels.
    formatter: Formatter | None = None
    #: Logarithmic axis.
    log: bool = False
    #: Key whose values that are not finite are marked; empty: none.
    marked: str = ""

    def draw(self, axes: Axes, run: RecordedRun, style: dict, *, x: str) -> None:
        values = self.values(run)
        if self.log:
            values = np.where(values > 0, values, np.nan)
        draw_smoothed(axes, place(run, x, run.train), values, style, log=self.log)
        broken = run.not_finite.get(self.marked)
        if broken is not None and len(broken["update"]):
            mark_not_finite(axes, place(run, x, broken), color=style["color"])
        if self.log:
            axes.set_yscale("log")
            log_ticks(axes.yaxis, FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            from_zero(axes)
        if self.formatter:
            axes.yaxis.set_major_formatter(self.formatter)
