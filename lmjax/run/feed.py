"""Batches for the devices, from a position of the run onwards."""

import dataclasses
from collections.abc import Generator, Iterator

import numpy as np

from lmjax.data.order.order import Order, Ranges, to_ranges
from lmjax.data.prefetch import prefetch
from lmjax.journal.history import History
from lmjax.optim import learning_rate
from lmjax.parallel import mesh
from lmjax.run.build import Run
from lmjax.system import faults
from lmjax.training.inputs import ScheduledBatch


def host_batches(
    run: Run, update: int, cursor: int, *, order: Order | None = None, own: slice | None = None
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(update, cursor after it, arrays (B, T)) from a position of the run onwards, on the host.

    own: make only these rows of each microbatch.
    """
    order, microbatch = order or run.order, run.config.batch.microbatch
    own = own or slice(0, microbatch)
    while update < run.plan.updates:
        ends = np.cumsum(run.plan.sequences[update : update + 16])  # samples of 16 are drawn in the time of those of 2
        ids, _ = order.take(cursor, int(ends[-1]))
        cursors = (order.position(ids[ends - 1]) + 1).tolist()
        ids, ends = _part(ids, own, microbatch), ends // microbatch * (own.stop - own.start)
        # So are the rows, where they take no room to speak of.
        made = run.task.arrays(ids) if run.task.apart and len(ids) * run.plan.context <= 2**17 else {}
        for begin, end, cursor in zip([0, *ends[:-1]], ends, cursors, strict=True):
            rows = {name: array[begin:end] for name, array in made.items()} or run.task.arrays(ids[begin:end])
            yield update, cursor, rows
            update += 1


def device_batches(
    run: Run, update: int, cursor: int, past: History | None = None
) -> Generator[ScheduledBatch, None, None]:
    """The same as equal microbatches on the devices, made ahead in a thread; every batch has the same shape.

    Each process makes the rows that its devices hold; of rows that are made together, it keeps these.
    past: what the run has decided so far, to be left out of the data or cut off the learning rate.
    """
    past = past or History()
    order, schedule = run.order.excluding(past.exclude), run.config.schedule
    rates, own = run.rates, mesh.own_rows(run.mesh, run.config.batch.microbatch)
    if past.cuts:
        rates = learning_rate.learning_rates(dataclasses.replace(schedule, cuts=(*schedule.cuts, *past.cuts)), run.plan)

    def feed(before: int = cursor) -> Iterator[ScheduledBatch]:
        for at, after, rows in host_batches(run, update, cursor, order=order, own=own if run.task.apart else None):
            yield _fed(run, at, before, after, rates[at], rows, own)
            before = after

    small = run.plan.sequences.max() * run.plan.context <= 2**15  # batches take no room to speak of
    yield from prefetch(feed(), size=16 if small else 2)


def _fed(
    run: Run, update: int, before: int, cursor: int, rate: np.floating, rows: dict[str, np.ndarray], own: slice
) -> ScheduledBatch:
    """A batch, put on the devices. own: of each microbatch, the rows for those of this process."""
    microbatch = run.config.batch.microbatch
    most = int(run.plan.sequences.max()) // microbatch
    rows = faults.change("data", faults.change("batch", rows, at=update + 1), at=before)
    rate = np.float32(faults.change("learning_rate", rate, at=update + 1))
    count = int(run.plan.sequences[update])
    regime = regime_of(run, update, cursor)
    mine = rows if run.task.apart else {name: _part(array, own, microbatch) for name, array in rows.items()}
    arrays = {name: _microbatches(array, own.stop - own.start, most) for name, array in mine.items()}
    scalars = {
        "microbatches": np.int32(count // microbatch),
        "learning_rate": rate,
        "update": np.int32(update),
        "regime": np.int32(regime),
    }
    batch = {"arrays": arrays, **scalars}
    if not mesh.on_host(run.mesh):
        placed = mesh.put_batch(arrays, run.mesh, own=own, count=microbatch)
        batch = {"arrays": placed, **mesh.put_tree(scalars, mesh.replicated(run.mesh))}
    return ScheduledBatch(update, before, cursor, count, float(rate), regime, batch, run.task.share(rows))


def regime_of(run: Run, update: int, cursor: int) -> int:
    """How many announced changes come before the end of a batch: of the batch size, and of the mixture.

    cursor: behind the batch. Both are functions of the plan, so a run that went back meets them where it did before.
    """
    starts = [start for start, _ in run.order.weights]
    return int(np.searchsorted(run.plan.jumps, update, side="right")) + sum(0 < start < cursor for start in starts)


def sample_ranges(run: Run, start: int, stop: int, past: History) -> Ranges:
    """The ids of the samples at positions start..stop, as ranges, without those already left out."""
    order = run.order.excluding(past.exclude)
    ids = order.sample_id(np.arange(start, stop))
    return to_ranges(ids[~order.excluded(ids)])


def _part(array: np.ndarray, own: slice, microbatch: int) -> np.ndarray:
    """Of (B, ...), these rows of each microbatch."""
    return array.reshape(-1, microbatch, *array.shape[1:])[:, own].reshape(-1, *array.shape[1:])


def _microbatches(array: np.ndarray, rows: int, most: int) -> np.ndarray:
    """(B, T) as (K, m, T) with K = `most`, the unused microbatches zero."""
    result = np.zeros((most, rows, *array.shape[1:]), array.dtype)
    result.reshape(-1, *array.shape[1:])[: len(array)] = array
    return result
