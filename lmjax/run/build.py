"""Build a run: a configuration becomes model, data, optimizer and compiled update."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lmjax.config import ClassificationConfig, Config, DataConfig, InContextConfig, UserError
from lmjax.config.chat import ConversationConfig
from lmjax.config.objectives import DirectConfig, RewardConfig
from lmjax.config.policies import PolicyConfig, PPOConfig
from lmjax.data.batches.records import labels
from lmjax.data.chat_tokens import completed
from lmjax.data.control_tokens import CONTROL
from lmjax.data.order.mixture import check_weights
from lmjax.data.order.order import Order
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import load_tokenizer
from lmjax.evaluation import in_training
from lmjax.inference import incremental
from lmjax.models import registry
from lmjax.objectives.objective import Objective
from lmjax.objectives.registry import build_objective, objective_without_data
from lmjax.objectives.samples import Samples
from lmjax.optim.batch_plan import BatchPlan, batch_plan, with_any_length
from lmjax.optim.learning_rate import learning_rates
from lmjax.optim.optimizer import make_optimizer
from lmjax.parallel import axes
from lmjax.parallel.mesh import make_mesh, replicated, row_sharding
from lmjax.parallel.pmap import pmap_update
from lmjax.run.dispatch import choose_dispatch
from lmjax.system import machine, seeds
from lmjax.training.dispatch import Dispatch, make_step
from lmjax.training.state import State, init_state
from lmjax.training.step import Step, chain_updates, make_update


@dataclass(frozen=True)
class Run:
    """A configuration and everything that follows from it; building it trains nothing."""

    #: The configuration; values that the data or the tokenizer determine are filled in.
    config: Config
    store: Store
    objective: Objective
    optimizer: optax.GradientTransformation
    #: Size of the batch of every update.
    plan: BatchPlan
    #: Learning rate of every update.
    rates: np.ndarray
    mesh: Mesh

    @property
    def samples(self) -> Samples:
        """The samples of the objective."""
        return self.objective.samples

    @property
    def order(self) -> Order:
        """The order of the samples."""
        return self.samples.order

    @property
    def model(self) -> Any:
        """The Linen module that is trained."""
        return self.objective.model

    @cached_property
    def flops_per_token(self) -> float:
        """Training FLOPs of a token (closed form).

        A policy that learns from its answers also reads each token three times without a gradient, which costs as much
        as one pass with it: to sample it, and with the parameters of the policy and of the reference. The value model
        of PPO reads it once without a gradient.
        """
        objective, flops = self.config.objective, registry.flops_per_token(self.config.model)
        if isinstance(objective, PPOConfig):
            return flops * (1 + objective.epochs + 1 / 3 + objective.epochs)
        return flops * (1 + objective.epochs) if isinstance(objective, PolicyConfig) else flops

    @cached_property
    def peak_flops(self) -> float:
        """FLOP/s of all devices of the run together."""
        return machine.peak_flops(self.config.model.dtype, devices=list(self.mesh.devices.flat))

    @cached_property
    def tokens_per_epoch(self) -> int:
        """Number of training tokens in an epoch; 0 for a run without data."""
        return 0 if self.store is None else self.samples.epoch

    @cached_property
    def dispatch(self) -> Dispatch:
        """How the updates are dispatched to the devices."""
        if self.objective.episodic:  # the answers of an update need the parameters after the previous one
            return Dispatch(serialize=True)
        return choose_dispatch(
            self.config,
            self.plan,
            self.mesh,
            flops_per_token=self.flops_per_token,
            rows_independent=self.samples.rows_independent,
        )

    @cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, to compile and to restore."""
        shapes = jax.eval_shape(partial(initial, self.config, self.objective, self.optimizer))
        table = registry.logical_axes(self.config.model)
        shardings = axes.shardings(shapes, shapes.params, mesh=self.mesh, table=table)
        if self.objective.episodic and shapes.carry is not None:
            carry = axes.shardings(shapes.carry, shapes.carry["values"], mesh=self.mesh, table=table)
        else:
            carry = jax.tree.map(lambda _: row_sharding(self.mesh, leading=1), shapes.carry)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings.replace(carry=carry),
        )

    @cached_property
    def abstract_batch(self) -> dict[str, Any]:
        """Shapes, dtypes and shardings of the batch of an update (`ScheduledBatch.batch`)."""
        dtypes = {"microbatches": np.int32, "learning_rate": np.float32, "update": np.int32, "regime": np.int32}
        rows, everywhere = row_sharding(self.mesh, leading=1), replicated(self.mesh)
        most = int(self.plan.microbatches.max())
        arrays = {
            name: jax.ShapeDtypeStruct((most, *blank.shape), blank.dtype, sharding=rows)
            for name, blank in self.samples.blank(self.config.batch.microbatch).items()
        }
        scalars = {name: jax.ShapeDtypeStruct((), dtype, sharding=everywhere) for name, dtype in dtypes.items()}
        return {"arrays": arrays, **scalars}

    @cached_property
    def shardings(self) -> State:
        """Sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def tokens_after(self, update: int) -> int:
        """Return the number of tokens trained on after `update` updates."""
        return self.plan.tokens if update == self.plan.updates else int(self.plan.tokens_before[update])


# ---- From a configuration to a run ----------------------------------------------------------------------------------


def build(config: Config, store: Store) -> Run:
    """Build the run of a configuration and its prepared data.

    Raises:
        UserError: Settings contradict each other, the data or the devices.
    """
    config = _with_labels(resolve(config, store.tokenizer.vocab_size), store)
    config = _with_epoch(config, store)
    return Run(config=config, store=store, objective=build_objective(config, store), **_parts(config))


def without_data(config: Config, devices: Sequence[Any] | None = None) -> Run:
    """Build a run that can be compiled and planned, but reads no data.

    An unknown size of the vocabulary is estimated; of an unknown length of the run, a beginning is planned that has
    every batch size.

    Args:
        config: the configuration.
        devices: default: the devices of this process. To compile for other devices, they need not exist.

    Raises:
        UserError: Settings contradict each other or the devices.
    """
    registry.check(config.model)
    config, store = resolve(with_any_length(config), expected_vocabulary(config)), _NO_STORE
    return Run(config=config, store=store, objective=objective_without_data(config), **_parts(config, devices))


_NO_STORE: Any = None


def _parts(config: Config, devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """Return the parts of a run that depend on neither its data nor its vocabulary."""
    plan = plan_batches(config)
    rates, optimizer = learning_rates(config.schedule, plan), make_optimizer(config.optimizer)
    mesh = make_mesh(config.parallel, microbatch=config.batch.microbatch, devices=devices)
    registry.check_mesh(config.model, mesh.shape)
    return {"plan": plan, "rates": rates, "optimizer": optimizer, "mesh": mesh}


def plan_batches(config: Config) -> BatchPlan:
    """Return the plan of the batches.

    A sequence of a policy is a prompt with all of its answers.
    """
    return batch_plan(config.batch, config.train, tokens_of_sequence(config))


def tokens_of_sequence(config: Config) -> int:
    """Return the number of tokens that a sequence of the batch size counts.

    A pair of answers counts as one row.
    """
    answers = config.objective.group if isinstance(config.objective, PolicyConfig) else 1
    return answers * registry.tokens(config.model)


def rows_of_sequence(config: Config) -> int:
    """Return the number of rows of a sequence: the answers of a policy or of a pair."""
    if isinstance(config.objective, PolicyConfig):
        return config.objective.group
    return 2 if isinstance(config.objective, RewardConfig | DirectConfig) else 1


def check(config: Config) -> None:
    """Check a configuration against devices and evaluation tasks, before data are read.

    Raises:
        UserError: Settings that cannot work, whatever the data are.
    """
    seeds.check(config.seed)
    registry.check(config.model)
    registry.check_packing(config.model, getattr(config.data, "packed", False))
    if isinstance(config.data, DataConfig):
        check_weights(config.data)
    _parts(with_any_length(config))
    tasks = in_training.load(config.evaluate.tasks, trained_in_context(config))
    if tasks:
        in_training.check(tasks, incremental.limit(config.model))


def resolve(config: Config, vocab_size: int) -> Config:
    """Fill in the size of the vocabulary, that of the tokenizer.

    Raises:
        UserError: The vocabulary of the model is smaller than that of the tokenizer.
    """
    model = config.model
    if 0 < model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's {vocab_size} entries: token ids "
            f"would fall outside the embedding; set model.vocab_size=0 to take the tokenizer's"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size))


def expected_vocabulary(config: Config) -> int:
    """Return the size of the vocabulary before text is read (an estimate for characters)."""
    choice, has_turns = config.data.tokenizer, isinstance(config.data, ConversationConfig)
    if config.model.vocab_size:
        return config.model.vocab_size
    if choice.kind == "file":
        loaded = load_tokenizer(Path(choice.path))
        return completed(loaded).vocab_size if has_turns else loaded.vocab_size
    size = {"bytes": 257 + choice.reserved, "characters": 100 + choice.reserved}.get(choice.kind, choice.vocab_size)
    return size + has_turns * max(0, len(CONTROL) - choice.reserved)


def _with_labels(config: Config, store: Store) -> Config:
    """Fill in the labels of the data.

    Raises:
        UserError: The configuration has other labels.
    """
    objective = config.objective
    if not isinstance(objective, ClassificationConfig):
        return config
    data_labels = labels(store)
    if objective.labels not in ((), data_labels):
        raise UserError(
            f"objective.labels={','.join(objective.labels)}, but the labels of the data are {', '.join(data_labels)}; "
            "leave objective.labels out to take those of the data"
        )
    return dataclasses.replace(config, objective=dataclasses.replace(objective, labels=data_labels))


def _with_epoch(config: Config, store: Store) -> Config:
    """Fill in the number of tokens of an epoch, which `train.epochs` multiplies."""
    if not config.train.epochs:
        return config
    samples = build_objective(with_any_length(config), store).samples
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epoch_tokens=samples.epoch))


def trained_in_context(config: Config) -> InContextConfig | None:
    """Return the settings of the task documents that a run is trained on, or None."""
    data = config.data
    if not isinstance(data, DataConfig):
        return None
    sources = [source.source for source in data.mixture if not source.files] or [data.source] * (not data.files)
    return data.in_context if "in_context" in sources else None


# ---- State ----------------------------------------------------------------------------------------------------------


def init(run: Run) -> State:
    """Return the state before the first update, a function of the configuration and the seed."""
    return init_function(run)()


def init_function(run: Run) -> Any:
    """Return the jitted function of `init`, which creates each leaf with its sharding."""
    return jax.jit(partial(initial, run.config, run.objective, run.optimizer), out_shardings=run.shardings)


def initial(config: Config, objective: Objective, optimizer: optax.GradientTransformation) -> State:
    """Return the state before the first update, to be traced."""
    inputs, named = objective.example()
    microbatches = int(plan_batches(config).microbatches.max())
    state = init_state(
        objective.model,
        optimizer,
        seed=config.seed,
        ema=config.optimizer.ema > 0,
        guard=config.guard,
        inputs=inputs,
        named=named,
        carry=objective.begin((microbatches, config.batch.microbatch)),
    )
    critic = objective.critic(state.params, optimizer)
    return state if critic is None else dataclasses.replace(state, carry=critic)


def with_critic(run: Run, state: State) -> State:
    """Return an initial state whose parameters changed, with what is learned next to them."""

    def critic(params: Any) -> Any:
        return run.objective.critic(params, run.optimizer)

    if jax.eval_shape(critic, state.params) is None:
        return state
    return dataclasses.replace(state, carry=jax.jit(critic, out_shardings=run.shardings.carry)(state.params))


def averaged(state: State) -> Any:
    """Return the parameters to measure and to use: their moving average, if there is one."""
    return state.params if state.ema is None else state.ema


# ---- Update ---------------------------------------------------------------------------------------------------------


def update_function(run: Run, *, chained: bool = False) -> Any:
    """Return the update `(state, batch) -> (state, metrics)`, jitted for the mesh.

    It donates the state.

    Args:
        run: the run.
        chained: return the function of `chain_updates`, which applies several updates.
    """
    config, mapped = run.config, run.config.parallel.form == "pmap"
    sharded, shardings = run.mesh.size > 1 and not mapped, run.shardings

    def loss(params: Any, microbatch: Any, rng: jax.Array, *carry: Any) -> tuple[Any, ...]:
        with nullcontext() if mapped else on_mesh(run):
            sums = run.objective.loss(params, microbatch, rng=rng, carry=carry[0] if carry else None, train=True)
        return sums if carry else sums[:3]

    def place(gradients: Any) -> Any:
        return jax.lax.with_sharding_constraint(gradients, shardings.params) if sharded else gradients

    update = make_update(
        loss,
        run.optimizer,
        guard=config.guard,
        ema=config.optimizer.ema,
        ema_warmup=config.optimizer.ema_warmup,
        seed=config.seed,
        place=place,
        axis="data" if mapped else None,
    )
    if mapped:
        update = pmap_update(update, run.mesh)
    return jax.jit(chain_updates(update) if chained else update, donate_argnums=0, out_shardings=(shardings, None))


def step_function(run: Run) -> Step:
    """Return the step that the training loop calls: the updates of one dispatch."""
    return make_step(update_function(run, chained=run.dispatch.updates_per_dispatch > 1), run.dispatch)


def on_mesh(run: Run) -> AbstractContextManager[None]:
    """Context in which functions of the model are traced for the devices of the run."""
    return axes.on(run.mesh, registry.logical_axes(run.config.model))


# ---- Data -----------------------------------------------------------------------------------------------------------


def describe_data(run: Run) -> list[str]:
    """Describe the data: each source with its hash, the samples, notes on the figures."""
    named = [(s, "document" + "s" * (s["documents"] != 1)) for s in run.store.manifest["sources"]]
    lines = [f"{s['name']}: {s['documents']:,} {noun}, sha256 {s['documents_sha256']}" for s, noun in named]
    return [*lines, *run.samples.describe(), *run.objective.notes()]
