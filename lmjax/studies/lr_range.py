"""A range test of the learning rate: a run with a rising rate, and its losses.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. The rate rises by the same factor in
each update. The loss falls, is flat, and rises where the rate is too high.
"""

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lmjax.config import Config, UserError
from lmjax.config.checks import check
from lmjax.display.console import Console
from lmjax.display.figures import WIDTH, colour, own_style, panels
from lmjax.run import identity, transfer
from lmjax.run.result import TrainingResult
from lmjax.run.saved import read_summary
from lmjax.studies import ladder
from lmjax.studies.outputs import write_study

SPAN = 1e-5  # the lowest rate, as a share of the largest
_SMOOTHING = 0.9  # decay of the average of the loss
_DIVERGED = 1.5  # times the lowest loss
_SAFE = 0.1  # of the rate of the lowest loss


@dataclass(frozen=True)
class Range:
    """The loss at each learning rate."""

    rates: np.ndarray
    losses: np.ndarray
    #: Average of the losses before and at each update, with weights that decay.
    smooth: np.ndarray

    @property
    def lowest(self) -> float:
        """The rate at the lowest smooth loss."""
        return float(self.rates[np.argmin(self.smooth)])

    @property
    def steepest(self) -> float:
        """The rate at which the smooth loss falls fastest, before its lowest value."""
        until = max(2, int(np.argmin(self.smooth)) + 1)
        slopes = np.gradient(self.smooth[:until], np.log(self.rates[:until]))
        return float(self.rates[np.argmin(slopes)])

    @property
    def diverged(self) -> float | None:
        """The rate from which the smooth loss stays above 1.5 times its lowest value, or None."""
        above = self.smooth > _DIVERGED * self.smooth.min()
        after = np.flatnonzero(~above)[-1] + 1
        return float(self.rates[after]) if after < len(self.rates) else None

    @property
    def suggestion(self) -> float:
        """The rate of the steepest fall, at most a tenth of the rate of the lowest loss."""
        return min(self.steepest, _SAFE * self.lowest)


def run_range(config: Config, out: Path, *, largest: float) -> Range:
    """Train a run whose learning rate rises to `largest`, and write the result to `out`.

    Args:
        config: The configuration; its schedule, evaluations and guard are replaced.
        out: The folder; the run is in `run` below it.
        largest: The rate of the last update.

    Raises:
        UserError: The configuration is invalid, or the run ended before three updates.
    """
    changed = transfer.adopt(identity.absolute(_rising(config, largest)))
    check(changed)
    ladder.check_same(changed, out / "run")
    ladder.train_rung(changed, out / "run")
    run = TrainingResult(out / "run", "", read_summary(out / "run"))
    found = range_of(run.metrics["learning_rate"], run.metrics["loss"])
    write(out, found)
    return found


def _rising(config: Config, largest: float) -> Config:
    """Return the configuration of the run: no evaluations, no guard, a record of each update."""
    if not 0 < largest < float("inf"):
        raise UserError(f"--lr-range {largest}: give the largest learning rate, a number above 0, such as 1")
    schedule = replace(config.schedule, peak=largest, warmup=0.0, shape="range", final=SPAN, unit="updates", cuts=())
    train = replace(config.train, evaluate_every=0, log_every=1, sample_tokens=0, baselines=False, expect=())
    return replace(
        config,
        schedule=schedule,
        train=train,
        guard=replace(config.guard, policy="off"),
        checkpoint=replace(config.checkpoint, every=0),
        evaluate=replace(config.evaluate, tasks=()),
    )


def range_of(rates: np.ndarray, losses: np.ndarray) -> Range:
    """Return the range test of a run, up to its first loss that is not finite.

    Raises:
        UserError: It has fewer than three finite losses.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    count = int(bad[0]) if len(bad) else len(losses)
    if count < 3:
        raise UserError(f"the range test has {count} finite losses; give a lower --lr-range, or more train.updates")
    average, smooth = 0.0, []
    for number, loss in enumerate(losses[:count].tolist(), 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth.append(average / (1 - _SMOOTHING**number))
    return Range(rates[:count], losses[:count], np.asarray(smooth))


def write(out: Path, found: Range) -> None:
    """Print what the test found, and write lr_range.md, .json and .png to `out`."""
    rows = [
        ("steepest fall", f"{found.steepest:.2g}"),
        ("lowest loss", f"{found.lowest:.2g}"),
        ("divergence", "none" if found.diverged is None else f"{found.diverged:.2g}"),
        ("schedule.peak to try", f"{found.suggestion:.2g}"),
    ]
    note = "The loss falls with time, too: compare this peak, half of it and twice of it with lmjax sweep."
    text = "\n".join(["| | learning rate |", "|---|---:|", *(f"| {a} | {b} |" for a, b in rows), "", note]) + "\n"

    def show(console: Console) -> None:
        console.table("Range test of the learning rate", rows, ("", "learning rate"))
        console.event(note)

    results = {name: getattr(found, name) for name in ("steepest", "lowest", "diverged", "suggestion")}
    results |= {"rates": found.rates.tolist(), "losses": found.losses.tolist()}
    write_study(out, "lr_range", text=text, results=results, draw=lambda: figure(found), show=show)


@own_style()
def figure(found: Range) -> Figure:
    """Plot the loss against the learning rate."""
    picture, (axes,) = panels((6.5, 4.5))
    axes.plot(found.rates, found.losses, color=colour(0), alpha=0.3, linewidth=0.8)
    axes.plot(found.rates, found.smooth, color=colour(0), linewidth=WIDTH, label="training loss")
    marks = {"steepest fall": found.steepest, "lowest loss": found.lowest, "to try": found.suggestion}
    for number, (name, rate) in enumerate(marks.items(), 1):
        axes.axvline(rate, color=colour(number), linestyle="--", linewidth=WIDTH, label=f"{name}: {rate:.2g}")
    top = found.smooth[0] + 0.5 * (found.smooth[0] - found.smooth.min())
    if isfinite(top) and top > found.smooth.min():
        axes.set_ylim(top=top)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats)")
    axes.legend(fontsize="small")
    return picture
