"""In-context learning while a model is trained: what is measured at each evaluation, and the picture of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lmjax.config import EvaluateConfig, InContextConfig
from lmjax.evaluate import evaluator
from lmjax.evaluate.metrics import PRIMARY
from lmjax.evaluate.picture import label, plain
from lmjax.generate import LanguageModel
from lmjax.prompting import task as tasks
from lmjax.prompting.task import Task

_NAME = re.compile(r"val_(.+)_(\d+)_shot")


def load(names: Sequence[str], trained_on: InContextConfig | None) -> list[Task]:
    """The tasks of these names; of those that `trained_on` renders only the items that it holds out.

    UserError: no such task.
    """
    shown = set(trained_on.tasks) - set(trained_on.held_out) if trained_on else set()
    share = trained_on.held_out_share if trained_on else 0.0
    return [tasks.load(name, held_out_share=share if name in shown else 0.0) for name in names]


def measure(lm: LanguageModel, loaded: Sequence[Task], config: EvaluateConfig) -> dict[str, float]:
    """The main metric of each task and number of examples, `val_TASK_SHOTS_shot`."""
    settings = evaluator.Settings(shots=config.shots, limit=config.limit)
    scores = evaluator.evaluate(lm, loaded, settings).scores()
    kinds = {one.config.name: one.config.kind for one in loaded}
    return {f"val_{name}_{shots}_shot": found[PRIMARY[kinds[name]]].value for (name, shots), found in scores.items()}


def figure(columns: Mapping[str, np.ndarray]) -> Figure | None:
    """One panel a task: its main metric over the updates, a line for each number of examples; None: not measured.

    columns: of the evaluation records, by name, and their `update`.
    """
    lines: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, values in columns.items():
        if found := _NAME.fullmatch(name):
            lines.setdefault(found[1], []).append((int(found[2]), values))
    if not lines:
        return None
    picture = Figure(figsize=(1.5 + 4.5 * len(lines), 3.6), layout="constrained")
    panels: Any = picture.subplots(1, len(lines), squeeze=False)[0]
    for axes, (name, curves) in zip(panels, sorted(lines.items()), strict=True):
        colours = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.05, len(curves)))
        for colour, (shots, values) in zip(colours, sorted(curves, key=lambda curve: curve[0]), strict=True):
            known = np.isfinite(values)
            axes.plot(columns["update"][known], values[known], color=colour, marker=".", label=f"{shots}")
        plain(axes)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("update")
        axes.set_title(label(name), loc="left", fontsize="medium")
        axes.legend(title="examples", fontsize="small", frameon=False, loc="upper left")
    panels[0].set_ylabel("of held-out questions answered right")
    return picture
