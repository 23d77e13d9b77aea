"""Where the parts are put together: a configuration becomes a run. What notebooks, tests and the doors call."""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

from lmjax import axes, faults, machine, optim, parallel, typed
from lmjax.config import ClassificationConfig, Config, DataConfig, GPTConfig, InContextConfig, UserError
from lmjax.data import records, tokenizer
from lmjax.data.feed import prefetch
from lmjax.data.order import Order, Ranges, to_ranges
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.evaluate import emergence
from lmjax.models import families
from lmjax.tasks import choose
from lmjax.tasks.task import Task
from lmjax.train import checkpoint, metrics
from lmjax.train import state as states
from lmjax.train import step as steps
from lmjax.train.history import History
from lmjax.train.parts import Fed
from lmjax.train.state import State


@dataclass(frozen=True)
class Run:
    """A configuration with everything it determines; nothing has happened yet.

    `config` is resolved (every 0 that means "take it from elsewhere" is filled in).
    """

    config: Config
    store: Store
    task: Task
    optimizer: optax.GradientTransformation
    plan: optim.BatchPlan
    rates: np.ndarray
    mesh: Mesh

    @property
    def order(self) -> Order:
        """Which sample stands at which position."""
        return self.task.order

    @property
    def model(self) -> Any:
        """The Linen module that is trained."""
        return self.task.model


def resolve(config: Config, vocab_size: int) -> Config:
    """The configuration with the tokenizer's vocabulary filled in.

    UserError: the model's vocabulary is smaller than the tokenizer's.
    """
    model = config.model
    if 0 < model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's {vocab_size} entries: token ids "
            f"would fall outside the embedding; set model.vocab_size=0 to take the tokenizer's"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size))


def build(config: Config, store: Store) -> Run:
    """Puts the parts together. UserError: settings that do not fit each other, the data or the devices."""
    config = _with_labels(resolve(config, store.tokenizer.vocab_size), store)
    return _put_together(config, store, choose.build(config, store))


def without_data(config: Config, devices: Sequence[Any] | None = None) -> Run:
    """A run of a resolved configuration that can be compiled (`abstract`, `update_function`), but reads nothing.

    devices: default those of this process; others, for which a program may be compiled, need not be there.
    """
    nothing: Any = None
    return _put_together(config, nothing, choose.without_data(config), devices)


def _put_together(config: Config, store: Store, task: Task, devices: Sequence[Any] | None = None) -> Run:
    plan = _plan(config)
    mesh = parallel.make_mesh(config.parallel, microbatch=config.batch.microbatch, devices=devices)
    families.check_mesh(config.model, mesh.shape)
    return Run(
        config=config,
        store=store,
        task=task,
        optimizer=optim.optimizer(config.optimizer),
        plan=plan,
        rates=optim.learning_rates(config.schedule, plan),
        mesh=mesh,
    )


def _with_labels(config: Config, store: Store) -> Config:
    """The labels of the data filled in. UserError: the configuration has others."""
    objective = config.objective
    if not isinstance(objective, ClassificationConfig):
        return config
    found = records.labels(store)
    if objective.labels not in ((), found):
        raise UserError(
            f"the labels of the data are {', '.join(found)}, those of objective.labels others: leave it out"
        )
    return dataclasses.replace(config, objective=dataclasses.replace(objective, labels=found))


def init(run: Run) -> State:
    """The state before update 0: a function of the configuration and the seed."""
    return init_function(run)()


def init_function(run: Run) -> Any:
    """What `init` calls, jitted: every leaf is made where it is kept, and never exists whole on one device."""
    make = partial(_initial, run.config, run.task, run.optimizer)
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract(run)))


def abstract(run: Run) -> State:
    """The shapes, dtypes and shardings of the state: what restoring a checkpoint needs. Nothing is computed."""
    shapes = jax.eval_shape(partial(_initial, run.config, run.task, run.optimizer))
    places = axes.shardings(shapes, shapes.params, mesh=run.mesh, table=families.logical_axes(run.config.model))
    places = places.replace(carry=jax.tree.map(lambda _: parallel.rows(run.mesh, leading=1), shapes.carry))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )


