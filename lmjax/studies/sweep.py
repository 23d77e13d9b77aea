"""A sweep: a grid of runs, one after the other, and their comparison.

Each run is a run like any other, in a folder of its own. Runs that an earlier call finished are not trained again; one
that it began is resumed.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import Config, presets
from lmjax.config.checks import check
from lmjax.run import build, identity, transfer
from lmjax.run.saved import read_summary
from lmjax.studies import ladder
from lmjax.studies.sweep_report import MOST_CURVES, Outcome, draw_curves, score_of, write_sweep


def run_sweep(config: Config, axes: Mapping[str, Sequence[str]], out: Path, *, metric: str = "") -> list[Outcome]:
    """Train a run for each point of a grid, and write the comparison to `out`.

    Args:
        config: The configuration that the runs share.
        axes: The values of each key.
        out: The folder; each run is in a folder below it.
        metric: The field of summary.json that is compared (empty: the first of bits per byte, loss and reward).

    Returns:
        The outcome of each run, in the order of the grid; fewer if a signal stopped the sweep.

    Raises:
        UserError: A point is invalid, or a run in `out` has another configuration.
    """
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    configs = {folder_name(point): _at(config, point) for point in points}
    for name, point_config in configs.items():
        ladder.check_same(point_config, out / name)
    outcomes: list[Outcome] = []
    for number, (point, (name, point_config)) in enumerate(zip(points, configs.items(), strict=True), 1):
        print(f"\n--- {number} of {len(points)}: {' '.join(f'{key}={value}' for key, value in point.items())}")
        status = _status(out / name)
        if status != "gave up":
            ladder.train_rung(point_config, out / name)
            status = _status(out / name)
        if status not in ("finished", "gave up"):
            print(f"the sweep stops at {name}; run the same command again to continue")
            return outcomes
        outcomes.append(Outcome(point, out / name, status, read_summary(out / name)))
    write_sweep(out, outcomes, metric=score_of(outcomes, metric))
    if len(outcomes) <= MOST_CURVES:
        draw_curves(outcomes, out)
    return outcomes


def _at(config: Config, point: Mapping[str, str]) -> Config:
    """Return the configuration of a point of the grid."""
    changed = presets.with_changes(config, [f"{key}={value}" for key, value in point.items()])
    changed = transfer.adopt(identity.absolute(changed))
    check(changed)
    build.check(changed)
    return changed


def folder_name(point: Mapping[str, str]) -> str:
    """Return the name of the folder of a point, without special characters."""
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
    plain = re.sub(r"[^\w.+=,-]", "_", name, flags=re.ASCII)[:100]
    full = repr(sorted(point.items()))
    lasts = [key.rpartition(".")[2] for key in point]
    is_clear = plain == name and len(set(lasts)) == len(lasts)
    return plain if is_clear else f"{plain}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _status(run_dir: Path) -> Any:
    return read_summary(run_dir).get("status")
