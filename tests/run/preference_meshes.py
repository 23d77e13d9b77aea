"""A reward model and direct preference optimization on one device and on a mesh; run as a script with four devices.

Prints, for each objective and each mesh, the numbers of the first update and what was taken from the reference.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from lmjax.config import Config, MeshConfig
from lmjax.data.store import preparation
from lmjax.display.console import Console
from lmjax.objectives import reward_calibration
from lmjax.run import build, feed, reference_file, steps
from tests import small

MESHES = {"one": MeshConfig(data=1), "mesh": MeshConfig(data=2, fsdp=2)}


def main(corpus: Path, folder: Path) -> None:
    """Compute all of them."""
    reward_calibration.PROMPTS, reward_calibration.EACH = 2, 8
    result = {}
    for name in small.PAIRS:
        for label, mesh in MESHES.items():
            own = small.config(name, corpus)
            config = replace(
                own,
                data=replace(own.data, limit=60),
                model=replace(own.model, dtype="float32"),
                train=replace(own.train, updates=1),
                parallel=replace(own.parallel, mesh=mesh),
            )
            result[f"{name} {label}"] = first_update(config, folder)
    print(json.dumps(result))


def first_update(config: Config, folder: Path) -> dict[str, list[float]]:
    """The metrics of the only update, and what a run of this configuration takes from its reference."""
    run = build.build(config, preparation.prepare(config.data))
    state = build.init(run)
    run, _ = reference_file.begin(run, folder, state, Console(sys.stderr))
    batch = next(feed.device_batches(run, 0, 0)).batch
    state, metrics = steps.step_function(run, folder)(state, [batch])
    metrics = jax.device_get(metrics)
    if config.objective.family == "dpo":
        taken = np.frombuffer((folder / "reference_logprobs.bin").read_bytes(), "<f4").tolist()
    else:
        taken = [float(number) for number in jax.device_get(state.params["calibration"]).values()]
    return {"metrics": [float(metrics[name]) for name in ("loss", "grad_norm", "margin")], "taken": taken}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
