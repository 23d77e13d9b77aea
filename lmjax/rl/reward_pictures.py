"""The picture of a reward model: its reliability, score against length and truth."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmjax.display.figures import REFERENCE, WIDTH, colour, own_style, panels
from lmjax.objectives import reward_measures
from lmjax.rl.reward_report import Report

_DOTS = {"markersize": 3, "linestyle": "", "marker": "o", "alpha": 0.3, "markeredgewidth": 0}
_MOST = 2000  # dots of a panel


@own_style()
def figure(report: Report) -> Figure:
    """Draw the held-out pairs of a report, and the answers of the reference policy.

    The panel of the truth is left out if it is not known.
    """
    assert report.scores_N2 is not None
    assert report.lengths_N2 is not None
    known = report.truth_N2 is not None
    picture, axes = panels((4.2 * (2 + known), 3.8), columns=2 + known)
    _reliability(axes[0], report.scores_N2[:, 0] - report.scores_N2[:, 1])
    sampled = [answer for group in report.groups for answer in group]
    scores, lengths = report.scores_N2.ravel(), report.lengths_N2.ravel()
    if sampled:
        scores, lengths = (np.asarray([getattr(one, name) for one in sampled]) for name in ("score", "tokens"))
    _against(axes[1], lengths, scores, label="answers of the reference" if sampled else "held-out answers")
    axes[1].set(xlabel="tokens of an answer", ylabel="score")
    if report.truth_N2 is not None:
        _against(axes[2], report.truth_N2.ravel(), report.scores_N2.ravel(), label="held-out answers")
        axes[2].set(xlabel="true reward", ylabel="raw score")
    return picture


def _reliability(axes: Axes, margin_N: np.ndarray) -> None:
    """Draw the accuracy of pairs against their confidence, with two standard errors."""
    confidences, accuracies, errors = reward_measures.reliability(margin_N)
    axes.plot([0.5, 1], [0.5, 1], label="calibrated", **REFERENCE)
    axes.errorbar(
        confidences, accuracies, 2 * errors, color=colour(0), marker="o", linewidth=WIDTH, capsize=2, label="measured"
    )
    axes.set(xlim=(0.48, 1.02), ylim=(min(0.3, accuracies.min(initial=1) - 0.05), 1.05))
    axes.set(xlabel="confidence of a pair", ylabel="accuracy")
    axes.legend(frameon=False, loc="lower right")


def _against(axes: Axes, x_R: np.ndarray, y_R: np.ndarray, *, label: str) -> None:
    """Draw dots, and their correlation."""
    some = slice(None, None, -(-len(x_R) // _MOST))
    axes.plot(x_R[some], y_R[some], color=colour(0), **_DOTS)
    axes.set_title(f"{label}: r = {reward_measures.correlation(x_R, y_R):.2f}", fontsize="medium")
