"""What a run costs beside the bare update: feed, loop, guard, journal and saves, as shares of an update.

Run: python benchmarks/stall.py [PRESET ...] [key.path=value ...]  (default: the three shapes below)

The loop is that of a real run, without evaluations and saves. Every so many updates it is held up, and as many bare
updates of another state are made, one after the other, with a batch that is ready: both in one process and in turn, so
that a busy machine slows both. The medians of the paired differences are shown, of the time and of the CPU time of all
threads, which others on the machine disturb less. The device idles whenever an update is sent off after the one before
has ended; what the loop does meanwhile (`of that`) costs no time otherwise, but on a CPU some of the cores.

What the guard adds to an update does not depend on the batch, so it is measured where it shows, on a batch of one
sequence: updates with and without the guard in turn. The rest is timed by itself: a journal record for every update (a
run writes one every few seconds), and every 100 updates a save, of which training waits for the first part, while
hashing and renaming go on beside it.
"""

import dataclasses
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from lmjax.system import runtime

runtime.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from lmjax.config import presets  # noqa: E402
from lmjax.config.codec import apply_overrides  # noqa: E402
from lmjax.data.store import preparation  # noqa: E402
from lmjax.display.console import Console  # noqa: E402
from lmjax.guard import detector  # noqa: E402
from lmjax.journal.journal import Journal  # noqa: E402
from lmjax.pytrees import digest  # noqa: E402
from lmjax.run import build, identity, session  # noqa: E402
from lmjax.run.feed import device_batches  # noqa: E402
from lmjax.training import checkpoint, loop, settle  # noqa: E402
from lmjax.training.checkpoint import Checkpoints  # noqa: E402
from lmjax.training.inputs import Position, ScheduledBatch  # noqa: E402
from lmjax.training.signals import StopRequest  # noqa: E402

SHAPES = {
    "shakespeare_char_cpu": ("model.scan=false",),
    "shakespeare_char": ("batch.tokens=((0,4096),)",),
    "quickstart": ("batch.tokens=((0,2048),)",),
}
EVERY = 100  # updates between two saves
SECONDS = 30.0  # of paired measurements of a kind
TURN = 1.0  # seconds that one side of a pair takes, at least

Cell = tuple[float, float]  # seconds, and the time of which they are a share


def main() -> None:
    names = [word for word in sys.argv[1:] if "=" not in word] or list(SHAPES)
    overrides = [word for word in sys.argv[1:] if "=" in word]
    with Console() as console:
        columns = {name: measured(name, overrides, console) for name in names}
        rows = [[row, *(shown(column[row]) for column in columns.values())] for row in columns[names[0]]]
        console.table("Beside the bare update", rows, ("", *names))