def abstract_batch(run: Run) -> dict[str, Any]:
    """The same of what an update is fed (`Fed.batch`)."""
    microbatch, most = run.config.batch.microbatch, int(_plan(run.config).microbatches.max())
    kinds = {"microbatches": np.int32, "learning_rate": np.float32, "update": np.int32, "stretch": np.int32}
    rows, whole = parallel.rows(run.mesh, leading=1), parallel.replicated(run.mesh)
    arrays = {
        name: jax.ShapeDtypeStruct((most, *blank.shape), blank.dtype, sharding=rows)
        for name, blank in run.task.blank(microbatch).items()
    }
    scalars = {name: jax.ShapeDtypeStruct((), kind, sharding=whole) for name, kind in kinds.items()}
    return {"arrays": arrays, **scalars}


def _initial(config: Config, task: Task, optimizer: optax.GradientTransformation) -> State:
    inputs, named = task.example()
    microbatches = int(_plan(config).microbatches.max())
    return states.init(
        task.model,
        optimizer,
        seed=config.seed,
        ema=config.optimizer.ema > 0,
        guard=config.guard,
        inputs=inputs,
        named=named,
        carry=task.begin((microbatches, config.batch.microbatch)),
    )


def _plan(config: Config) -> optim.BatchPlan:
    return optim.batch_plan(config.batch, config.train, families.tokens(config.model))


def update_function(run: Run, *, at_once: bool = False) -> Any:
    """The pure update `(state, batch) -> (state, metrics)`, compiled for the mesh of the run, its state donated.

    at_once: that of several batches in turn, as `step.several` has it.
    """
    config, mapped = run.config, run.config.parallel.form == "pmap"

    def loss(params: Any, microbatch: Any, rng: jax.Array, *carry: Any) -> tuple[Any, ...]:
        with nullcontext() if mapped else on_mesh(run):
            found = run.task.loss(params, microbatch, rng=rng, carry=carry[0] if carry else None, train=True)
        return found if carry else found[:3]

    def place(gradients: Any) -> Any:
        return jax.lax.with_sharding_constraint(gradients, places.params) if several else gradients

    several, places = run.mesh.size > 1 and not mapped, jax.tree.map(lambda leaf: leaf.sharding, abstract(run))
    settings: Any = {"guard": config.guard, "ema": config.optimizer.ema, "seed": config.seed, "place": place}
    update = steps.make_update(loss, run.optimizer, axis="data" if mapped else None, **settings)
    if mapped:
        update = parallel.mapped(update, run.mesh)
    update = steps.several(update) if at_once else update
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def on_mesh(run: Run) -> AbstractContextManager[None]:
    """While a function of the model is traced: for the devices of the run."""
    return axes.on(run.mesh, families.logical_axes(run.config.model))


def check(config: Config) -> None:
    """UserError: settings that cannot work whatever the data are."""
    families.check(config.model)
    plan = _plan(config)
    optim.learning_rates(config.schedule, plan)
    optim.optimizer(config.optimizer)
    mesh = parallel.make_mesh(config.parallel, microbatch=config.batch.microbatch)
    families.check_mesh(config.model, mesh.shape)
    emergence.load(config.evaluate.tasks, trained_in_context(config))


def tokens_after(run: Run, update: int) -> int:
    """Tokens trained on after `update` updates."""
    plan = run.plan
    return plan.tokens if update == plan.updates else int(plan.tokens_before[update])


def describe_data(run: Run) -> list[str]:
    """What is read, a line each: every source with the hash of its documents, then what the task makes of them."""
    sources = run.store.manifest["sources"]
    lines = [f"{s['name']}: {s['documents']:,} documents, sha256 {s['documents_sha256']}" for s in sources]
    return [*lines, *run.task.describe()]


# ---- Data to devices ------------------------------------------------------------------------------------------------


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


def batches(run: Run, update: int, cursor: int, past: History | None = None) -> Generator[Fed, None, None]:
    """The same as equal microbatches on the devices, made ahead in a thread; every batch has the same shape.

    Each process makes the rows that its devices hold; of rows that are made together, it keeps these.
    past: what the run has decided so far, to be left out of the data or cut off the learning rate.
    """
    past = past or History()
    order, schedule = run.order.excluding(past.exclude), run.config.schedule
    rates, own = run.rates, parallel.own_rows(run.mesh, run.config.batch.microbatch)
    if past.cuts:
        rates = optim.learning_rates(dataclasses.replace(schedule, cuts=(*schedule.cuts, *past.cuts)), run.plan)

    def feed(before: int = cursor) -> Iterator[Fed]:
        for at, after, rows in host_batches(run, update, cursor, order=order, own=own if run.task.apart else None):
            yield _fed(run, at, before, after, rates[at], rows, own)
            before = after

    small = run.plan.sequences.max() * run.plan.context <= 2**15  # batches take no room to speak of
    yield from prefetch(feed(), size=16 if small else 2)


