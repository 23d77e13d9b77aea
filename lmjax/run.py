"""Where the parts are put together: a configuration becomes a run. What notebooks, tests and the doors call."""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

from lmjax import faults, machine, objectives, optim, parallel, typed
from lmjax.config import CausalConfig, Config, UserError
from lmjax.data import examples, tokenizer
from lmjax.data.feed import prefetch
from lmjax.data.order import Order, Ranges, to_ranges
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models import flops, ngram
from lmjax.models.gpt import GPT
from lmjax.train import checkpoint
from lmjax.train import state as states
from lmjax.train import step as steps
from lmjax.train.history import History
from lmjax.train.parts import Fed
from lmjax.train.signals import StopRequest
from lmjax.train.state import State

BASELINE_TOKENS = 20_000_000


class Interrupted(RuntimeError):
    """A signal asked the run to stop."""


@dataclass(frozen=True)
class Run:
    """A configuration with everything it determines; nothing has happened yet.

    `config` is resolved (every 0 that means "take it from elsewhere" is filled in).
    """

    config: Config
    store: Store
    order: Order
    model: GPT
    optimizer: optax.GradientTransformation
    plan: optim.BatchPlan
    rates: np.ndarray
    mesh: Mesh


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
    config = resolve(config, store.tokenizer.vocab_size)
    plan = optim.batch_plan(config.batch, config.train, context=config.model.context)
    return Run(
        config=config,
        store=store,
        order=sample_order(config, store),
        model=GPT(config.model),
        optimizer=optim.optimizer(config.optimizer),
        plan=plan,
        rates=optim.learning_rates(config.schedule, plan),
        mesh=parallel.make_mesh(config.parallel, microbatch=config.batch.microbatch),
    )


