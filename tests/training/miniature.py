"""The real loop around a model of one number: what the tests of the loop and of rollbacks share."""

import io
import math
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.config import CheckpointConfig, GuardConfig, TrainConfig
from lmjax.data.order.order import Order, to_ranges
from lmjax.display.console import Console
from lmjax.guard import detector
from lmjax.journal import journal
from lmjax.journal.history import History, fold, machine_of
from lmjax.journal.journal import Journal
from lmjax.system import faults
from lmjax.training import checkpoint, rollback
from lmjax.training.checkpoint import Checkpoints
from lmjax.training.dispatch import Dispatch, make_step, with_faults
from lmjax.training.inputs import LoopInputs, Position, ScheduledBatch
from lmjax.training.loop import train
from lmjax.training.metrics import Recorder
from lmjax.training.signals import StopRequest
from lmjax.training.speed import Speed
from lmjax.training.state import State, abstract_state
from lmjax.training.step import Step, chain_updates, make_update
from tests.journal.records import MACHINE, START

UPDATES = 12
UPDATES_PER_DISPATCH = 1  # unless a test sets another number
ALONE = Dispatch()
SKIP = GuardConfig(policy="skip")
EVERY_4 = CheckpointConfig(every=4)
AS_THEY_STAND = Order((10_000,), seed=0, shuffle=False)  # the sample at a position has its number
OPTIMIZER = optax.scale_by_adam()


