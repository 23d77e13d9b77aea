"""The picture of a spike: the updates before it, and the bounds of the guard."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lmjax.display.figures import COLOURS, NOT_FINITE, mark_not_finite, own_style, panels
from lmjax.run.spikes.case import Case

BEFORE, FURTHEST = 200, 1000  # updates shown before the trigger; largest number, to include the target
_BOUNDS: tuple[Any, ...] = (("median", "-"), ("suspect above", "--"), ("hard above", ":"))  # and their line styles
_LEFT_OUT: dict[str, Any] = {"color": COLOURS[1], "linestyle": "", "marker": "x", "markeredgewidth": 1.6}


@own_style()
def figure(case: Case) -> Figure:
    """Plot loss and gradient norm before the trigger, with the bounds of the guard."""
    decision, config = case.decision, case.run.config.guard
    at, target = decision.trigger.update + 1, decision.target
    left = max(target if at - FURTHEST <= target < at - BEFORE else at - BEFORE, 0)
    (median, deviation), (log_median, log_deviation) = case.bands
    losses = [median + z * deviation for z in (0, config.loss_z, config.hard_z)]
    norms = [math.exp(min(log_median + z * log_deviation, 80)) for z in (0, config.grad_z, config.hard_z)]

    result, (upper, lower) = panels((8, 5.5), 2, heights=(3, 2), share_x=True)
    names = (("loss", "loss (nats per token)"), ("grad_norm", "gradient norm"))
    for which, (axes, (key, label), bounds) in enumerate(zip((upper, lower), names, (losses, norms), strict=True)):
        accepted = [(n, values[which]) for n, values in sorted(case.accepted.items()) if left <= n <= at]
        suspects = [(r["update"] + 1, float.fromhex(r[key])) for r in case.past.suspects if left <= r["update"] < at]
        _panel(axes, np.reshape(accepted, (-1, 2)), np.reshape(suspects, (-1, 2)), bounds, log=key == "grad_norm")
        for bound, (_, style) in zip(bounds, _BOUNDS, strict=True):
            axes.hlines(bound, max(at - case.count, left), at, color="0.3", linewidth=1, linestyle=style, zorder=1)
        for x, _, colour in _marks(case):
            axes.axvline(x, color=colour, linewidth=1.2, alpha=0.6, zorder=1)
        axes.set_ylabel(label)
    lower.set_xlabel("update")
    lower.set_xlim(left, at + 0.03 * max(at - left, 1))
    result.align_ylabels([upper, lower])
    result.legend(handles=_legend(case), loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return result


def _panel(axes: Axes, accepted: np.ndarray, suspects: np.ndarray, bounds: Sequence[float], *, log: bool) -> None:
    """Draw one panel from (update, value) pairs; non-finite values are marked at the top."""
    axes.plot(*accepted.T, color=COLOURS[0], linewidth=1.2)
    axes.plot(*suspects.T, zorder=3, **_LEFT_OUT)
    records = np.concatenate([accepted, suspects])
    mark_not_finite(axes, records[~np.isfinite(records[:, 1]), 0])
    shown = np.array([*accepted[:, 1], *suspects[:, 1], *bounds[:2]])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        low, high = shown.min(), shown.max()
        if low > 0 and (log or high > 5 * low):
            axes.set_yscale("log")
            axes.set_ylim(low / (high / low) ** 0.05 / 1.02, high * (high / low) ** 0.1 * 1.02)
        else:
            axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)


def _marks(case: Case) -> list[tuple[int, str, str]]:
    """Return (update, name, colour) of the vertical lines."""
    decision = case.decision
    onset, trigger = decision.onset.update + 1, decision.trigger.update + 1
    begun = [(onset, f"onset {onset}", COLOURS[4])] if onset != trigger else []
    name = f"trigger {trigger}" if begun else f"onset and trigger {trigger}"
    return [(decision.target, f"back to {decision.target}", COLOURS[2]), *begun, (trigger, name, COLOURS[1])]


def _legend(case: Case) -> list[Line2D]:
    handles = [
        Line2D([], [], label="accepted", color=COLOURS[0]),
        Line2D([], [], label="left out", **_LEFT_OUT),
        Line2D([], [], label="not finite", **NOT_FINITE),
    ]
    handles += [Line2D([], [], label=label, color=colour, alpha=0.6) for _, label, colour in _marks(case)]
    return handles + [Line2D([], [], label=label, color="0.3", linewidth=1, linestyle=s) for label, s in _BOUNDS]