def sample_order(config: Config, store: Store) -> Order:
    """Which sample stands at which position, from the configuration and the corpus alone."""
    context, data = config.model.context, config.data
    weights = tuple(source.weight for source in data.mixture) or (1.0,)
    changes = ((0, weights), *((token // context, shares) for token, shares in data.mixture_changes))
    return Order(
        tuple(examples.windows(tokens, context) for tokens in store.sources),
        seed=config.seed,
        weights=changes,
        exclude=data.exclude,
        shuffle=data.shuffle,
    )


def init(run: Run) -> State:
    """The state before update 0: a function of the configuration and the seed."""
    make = partial(states.init, run.model, run.optimizer, seed=run.config.seed, **_state_settings(run.config))
    return jax.jit(make, out_shardings=parallel.replicated(run.mesh))()


def _state_settings(config: Config) -> dict[str, Any]:
    return {"ema": config.optimizer.ema > 0, "guard": config.guard}


def update_function(run: Run) -> Any:
    """The pure update `(state, batch) -> (state, metrics)`, jitted, its state donated."""
    loss = partial(objectives.causal, run.model, config=run.config.objective, train=True)
    update = steps.make_update(
        lambda params, microbatch, rng: loss(params, microbatch, rng=rng),
        run.optimizer,
        guard=run.config.guard,
        ema=run.config.optimizer.ema,
        seed=run.config.seed,
    )
    return jax.jit(update, donate_argnums=0)


def check(config: Config) -> None:
    """UserError: settings that cannot work whatever the data are."""
    flops.check(config.model)
    plan = optim.batch_plan(config.batch, config.train, config.model.context)
    optim.learning_rates(config.schedule, plan)
    optim.optimizer(config.optimizer)
    parallel.make_mesh(config.parallel, microbatch=config.batch.microbatch)


def tokens_after(run: Run, update: int) -> int:
    """Tokens trained on after `update` updates."""
    plan = run.plan
    return plan.tokens if update == plan.updates else int(plan.tokens_before[update])


def describe_data(run: Run) -> list[str]:
    """What is read, a line each: every source with the hash of its documents, then the tokens."""
    store = run.store
    lines = [
        f"{source['name']}: {source['documents']:,} documents, sha256 {source['documents_sha256']}"
        for source in store.manifest["sources"]
    ]
    tokens = f"{corpus_tokens(run):,} for training, {len(store.validation.ids):,} for validation"
    return [*lines, f"tokens: {tokens}, {store.tokenizer.vocab_size:,} in the vocabulary"]


def corpus_tokens(run: Run) -> int:
    """Tokens of the training split, all sources together."""
    return sum(len(tokens.ids) for tokens in run.store.sources)


# ---- Data to devices ------------------------------------------------------------------------------------------------


def host_batches(
    run: Run, update: int, cursor: int, *, order: Order | None = None
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(update, cursor after it, arrays (B, T)) from a position of the run onwards, on the host."""
    order = order or run.order
    while update < run.plan.updates:
        ids, cursor = order.take(cursor, int(run.plan.sequences[update]))
        yield update, cursor, arrays(run, ids)
        update += 1


def arrays(run: Run, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The rows (B, T) of these samples."""
    return examples.causal(
        run.store.sources,
        ids,
        order=run.order,
        context=run.config.model.context,
        packed=run.config.data.packed,
        end_of_text=run.store.tokenizer.end_of_text,
    )


def batches(run: Run, update: int, cursor: int, past: History | None = None) -> Generator[Fed, None, None]:
    """The same as equal microbatches on the devices, made ahead in a thread; every batch has the same shape.

    past: what the run has decided so far, to be left out of the data or cut off the learning rate.
    """
    past = past or History()
    order = run.order.excluding(past.exclude)
    schedule = run.config.schedule
    rates = run.rates
    if past.cuts:
        rates = optim.learning_rates(dataclasses.replace(schedule, cuts=(*schedule.cuts, *past.cuts)), run.plan)

    def feed() -> Iterator[Fed]:
        before = cursor
        for at, after, rows in host_batches(run, update, cursor, order=order):
            yield _fed(run, at, before, after, rates[at], rows)
            before = after

    yield from prefetch(feed(), size=2)


def _fed(run: Run, update: int, before: int, cursor: int, rate: np.floating, rows: dict[str, np.ndarray]) -> Fed:
    """A batch, put on the devices."""
    microbatch = run.config.batch.microbatch
    most = int(run.plan.sequences.max()) // microbatch
    rows = faults.change("data", faults.change("batch", rows, at=update + 1), at=before)
    rate = np.float32(faults.change("learning_rate", rate, at=update + 1))
    count = int(run.plan.sequences[update])
    stretch = stretch_of(run, update, cursor)
    scalars = {
        "microbatches": np.int32(count // microbatch),
        "learning_rate": rate,
        "update": np.int32(update),
        "stretch": np.int32(stretch),
    }
    batch = {
        "arrays": parallel.put_batch({name: _microbatches(a, microbatch, most) for name, a in rows.items()}, run.mesh),
        **parallel.put(scalars, parallel.replicated(run.mesh)),
    }
    return Fed(update, before, cursor, count, float(rate), stretch, batch)


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


def _microbatches(array: np.ndarray, rows: int, most: int) -> np.ndarray:
    """(B, T) as (K, m, T) with K = `most`, the unused microbatches zero."""
    result = np.zeros((most, rows, *array.shape[1:]), array.dtype)
    result.reshape(-1, *array.shape[1:])[: len(array)] = array
    return result


# ---- Measuring ------------------------------------------------------------------------------------------------------


def evaluator(run: Run, *, stop: StopRequest | None = None) -> Callable[[State, bool], dict[str, float]]:
    """A function (state, whole) -> val_loss (nats a token) and val_bits_per_byte on the validation split.

    It reads every token once, or the first `train.evaluate_batches` (`final_batches`, with `whole`) microbatches. The
    average of the parameters is used where the run keeps one. Interrupted: `stop` was requested on the way.
    """
    config = run.config

    @jax.jit
    def sums(params: Any, arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # Without z-loss: the number to compare.
        loss, weight, _ = objectives.causal(run.model, params, arrays, config=CausalConfig(), train=False)
        return loss, weight

    def evaluate(state: State, whole: bool) -> dict[str, float]:
        params, most = averaged(state), config.train.final_batches if whole else config.train.evaluate_batches
        found = []
        for number, rows in enumerate(validation_batches(run)):
            faults.reach("evaluate.batch")
            if number == most > 0:
                break
            if stop is not None and stop.name and parallel.alone():  # else the others would wait for this one
                raise Interrupted("the evaluation was interrupted by a signal")
            found.append(sums(params, parallel.put_batch(rows, run.mesh, leading=0)))
        totals = np.sum(np.asarray(jax.device_get(found), np.float64), axis=0)
        loss = float(totals[0] / totals[1])
        return {"val_loss": loss, "val_bits_per_byte": bits_per_byte(run, loss)}

    return evaluate


def validation_batches(run: Run) -> Iterator[dict[str, np.ndarray]]:
    """The validation split as microbatches of the shape that training uses."""
    context, rows = run.config.model.context, run.config.batch.microbatch
    return examples.validation(run.store.validation, context=context, microbatch=rows, **_packing(run))


def bits_per_byte(run: Run, nats_per_token: float) -> float:
    """The information of all predicted validation tokens over the bytes of their text: no matter which tokenizer."""
    tokens, packing = run.store.validation, _packing(run)
    unpredicted = run.store.tokenizer.decode(tokens.ids[examples.unpredicted(tokens, **packing)])
    nats = nats_per_token * examples.predicted(tokens, **packing)
    return nats / math.log(2) / (tokens.bytes - len(unpredicted.encode()))


def _packing(run: Run) -> dict[str, Any]:
    return {"packed": run.config.data.packed, "end_of_text": run.store.tokenizer.end_of_text}


def averaged(state: State) -> Any:
    """The parameters to measure and to use: their moving average where there is one."""
    return state.params if state.ema is None else state.ema


def baselines(run: Run) -> dict[str, float]:
    """Bits per byte of a byte unigram and of an interpolated Kneser-Ney 5-gram over the same tokens, same split.

    They count at most `BASELINE_TOKENS`, the same number from the start of each source.
    """
    tokenizer, sources = run.store.tokenizer, run.store.sources
    training = [np.asarray(tokens.ids[: BASELINE_TOKENS // len(sources)]) for tokens in sources]
    validation, end = np.asarray(run.store.validation.ids), tokenizer.end_of_text

    def text(ids: np.ndarray) -> bytes:
        return tokenizer.decode(ids[ids != end] if end is not None else ids).encode()

    unigram = ngram.unigram_bits_per_byte(b"".join(map(text, training)), text(validation))
    nats = ngram.kneser_ney(training, validation, vocab_size=tokenizer.vocab_size, order=5, end_of_text=end)
    return {
        "unigram_bits_per_byte": unigram,
        "kneser_ney_5gram_bits_per_byte": bits_per_byte(run, nats / (len(validation) - 1)),
    }


def peak_flops(run: Run) -> float:
    """What the devices of the run can do together, in FLOP/s."""
    return machine.peak_flops(run.config.model.dtype, devices=list(run.mesh.devices.flat))


# ---- A trained model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A model to use: `model.apply({"params": params}, ids)`."""

    config: Config
    model: GPT
    params: Any
    tokenizer: Tokenizer
    update: int


def load(run_dir: Path) -> Trained:
    """The newest whole checkpoint of a run. UserError: not a run. CheckpointError: no checkpoint can be read."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    config = typed.from_json((run_dir / "config.json").read_text(), Config)
    model = GPT(config.model)
    init = partial(states.init, model, optim.optimizer(config.optimizer), **_state_settings(config))
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), jax.eval_shape(partial(init, seed=0))
    )
    found, state, _ = checkpoint.load(run_dir / "checkpoints", abstract)
    return Trained(config, model, averaged(state), tokenizer.load(run_dir / "tokenizer.json"), found.meta["update"])


def expected_vocabulary(config: Config) -> int:
    """The size of the vocabulary before any text is read; for characters a guess."""
    choice = config.data.tokenizer
    if config.model.vocab_size:
        return config.model.vocab_size
    if choice.kind == "file":
        return tokenizer.load(Path(choice.path)).vocab_size
    return {"bpe": choice.vocab_size, "bytes": 257, "characters": 100}[choice.kind]