def shown(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else f"{1000 * cell[0]:.3f} ms {cell[0] / cell[1]:7.2%}"


def measured(name: str, overrides: list[str], console: Console) -> dict[str, Cell | str]:
    """A column: row to (seconds, seconds of which this is a share)."""
    config = apply_overrides(presets.load(name), [*SHAPES.get(name, ()), *overrides])
    made = build.build(config, preparation.prepare(config.data))
    short = [f"batch.tokens=((0,{config.model.context}),)", "batch.microbatch=1"]
    small = build.build(apply_overrides(config, short), made.store)
    batch = next(device_batches(made, 0, 0)).batch
    update = compiled(made, batch)
    bare = median(seconds(update) for _ in range(5))
    with tempfile.TemporaryDirectory() as folder, console.phase(name):
        return {
            "the bare update": f"{1000 * bare:.1f} ms",
            "guard, within the update": (cost(small, next(device_batches(small, 0, 0)).batch), bare),
            **beside(made, batch, Path(folder), bare),
            **now_and_then(made, Path(folder), bare),
        }


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


# ---- The guard ------------------------------------------------------------------------------------------------------


def cost(made: build.Run, batch: dict[str, Any]) -> float:
    """Seconds that the guard adds to an update."""
    guarded = compiled(made, batch)
    signs = detector.Signs(jnp.float32(0), jnp.float32(0), jnp.bool_(False), jnp.bool_(False))
    with mock.patch.multiple(
        detector,
        assess=lambda *arguments: signs,
        accept=lambda window, *arguments: (window, jnp.bool_(False)),
    ):
        bare = compiled(made, {name: value for name, value in batch.items() if name not in ("update", "regime")})
    differences: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        order = (guarded, bare)[:: 1 if len(differences) % 2 else -1]
        times = {step: seconds(step) for step in order}
        differences.append(times[guarded] - times[bare])
    return median(differences)


def compiled(made: build.Run, batch: dict[str, Any]) -> Callable[[], None]:
    """One update after the other of a state of its own, with the same batch."""
    update, state = build.update_function(made), build.init(made)
    number = 0

    def step() -> None:
        nonlocal state, number
        given = batch | {"update": np.int32(number)} if "update" in batch else batch
        state, metrics = update(state, given)
        jax.block_until_ready(metrics)
        number += 1

    step()
    return step


# ---- The loop -------------------------------------------------------------------------------------------------------


class Turns:
    """The update of a run, which after every `turn` of them makes as many bare updates, and times both.

    differences: (seconds, CPU seconds) an update, loop less bare. idle: calls that found the device with nothing to do.
    """

    def __init__(self, made: build.Run, batch: dict[str, Any], *, turn: int) -> None:
        self.differences: list[tuple[float, float]] = []
        self.calls = self.idle = self._sides = 0
        self._turn, self._dispatch, self._made = turn, made.dispatch, 0
        self._batch, self._number = batch, 0
        self._step, self._state = build.step_function(made), build.init(made)
        self._last: Any = None
        self._resumed = (0.0, 0.0)

    def __call__(self, state: Any, batches: Sequence[dict[str, Any]]) -> Any:
        if self._made >= self._turn or self._last is None:
            self._other_side()
        elif not self._dispatch.serialize and self._last["loss"].is_ready():
            self.idle += 1
        self.calls += 1
        state, self._last = self._step(state, batches)
        self._made += len(batches)
        return state, self._last

    def _other_side(self) -> None:
        jax.block_until_ready(self._last)
        looped, count = self._since(), self._made or 2 * self._dispatch.updates_per_dispatch
        on_its_way: Any = self._last
        # The guard refuses a batch that is not meant for its update.
        batches = [self._batch | {"update": np.int32(self._number + i)} for i in range(count)]
        begun = self._since()
        size = self._dispatch.updates_per_dispatch
        for first in range(0, count, size):
            before, self._state = self._state, None
            self._state, metrics = self._step(before, batches[first : first + size])
            # Of small updates, one is always in flight.
            jax.block_until_ready(metrics if self._dispatch.serialize else on_its_way)
            on_its_way = metrics
        jax.block_until_ready(on_its_way)
        bare = [now - start for now, start in zip(self._since(), begun, strict=True)]
        self._sides += 1
        if self._sides > 2:  # the first comes before any turn, and the first turn begins the run
            wall, cpu = (looped[i] - self._resumed[i] - bare[i] for i in (0, 1))
            self.differences.append((wall / count, cpu / count))
        self._number, self._made = self._number + count, 0
        self._resumed = self._since()

    def _since(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def beside(made: build.Run, batch: dict[str, Any], folder: Path, bare: float) -> dict[str, Cell | str]:
    """Rows of the loop, from one run of it."""
    turn = max(4, round(TURN / bare))
    turns = max(4, round(SECONDS / (2 * turn * bare)))
    step = Turns(made, batch, turn=turn)
    spent: dict[str, list[float]] = {"next": [], "_judge": [], "_record": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name].append(time.perf_counter() - begun)

        return call

    def batches(*arguments: Any) -> Generator[ScheduledBatch, None, None]:
        with closing(device_batches(made, *arguments)) as feed:
            following = timed("next", lambda: next(feed, None))
            while (fed := following()) is not None:
                yield fed

    position, quiet = Position(build.init(made), 0, 0, 0), Console(io.StringIO())
    journal = Journal(folder / "loop.jsonl")
    start = {"seed": made.config.seed, **identity.fingerprints(made), **identity.versions(made)}
    journal.write("start", wall_step=0, update=0, cursor=0, **start)
    with (
        StopRequest(alone=True) as stop,
        session._loop_inputs(made, folder, position, journal, quiet, stop, lambda: None) as parts,
    ):
        parts = dataclasses.replace(
            parts,
            train=dataclasses.replace(parts.train, evaluate_every=0, profile=()),
            checkpoint=dataclasses.replace(parts.checkpoint, every=0),
            updates=min(turn * (turns + 2), parts.updates),
            step=step,
            batches=batches,
        )
        quiet.start(parts.updates)
        inner = ("_judge", "_record")
        judge, record = (mock.patch.object(settle, name, timed(name, getattr(settle, name))) for name in inner)
        with judge, record:
            loop.train(parts, position, stop=stop)
    whole, whole_cpu = (median(pair[i] for pair in step.differences) for i in (0, 1))
    # Without the first, which waits for the thread to begin.
    feed, judge, record = (sum(times[1:]) / len(times[1:]) for times in spent.values())
    return {
        "the loop, beside bare updates": (whole, bare),
        "the same in CPU time": (whole_cpu, bare * cores()),
        "of that, waiting for the feed": (feed, bare),
        "of that, judging, recording, showing": (judge + record, bare),
        "updates before which the device idled": f"{step.idle} of {step.calls}",
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Now and then ---------------------------------------------------------------------------------------------------


def now_and_then(made: build.Run, folder: Path, bare: float) -> dict[str, Cell | str]:
    """Rows of what a run does every few seconds, or every EVERY updates."""
    journal = Journal(folder / "journal.jsonl")
    counters = {"wall_step": 1, "update": 1, "cursor": 64}

    def tell() -> None:
        journal.note(update=1, cursor=64, loss=1.5, grad_norm=0.5)
        journal.write("boundary", **counters, reason="progress")

    told = median(seconds(tell) for _ in range(50))
    state = build.init(made)
    saves = Checkpoints(folder / "saves", config=made.config.checkpoint)
    waits, wholes = [], []
    for number in range(5):
        begun = time.perf_counter()
        saves.save(state, counters | {"update": number, "digest": digest(state)})
        waits.append(time.perf_counter() - begun)
        saves.wait()
        wholes.append(time.perf_counter() - begun)
    hashing = seconds(lambda: checkpoint.hashes(folder / "saves" / "4"))
    saves.close()
    return {
        "a synced journal record for every update": (told, bare),
        f"training waits for a save, every {EVERY} updates": (median(waits[1:]), bare * EVERY),
        "the whole save, beside training": (median(wholes[1:]), bare * EVERY),
        "of that, sha256 of the files": (hashing, bare * EVERY),
    }


if __name__ == "__main__":
    main()
