"""The picture of a policy's training: reward against distance, series over updates."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmjax.display.figures import FAINT, WIDTH, colour, own_style, panels
from lmjax.display.thinning import smooth, thin
from lmjax.rl.health import Series

_SHOWN = {"reward": "mean reward", "kl": "KL divergence (nats per answer)", "entropy": "entropy (nats per token)"}


@own_style()
def figure(series: Series, evaluations: Series) -> Figure:
    """Draw a run from its series.

    Reward usually rises with the square root of the KL divergence, and bends when a learned reward is hacked.

    Args:
        series: Those of `lmjax.rl.health`: `update`, `reward`, `kl` and `entropy`.
        evaluations: `update`, and the `reward` of held-out prompts.
    """
    columns = {name: np.asarray(values, float) for name, values in series.items()}
    picture, axes = panels((9, 6.4), rows=2, columns=2)
    _against_distance(axes[0], columns["kl"], columns["reward"])
    for panel, (name, label) in zip(axes[1:], _SHOWN.items(), strict=True):
        x, y = thin(columns["update"], columns[name])
        panel.plot(x, y, color=colour(0), **FAINT)
        panel.plot(
            columns["update"], smooth(columns[name]), color=colour(0), linewidth=WIDTH, label="answers of updates"
        )
        panel.set(xlabel="update", ylabel=label)
    if evaluations.get("reward"):
        axes[1].plot(
            evaluations["update"], evaluations["reward"], color=colour(1), marker="o", linewidth=WIDTH,
            label="held-out prompts",
        )  # fmt: skip
        axes[1].legend(frameon=False)
    return picture


def _against_distance(axes: Axes, kl: np.ndarray, reward: np.ndarray) -> None:
    """Draw reward against the root of the KL divergence; later updates are darker."""
    distance = np.sqrt(np.maximum(kl, 0))
    axes.scatter(distance, reward, c=np.linspace(0.15, 1, len(reward)), cmap="Blues", vmin=0, vmax=1, s=12)
    axes.set(xlabel="square root of the KL divergence to the reference", ylabel="mean reward")