def _fed(
    run: Run, update: int, before: int, cursor: int, rate: np.floating, rows: dict[str, np.ndarray], own: slice
) -> Fed:
    """A batch, put on the devices. own: of each microbatch, the rows for those of this process."""
    microbatch = run.config.batch.microbatch
    most = int(run.plan.sequences.max()) // microbatch
    rows = faults.change("data", faults.change("batch", rows, at=update + 1), at=before)
    rate = np.float32(faults.change("learning_rate", rate, at=update + 1))
    count = int(run.plan.sequences[update])
    stretch = stretch_of(run, update, cursor)
    mine = rows if run.task.apart else {name: _part(array, own, microbatch) for name, array in rows.items()}
    arrays = {name: _microbatches(array, own.stop - own.start, most) for name, array in mine.items()}
    scalars = {
        "microbatches": np.int32(count // microbatch),
        "learning_rate": rate,
        "update": np.int32(update),
        "stretch": np.int32(stretch),
    }
    batch = {"arrays": arrays, **scalars}
    if not parallel.on_host(run.mesh):
        placed = parallel.put_batch(arrays, run.mesh, own=own, count=microbatch)
        batch = {"arrays": placed, **parallel.put(scalars, parallel.replicated(run.mesh))}
    return Fed(update, before, cursor, count, float(rate), stretch, batch, run.task.share(rows))


def stretch_of(run: Run, update: int, cursor: int) -> int:
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


# ---- The configuration and the devices of a run ---------------------------------------------------------------------


def trained_in_context(config: Config) -> InContextConfig | None:
    """What the documents of tasks were, if these are what the run reads."""
    data = config.data
    if not isinstance(data, DataConfig):
        return None
    named = [source.source for source in data.mixture if not source.files] or [data.source] * (not data.files)
    return data.in_context if "in_context" in named else None


def averaged(state: State) -> Any:
    """The parameters to measure and to use: their moving average where there is one."""
    return state.params if state.ema is None else state.ema


def peak_flops(run: Run) -> float:
    """What the devices of the run can do together, in FLOP/s."""
    return machine.peak_flops(run.config.model.dtype, devices=list(run.mesh.devices.flat))


# ---- A trained model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model to use: `model.apply({"params": params}, ids)`."""

    config: Config
    task: Task
    params: Any
    tokenizer: Tokenizer
    update: int

    @property
    def model(self) -> Any:
        """The Linen module."""
        return self.task.model


def load(run_dir: Path, update: int | None = None) -> Trained:
    """The newest whole checkpoint of a run, or the one after so many updates.

    UserError: not a run, or no such checkpoint. CheckpointError: none can be read.
    """
    config = saved_config(run_dir)
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    if update is not None and update not in saved:
        raise UserError(f"{run_dir} has no checkpoint of update {update}, but of {', '.join(map(str, sorted(saved)))}")
    model: Any = config.model
    if isinstance(model, GPTConfig):  # a kernel of other devices than these
        model = dataclasses.replace(model, attention="auto")
    task = choose.without_data(dataclasses.replace(config, model=model))
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(partial(_initial, config, task, optim.optimizer(config.optimizer))),
    )
    found, state, _ = checkpoint.load(run_dir / "checkpoints", abstract, update=update)
    known = tokenizer.load(run_dir / "tokenizer.json")
    return Trained(config, task, averaged(state), known, found.meta["update"])


def saved_config(run_dir: Path) -> Config:
    """The configuration of a run. UserError: it is not a run."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    return typed.from_json((run_dir / "config.json").read_text(), Config)


def best(run_dir: Path) -> tuple[int, float] | None:
    """The checkpoint with the lowest validation loss, of those that are kept and evaluated: (update, loss)."""
    saved = {int(folder.name) for folder in checkpoint.folders(run_dir / "checkpoints")}
    records = metrics.read(run_dir / "metrics.jsonl")
    scores = {r["update"]: r["val_loss"] for r in records if r.get("val_loss") and r["update"] in saved}
    update = min(scores, key=lambda update: scores[update], default=None)
    return None if update is None else (update, scores[update])
