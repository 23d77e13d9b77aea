"""Scheduled batches: from a position of the run to arrays on the devices."""

import dataclasses
from collections.abc import Generator, Iterator

import numpy as np

from lmjax.config import UserError
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
    """Yield the batches on the host, from a position to the end of the run.

    Each is (update, cursor after the batch, arrays (B, ...)).

    Args:
        run: the run.
        update: number of updates applied before the first batch.
        cursor: cursor before the first batch.
        order: order of the samples; default: that of the run.
        own: return only these rows of each microbatch.
    """
    order, microbatch = order or run.order, run.config.batch.microbatch
    own = own or slice(0, microbatch)
    while update < run.plan.updates:
        # Drawing the samples of 16 batches takes as long as drawing those of 2.
        ends = np.cumsum(run.plan.sequences[update : update + 16])
        ids, _ = order.take(cursor, int(ends[-1]))
        cursors = (order.position(ids[ends - 1]) + 1).tolist()
        ids, ends = _part(ids, own, microbatch), ends // microbatch * (own.stop - own.start)
        # Small rows are built together, too.
        together = run.samples.rows_independent and len(ids) * run.plan.context <= 2**17
        all_rows = run.samples.arrays(ids) if together else {}
        for begin, end, cursor in zip([0, *ends[:-1]], ends, cursors, strict=True):
            rows = {name: array[begin:end] for name, array in all_rows.items()} or run.samples.arrays(ids[begin:end])
            yield update, cursor, rows
            update += 1


def device_batches(
    run: Run, update: int, cursor: int, past: History | None = None
) -> Generator[ScheduledBatch, None, None]:
    """Yield scheduled batches on the devices, prefetched by a thread.

    They reach from a position to the end of the run.

    All batches have the same shape (K, m, ...). Each process builds the rows of its devices; if rows depend on each
    other, it builds all of them and keeps its own.

    Args:
        run: the run.
        update: number of updates applied before the first batch.
        cursor: cursor before the first batch.
        past: history of the run, with the data to leave out and the cuts of the learning rate.
    """
    past = past or History()
    order, schedule = run.order.excluding(past.exclude), run.config.schedule
    rates, own = run.rates, mesh.own_rows(run.mesh, run.config.batch.microbatch)
    if past.cuts:
        rates = learning_rate.learning_rates(dataclasses.replace(schedule, cuts=(*schedule.cuts, *past.cuts)), run.plan)

    def feed(before: int = cursor) -> Iterator[ScheduledBatch]:
        needed = own if run.samples.rows_independent else None
        for at, after, rows in host_batches(run, update, cursor, order=order, own=needed):
            yield _scheduled(run, at, before, after, rates[at], rows, own)
            before = after

    small = run.plan.sequences.max() * run.plan.context <= 2**15  # tokens
    yield from prefetch(feed(), size=16 if small else 2)


def _scheduled(
    run: Run, update: int, before: int, cursor: int, rate: np.floating, rows: dict[str, np.ndarray], own: slice
) -> ScheduledBatch:
    """Put a batch on the devices; `own`: rows of each microbatch of this process."""
    microbatch = run.config.batch.microbatch
    most = int(run.plan.sequences.max()) // microbatch
    rows, rate = faults.change_batch(rows, rate, update=update, cursor=before)
    rate = np.float32(rate)
    count = int(run.plan.sequences[update])
    regime = regime_of(run, update, cursor)
    mine = rows
    if not run.samples.rows_independent:
        mine = {name: _part(array, own, microbatch) for name, array in rows.items()}
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
    return ScheduledBatch(update, before, cursor, count, float(rate), regime, batch, run.samples.share(rows))


def regime_of(run: Run, update: int, cursor: int) -> int:
    """Return the number of announced changes before the end of a batch.

    Changes are those of the batch size and of the mixture.

    It is a function of the plan, and therefore the same after a rollback.

    Args:
        run: the run.
        update: number of updates applied before the batch.
        cursor: cursor after the batch.
    """
    starts = [start for start, _ in run.order.weights]
    return int(np.searchsorted(run.plan.jumps, update, side="right")) + sum(0 < start < cursor for start in starts)


def sample_ranges(run: Run, start: int, stop: int, past: History) -> Ranges:
    """Return the ids of the samples at positions start to stop, as ranges.

    Samples that the history leaves out are missing.

    Raises:
        UserError: The positions are more than the run has samples, which no rollback skips.
    """
    most = max(int(run.plan.sequences.sum()), 1 << 22)
    if stop - start > most:
        raise UserError(
            f"journal.jsonl: positions {start} to {stop} are more than the {most} of the run: it was edited"
        )
    order = run.order.excluding(past.exclude)
    ids = order.sample_id(np.arange(start, stop))
    return to_ranges(ids[~order.excluded(ids)])


def _part(array: np.ndarray, own: slice, microbatch: int) -> np.ndarray:
    """Select rows of each microbatch of (B, ...)."""
    return array.reshape(-1, microbatch, *array.shape[1:])[:, own].reshape(-1, *array.shape[1:])


def _microbatches(array: np.ndarray, rows: int, most: int) -> np.ndarray:
    """Reshape (B, ...) to (K, m, ...) with K = `most`; unused microbatches are zero."""
    result = np.zeros((most, rows, *array.shape[1:]), array.dtype)
    result.reshape(-1, *array.shape[1:])[: len(array)] = array
    return result
