"""What safety costs: the guard, the journal, the manifests and the saves, as shares of an update.

Run: python benchmarks/guard.py [PRESET] [key.path=value ...]  (default: shakespeare_char)

What the guard adds to an update does not depend on the batch, so it is measured where it shows: on a batch of one
sequence, updates with and without the guard in turn, in one process, so that a busy machine slows both; the median of
the differences. The rest is timed by itself: a journal record for every update (a run writes one every few seconds),
and every 100 updates a save, of which training waits for the first part, while hashing and renaming go on beside it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from lmjax import runtime

runtime.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from lmjax import presets, run  # noqa: E402
from lmjax.console import Console  # noqa: E402
from lmjax.data import store  # noqa: E402
from lmjax.pytrees import digest  # noqa: E402
from lmjax.train import checkpoint, guard  # noqa: E402
from lmjax.train.checkpoint import Checkpoints  # noqa: E402
from lmjax.train.journal import Journal  # noqa: E402
from lmjax.typed import apply_overrides  # noqa: E402

PAIRS, EVERY = 100, 100


def main() -> None:
    names = [word for word in sys.argv[1:] if "=" not in word] or ["shakespeare_char"]
    overrides = [word for word in sys.argv[1:] if "=" in word]
    config = apply_overrides(presets.load(names[0]), overrides)
    made = run.build(config, store.prepare(config.data))
    context = config.model.context
    small = run.build(apply_overrides(config, [f"batch.tokens=((0,{context}),)", "batch.microbatch=1"]), made.store)
    with Console() as console, tempfile.TemporaryDirectory() as folder:
        step = compiled(made, next(run.batches(made, 0, 0)).batch)
        update = median(seconds(step) for _ in range(5))
        rows = [
            row("guard, within the update", cost(small, next(run.batches(small, 0, 0)).batch), update),
            *beside_it(made, Path(folder), update),
        ]
        title = f"{names[0]}: an update takes {update:.4f} s (median of 5)"
        console.table(title, rows, ("what", "time", "share of the update"))


def cost(made: run.Run, batch: dict[str, Any]) -> float:
    """Seconds that the guard adds to an update."""
    guarded = compiled(made, batch)
    signs = guard.Signs(jnp.float32(0), jnp.float32(0), jnp.bool_(False), jnp.bool_(False))
    with mock.patch.multiple(
        guard,
        assess=lambda *arguments: signs,
        accept=lambda window, *arguments: (window, jnp.bool_(False)),
    ):
        bare = compiled(made, {name: value for name, value in batch.items() if name not in ("update", "stretch")})
    differences = []
    for number in range(PAIRS):
        order = (guarded, bare)[:: 1 if number % 2 else -1]
        times = {step: seconds(step) for step in order}
        differences.append(times[guarded] - times[bare])
    return median(differences)


def compiled(made: run.Run, batch: dict[str, Any]) -> Callable[[], None]:
    """One update after the other of a state of its own, with the same batch."""
    update, state = run.update_function(made), run.init(made)
    number = 0

    def step() -> None:
        nonlocal state, number
        given = batch | {"update": jnp.int32(number)} if "update" in batch else batch
        state, metrics = update(state, given)
        jax.block_until_ready(metrics)
        number += 1

    step()
    return step


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def beside_it(made: run.Run, folder: Path, update: float) -> list[tuple[str, str, str]]:
    """Rows of what is done once an update, and of what is done every EVERY updates."""
    journal = Journal(folder / "journal.jsonl")
    counters = {"wall_step": 1, "update": 1, "cursor": 64}

    def tell() -> None:
        journal.note(update=1, cursor=64, loss=1.5, grad_norm=0.5)
        journal.write("boundary", **counters, reason="progress")

    told = median(seconds(tell) for _ in range(50))
    state = run.init(made)
    saves = Checkpoints(folder / "checkpoints", config=made.config.checkpoint)
    waits, wholes = [], []
    for number in range(5):
        begun = time.perf_counter()
        saves.save(state, counters | {"update": number, "digest": digest(state)})
        waits.append(time.perf_counter() - begun)
        saves.wait()
        wholes.append(time.perf_counter() - begun)
    hashing = seconds(lambda: checkpoint.hashes(folder / "checkpoints" / "4"))
    saves.close()
    return [
        row("a synced journal record for every update", told, update),
        row(f"sha256 of a checkpoint, every {EVERY} updates", hashing, update * EVERY),
        row(f"training waits for a save, every {EVERY} updates", median(waits[1:]), update * EVERY),
        row("the whole save, beside training", median(wholes[1:]), update * EVERY),
    ]


def row(name: str, time: float, whole: float) -> tuple[str, str, str]:
    return name, f"{1000 * time:.2f} ms", f"{time / whole:.3%}"


if __name__ == "__main__":
    main()
