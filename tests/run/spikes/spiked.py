"""A run whose next batch is the third suspect in a row, and what its report has."""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config import Config
from lmjax.config.codec import apply_overrides
from lmjax.data.store import preparation
from lmjax.guard import detector
from lmjax.guard.decision import Decision
from lmjax.journal import journal
from lmjax.journal.history import SAVING, Tried, fold
from lmjax.journal.journal import Journal
from lmjax.parallel import mesh
from lmjax.run import build
from lmjax.run.build import Run
from lmjax.run.feed import device_batches, sample_ranges
from lmjax.run.spikes.case import Case
from lmjax.run.spikes.report import write_report
from lmjax.training.inputs import ScheduledBatch
from lmjax.training.state import State
from tests.journal.records import START

UPDATES = 64  # applied before the spike
# Small to compile, the same in all tests that do not ask for something else. The window holds the calm end alone.
SETTINGS = ("batch.tokens=[[0,128]]", "model.dropout=0", "guard.window=32", "train.evaluate_every=0")
HEADINGS = [
    "### Around it",
    "### What the guard saw",
    "### Is it a few sequences, or all of them?",
    "### The batch",
    "### Gradient by layer",
    "### State",
    "### Documents of the suspects",
    "### Next steps",
]


@dataclass
class Spike:
    """A run that has made `UPDATES` updates; `fed` is the batch of the next one, the third in a row to be left out."""

    run: Run
    run_dir: Path
    state: State
    fed: ScheduledBatch
    decision: Decision
    losses: list[float]
    norms: list[float]

    def report(self) -> str:
        write_report(self.run, self.run_dir, self.state, self.fed, self.decision)
        return (self.run_dir / "spikes" / f"{UPDATES + 1}.md").read_text()

    def case(self) -> Case:
        past = fold(journal.read(self.run_dir / "journal.jsonl"))
        return Case(self.run, self.run_dir, self.state, self.fed, self.decision, past)

    def spoil(self, name: str, value: Any, *, row: int) -> None:
        """Changes one row of the batch."""
        arrays = {key: np.array(array) for key, array in self.fed.batch["arrays"].items()}
        arrays[name].reshape(-1, arrays[name].shape[-1])[row] = value
        self.fed = replace(self.fed, batch=self.fed.batch | {"arrays": mesh.put_batch(arrays, self.run.mesh)})


@functools.cache
def trained(config: Config) -> tuple[Run, State, ScheduledBatch, list[tuple[int, float, float]]]:
    """A run after `UPDATES` updates, the batch two after the next, and (cursor, loss, gradient norm) of each update."""
    run = build.build(config, preparation.prepare(config.data))
    update, state, applied = build.update_function(run), build.init(run), []
    feed = device_batches(run, 0, 0)
    for _, fed in zip(range(UPDATES), feed, strict=False):
        state, values = update(state, fed.batch)
        applied.append((fed.cursor, values["loss"].item(), values["grad_norm"].item()))
    feed.close()
    cursor, size = applied[-1][0], int(run.plan.sequences[UPDATES])
    feed = device_batches(run, UPDATES, cursor + 2 * size)
    fed = next(feed)
    feed.close()
    return run, state, fed, applied


def spiked(config: Config, run_dir: Path, *overrides: str) -> Spike:
    run, state, fed, applied = trained(apply_overrides(config, [*SETTINGS, "train.updates=80", *overrides]))
    run_dir.mkdir()
    log = Journal(run_dir / "journal.jsonl")
    log.write("start", wall_step=0, update=0, cursor=0, **START)
    for number, (cursor, loss, norm) in enumerate(applied, 1):
        log.note(update=number, cursor=cursor, loss=loss, grad_norm=norm)
        if number == 20:
            log.write("boundary", wall_step=number, update=number, cursor=cursor, reason=SAVING, digest="0")
    cursor, tried = applied[-1][0], []
    for number, loss in enumerate((9.0, float("nan"), 11.0)):
        size = fed.sequences
        tried.append(Tried(UPDATES, cursor, cursor + size, True, True))
        samples = sample_ranges(run, cursor, cursor + size, fold([]))
        cursor += size
        values = {"loss": loss, "grad_norm": 2.0 * number, "param_norm": 5.0, "z_loss": 30.0, "z_grad_norm": 1.0}
        details: dict[str, Any] = {name: value.hex() for name, value in values.items()}
        wall_step = UPDATES + number + 1
        details |= {"reason": detector.LOSS, "hard": True, "batch": size, "samples": samples}
        log.write("suspect", wall_step=wall_step, update=UPDATES, cursor=cursor, **details)
    decision = Decision(
        rule="2 hard suspects in a row",
        kind="replay",
        onset=tried[0],
        trigger=tried[-1],
        target=20,
        target_cursor=applied[19][0],
        attempt=1,
        level=1,
        reproduced=False,
    )
    _, losses, norms = zip(*applied, strict=True)
    return Spike(run, run_dir, state, fed, decision, list(losses), list(norms))


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def section(text: str, heading: str) -> str:
    return text.partition(f"### {heading}\n")[2].partition("\n#")[0]


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def tokens_of(spike: Spike) -> np.ndarray:
    """(R, T + 1) of the batch that was computed with."""
    arrays = spike.fed.batch["arrays"]
    inputs, targets = (np.asarray(arrays[name]) for name in ("inputs_BT", "targets_BT"))
    context = inputs.shape[-1]
    return np.concatenate([inputs.reshape(-1, context), targets.reshape(-1, context)[:, -1:]], axis=1)


def plain_losses(spike: Spike, params: Any) -> jax.Array:
    """Mean negative log-likelihood of each row, all rows at once."""
    tokens = tokens_of(spike)

    @jax.jit
    def losses(params: Any) -> jax.Array:
        logits: Any = spike.run.model.apply({"params": params}, tokens[:, :-1])
        rows, columns = np.ogrid[: len(tokens), : tokens.shape[1] - 1]
        return -jax.nn.log_softmax(logits)[rows, columns, tokens[:, 1:]].mean(axis=1)

    return losses(params)