def loss(params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
    """About 3, as of a language model; samples above 10 are bad whatever the parameters."""
    w, x = params["w"], batch["x"]
    return jnp.sum(w * x + w**2 + jnp.maximum(x - 10, 0) + 3), jnp.float32(x.size), {}


@cache
def step(config: GuardConfig, dispatch: Dispatch = ALONE) -> Step:
    update = make_update(loss, OPTIMIZER, guard=config, seed=0)
    chained = chain_updates(update) if dispatch.updates_per_dispatch > 1 else update
    return make_step(jax.jit(chained, donate_argnums=0), dispatch)


def data(sample: int) -> float:
    """The sample with an id."""
    return math.sin(sample)


def no_evaluation(state: State, whole: bool) -> dict[str, float]:
    return {"val_loss": 1.0}


@contextmanager
def parts(
    run_dir: Path,
    *,
    poison: Collection[int] = (),
    bad: float = math.nan,
    spoil: Callable[[int, list[float]], list[float]] = lambda before, x: x,
    order: Order = AS_THEY_STAND,
    cuts: tuple[tuple[int, float, int], ...] = (),
    guard: GuardConfig = SKIP,
    evaluate: Callable[[State, bool], dict[str, float]] = no_evaluation,
    updates: int = UPDATES,
    grow: int = 6,
    saving: CheckpointConfig = EVERY_4,
    updates_per_dispatch: int | None = None,
    evaluation_due: bool = False,
) -> Generator[LoopInputs, None, None]:
    """What the loop is handed. poison: sample ids whose value is `bad`. spoil: (cursor, values) -> values of a batch,
    as they are made. cuts: of the learning rate. grow: the update at which the batch doubles from 2, as announced.
    updates_per_dispatch: default UPDATES_PER_DISPATCH."""
    dispatch = Dispatch(updates_per_dispatch or UPDATES_PER_DISPATCH)

    def batches(update: int, cursor: int, past: History) -> Generator[ScheduledBatch, None, None]:
        current = order.excluding(past.exclude)
        while update < updates:
            size = 2 if update < grow else 4
            before = cursor
            ids, cursor = current.take(cursor, size)
            x = spoil(before, [bad if i in poison else data(i) for i in ids.tolist()])
            arrays = np.zeros((2, 2), np.float32)
            arrays.reshape(-1)[:size] = x
            rate, regime = 0.1, int(update >= grow)
            for at, factor, over in (*cuts, *past.cuts):
                rate *= factor + (1 - factor) * min((update - at) / over, 1) if update >= at else 1
            rate = faults.change("learning_rate", np.float32(rate), at=update + 1)
            scalars = {"microbatches": np.int32(size // 2), "update": np.int32(update), "regime": np.int32(regime)}
            batch = {"arrays": {"x": arrays}, "learning_rate": rate, **scalars}
            batch = jax.device_put(batch) if dispatch.updates_per_dispatch == 1 else batch
            yield ScheduledBatch(update, before, cursor, size, float(rate), regime, batch)
            update += 1

    def samples(start: int, stop: int, past: History) -> Any:
        current = order.excluding(past.exclude)
        ids = current.sample_id(np.arange(start, stop))
        return to_ranges(ids[~current.excluded(ids)])

    def sequences(update: int) -> int:
        return 2 * min(update, grow) + 4 * max(0, update - grow)

    used_step, used_dispatch = with_faults(step(guard, dispatch), dispatch)
    run_dir.mkdir(exist_ok=True)
    with (
        Recorder(run_dir / "metrics.jsonl") as recorder,
        Console(io.StringIO()) as console,
    ):
        saves = Checkpoints(run_dir / "checkpoints", config=saving)
        book = Journal(run_dir / "journal.jsonl")
        if not book.records:
            book.write("start", wall_step=0, update=0, cursor=0, **START)
        try:
            yield LoopInputs(
                notify=lambda kind, update, values: None,
                run_dir=run_dir,
                train=TrainConfig(evaluate_every=4),
                checkpoint=saving,
                guard=guard,
                updates=updates,
                sequences=sequences(updates),
                tokens=sequences,
                speed=Speed(flops_per_token=1.0, peak=1e9),
                evaluation_due=evaluation_due,
                dispatch=used_dispatch,
                step=used_step,
                batches=batches,
                samples=samples,
                evaluate=evaluate,
                autopsy=lambda state, fed, decision: None,
                conclude=lambda update, text: None,
                vote=None,
                machine=machine_of(START),
                tolerance=0.0,
                fingerprints={"data_sha256": "x"},
                journal=book,
                checkpoints=saves,
                recorder=recorder,
                console=console,
            )
        finally:
            saves.close()


def fresh(config: GuardConfig = SKIP) -> Position:
    params = {"w": jnp.float32(1.0)}
    state = State(params, OPTIMIZER.init(params), None, jnp.int32(0), detector.empty(config))
    return Position(state, update=0, cursor=0, wall_step=0)


def resumed(made: LoopInputs) -> Position:
    """Where a new process goes on, as `launch.resume` does it."""
    book, root = made.journal, made.checkpoints.folder
    past = fold(book.records)
    if past.pending is not None:
        rollback.finish(book, root, past.pending, samples=lambda start, stop: made.samples(start, stop, past))
    found, state, problems = checkpoint.load(root, abstract_state(fresh(made.guard).state), announced=past.announced)
    assert problems == []
    counters = {"wall_step": book.wall_step, "update": found.meta["update"], "cursor": found.meta["cursor"]}
    book.write("resume", **counters, changed=[], **MACHINE)
    recent = fold(book.records).recent(detector.remembered(made.guard), cursor=counters["cursor"])
    return Position(state, **counters, recent=recent)


def records(run_dir: Path) -> list[dict[str, Any]]:
    return journal.read(run_dir / "journal.jsonl")


def events(run_dir: Path) -> list[str]:
    return [record["event"] for record in records(run_dir)]


def weight(position: Position) -> float:
    return float(position.state.params["w"])


# ---- Longer runs, to go back in -------------------------------------------------------------------------------------

# All lengths are about an eighth of the defaults. Divergence is tested with the guard; 8 losses would often diverge.
GUARD = GuardConfig(
    window=16,
    armed=8,
    armed_hard=4,
    divergence_window=8,
    divergence_mads=1e6,
    margin=4,
    horizon=8,
    skip_before=2,
    skip_after=2,
    rewarm=10,
    neighbourhood=8,
)
LONG: dict[str, Any] = {
    "guard": GUARD,
    "updates": 64,
    "grow": 40,
    "saving": CheckpointConfig(every=8),
    "order": Order((1009,), seed=5),
}


def options(**more: Any) -> dict[str, Any]:
    return LONG | more


def run(run_dir: Path, **more: Any) -> Position:
    with parts(run_dir, **options(**more)) as made:
        return train(made, fresh(made.guard), stop=StopRequest())


def same(one: Position, other: Position) -> None:
    """Parameters, optimizer, window and counters, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, one.state, other.state)
    assert (one.update, one.cursor) == (other.update, other.cursor)


def at(*positions: int) -> tuple[int, ...]:
    """The samples that stand there."""
    return tuple(LONG["order"].sample_id(np.asarray(positions)).tolist())
