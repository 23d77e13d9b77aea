"""Where the parts are put together: a configuration becomes a run. Called by notebooks, tests and the command line."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lmjax.config import ClassificationConfig, Config, DataConfig, InContextConfig, UserError
from lmjax.data.batches.records import labels
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.evaluation import in_training
from lmjax.models import registry
from lmjax.objectives.objective import Objective
from lmjax.objectives.registry import build_objective, objective_without_data
from lmjax.optim import batch_plan, learning_rate
from lmjax.optim.optimizer import make_optimizer
from lmjax.parallel import axes
from lmjax.parallel.mesh import make_mesh, replicated, row_sharding
from lmjax.parallel.pmap import pmap_update
from lmjax.system import machine
from lmjax.training import step
from lmjax.training.state import State, init_state


@dataclass(frozen=True)
class Run:
    """A configuration with everything it determines; nothing has happened yet.

    `config` is resolved (every 0 that means "take it from elsewhere" is filled in).
    """

    config: Config
    store: Store
    task: Objective
    optimizer: optax.GradientTransformation
    plan: batch_plan.BatchPlan
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
    return _put_together(config, store, build_objective(config, store))


def without_data(config: Config, devices: Sequence[Any] | None = None) -> Run:
    """A run of a resolved configuration that can be compiled (`abstract`, `update_function`), but reads nothing.

    devices: default those of this process; others, for which a program may be compiled, need not be there.
    """
    nothing: Any = None
    return _put_together(config, nothing, objective_without_data(config), devices)


def _put_together(config: Config, store: Store, task: Objective, devices: Sequence[Any] | None = None) -> Run:
    plan = _plan(config)
    mesh = make_mesh(config.parallel, microbatch=config.batch.microbatch, devices=devices)
    registry.check_mesh(config.model, mesh.shape)
    return Run(
        config=config,
        store=store,
        task=task,
        optimizer=make_optimizer(config.optimizer),
        plan=plan,
        rates=learning_rate.learning_rates(config.schedule, plan),
        mesh=mesh,
    )


def _with_labels(config: Config, store: Store) -> Config:
    """The labels of the data filled in. UserError: the configuration has others."""
    objective = config.objective
    if not isinstance(objective, ClassificationConfig):
        return config
    found = labels(store)
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
    make = partial(initial, run.config, run.task, run.optimizer)
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract(run)))


def abstract(run: Run) -> State:
    """The shapes, dtypes and shardings of the state: what restoring a checkpoint needs. Nothing is computed."""
    shapes = jax.eval_shape(partial(initial, run.config, run.task, run.optimizer))
    places = axes.shardings(shapes, shapes.params, mesh=run.mesh, table=registry.logical_axes(run.config.model))
    places = places.replace(carry=jax.tree.map(lambda _: row_sharding(run.mesh, leading=1), shapes.carry))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )


def abstract_batch(run: Run) -> dict[str, Any]:
    """The same of what an update is fed (`Fed.batch`)."""
    microbatch, most = run.config.batch.microbatch, int(_plan(run.config).microbatches.max())
    kinds = {"microbatches": np.int32, "learning_rate": np.float32, "update": np.int32, "regime": np.int32}
    rows, whole = row_sharding(run.mesh, leading=1), replicated(run.mesh)
    arrays = {
        name: jax.ShapeDtypeStruct((most, *blank.shape), blank.dtype, sharding=rows)
        for name, blank in run.task.blank(microbatch).items()
    }
    scalars = {name: jax.ShapeDtypeStruct((), kind, sharding=whole) for name, kind in kinds.items()}
    return {"arrays": arrays, **scalars}


def initial(config: Config, task: Objective, optimizer: optax.GradientTransformation) -> State:
    """Build the state before the first update."""
    inputs, named = task.example()
    microbatches = int(_plan(config).microbatches.max())
    return init_state(
        task.model,
        optimizer,
        seed=config.seed,
        ema=config.optimizer.ema > 0,
        guard=config.guard,
        inputs=inputs,
        named=named,
        carry=task.begin((microbatches, config.batch.microbatch)),
    )


def _plan(config: Config) -> batch_plan.BatchPlan:
    return batch_plan.batch_plan(config.batch, config.train, registry.tokens(config.model))


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
    update = step.make_update(loss, run.optimizer, axis="data" if mapped else None, **settings)
    if mapped:
        update = pmap_update(update, run.mesh)
    update = step.chain_updates(update) if at_once else update
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def on_mesh(run: Run) -> AbstractContextManager[None]:
    """While a function of the model is traced: for the devices of the run."""
    return axes.on(run.mesh, registry.logical_axes(run.config.model))


def check(config: Config) -> None:
    """UserError: settings that cannot work whatever the data are."""
    registry.check(config.model)
    plan = _plan(config)
    learning_rate.learning_rates(config.schedule, plan)
    make_optimizer(config.optimizer)
    mesh = make_mesh(config.parallel, microbatch=config.batch.microbatch)
    registry.check_mesh(config.model, mesh.shape)
    in_training.load(config.evaluate.tasks, trained_in_context(config))


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
