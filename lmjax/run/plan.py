"""The plan of a run: tables of what it will do and need; nothing is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from lmjax.config import ClassificationConfig, Config, GPTConfig, PPOConfig, UserError
from lmjax.config.objectives import RewardConfig
from lmjax.config.policies import PolicyConfig
from lmjax.display.format import duration, memory, quantity
from lmjax.models import classifier, costs, registry
from lmjax.optim.batch_plan import microbatches_of
from lmjax.parallel import processes
from lmjax.parallel.mesh import make_mesh
from lmjax.run import build, pace
from lmjax.run.build import Run
from lmjax.system import machine

#: Share of the initial values in the average of the parameters that needs no notice.
NEGLIGIBLE = 0.005


# An estimate above this multiple of the memory cannot be right.
_CERTAINLY_TOO_MUCH = 8
_TOO_LONG = 30 * 86400  # seconds that nobody trains on one machine
_STATE_OF_A_NODE = 4e11  # bytes of parameters and moments that fit into 8 GPUs of 80 GB together with activations


class Table(NamedTuple):
    """The arguments of `Console.table`."""

    #: Title of the table.
    title: str
    #: Cells by row.
    rows: Sequence[Sequence[str]]
    #: Cells of the header; empty for none.
    header: Sequence[str] = ()


def tables(run: Run, update: int = 0) -> list[Table]:
    """Plan a run; one without data (`build.without_data`) shows no epochs.

    Args:
        run: The run.
        update: Number of updates applied already; the plan is that of the others.
    """
    config = run.config
    sizes = _memory(config, run.mesh.shape)
    milestones = ("update", "tokens", "batch", "learning rate", "")
    return [
        Table("Parameters", [(name, f"{count:,}") for name, count in _parameters(config).items()], ("", "count")),
        Table(f"Run, after update {update:,}" if update else "Run", _run(run, update)),
        *([Table("Milestones", _milestones(run, update), milestones)] if update < run.plan.updates else []),
        Table("Memory of a device", [(name, memory(size)) for name, size in sizes.items()], ("", "closed form")),
    ]


def warning(run: Run) -> str:
    """Return why a run is not for this machine, and what to do; empty if it is."""
    sizes, limit = _needed(run.config, run.mesh)
    seconds, problems, advice = pace.seconds(run), [], []
    if limit and sizes["total"] > limit:
        problems.append(f"does not fit in {memory(limit)}, needs about {memory(sizes['total'])}")
        fitting = _fitting_microbatch(run, limit)
        advice += [f"batch.microbatch={fitting} fits"] if fitting else []
    if seconds > _TOO_LONG:
        problems.append(f"{duration(seconds)} here")
    state = sizes["total"] - sizes.get("activations", 0) - sizes.get("logits", 0)
    advice.append(f"plan it for other devices: --topology {'h100:8' if state < _STATE_OF_A_NODE else 'v5e:8x8'}")
    return "; ".join([*problems, *advice]) if problems else ""


def _fitting_microbatch(run: Run, limit: float) -> int:
    """Return the largest microbatch by halving with which the run fits; 0 if none does."""
    microbatch, config = run.config.batch.microbatch, run.config
    while microbatch % 2 == 0 and microbatch // 2 % run.mesh.size == 0:
        microbatch //= 2
        smaller = replace(config, batch=replace(config.batch, microbatch=microbatch))
        if _needed(smaller, run.mesh)[0]["total"] <= limit:
            return microbatch
    return 0


def _parameters(config: Config) -> dict[str, int]:
    if isinstance(config.objective, ClassificationConfig):
        return classifier.parameters(config.model, len(config.objective.labels))
    return registry.parameters(config.model)


def _memory(config: Config, mesh: Mapping[str, int]) -> dict[str, float]:
    data, fsdp, tensor, sequence = (mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor", "sequence"))
    rows = config.batch.microbatch * build.rows_of_sequence(config) // (data * fsdp)
    chunk = -(-getattr(config.objective, "chunk", 0) // (data * fsdp))
    sizes = registry.memory(
        config.model, rows, optimizer=config.optimizer, accumulate=_accumulates(config), chunk=chunk
    )
    if isinstance(config.objective, PolicyConfig):
        sizes |= _of_policy(config, config.objective, rows, sizes)
    elif isinstance(config.objective, RewardConfig):
        sizes |= {"logits": 0.0}  # its output is a number of each row
    divisors = dict.fromkeys(("activations", "logits"), tensor * sequence) | {"generation cache": tensor}
    parts = {name: size / divisors.get(name, fsdp * tensor) for name, size in sizes.items() if name != "total"}
    return parts | {"total": sum(parts.values())}


def _of_policy(config: Config, objective: PolicyConfig, rows: int, sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the bytes that the episodes of a policy need besides an update.

    `rows` answers are computed at a time. Only the tokens of answers have logits. The value model of PPO is as large as
    the policy.
    """
    parts = {"logits": rows * objective.answer_tokens * 8.0 * config.model.vocab_size}
    parts["reference"] = sizes["parameters"]
    if isinstance(config.model, GPTConfig):
        model, places = costs.resolve_gpt(config.model), rows * config.model.context
        values = 2 * model.layers * model.key_heads * model.head_dim
        parts["generation cache"] = places * values * (2.0 if model.dtype == "bfloat16" else 4.0)
    if isinstance(objective, PPOConfig):
        parts["value model"] = sum(sizes[name] for name in ("parameters", "gradients", "optimizer"))
        parts["activations"] = 2 * sizes["activations"]
    return parts


def check_memory(config: Config) -> None:
    """Check that the devices have the memory for a run, before anything is allocated.

    Activations are an estimate, so that only a much too large one is refused.

    Raises:
        UserError: The parameters and the optimizer's state alone, or all parts by far, do not fit.
    """
    if not processes.alone():
        return
    config = build.resolve(config, build.expected_vocabulary(config))
    sizes, limit = _needed(config, make_mesh(config.parallel, microbatch=config.batch.microbatch))
    state = sizes["total"] - sizes.get("activations", 0) - sizes.get("logits", 0) - sizes["gradients"]
    if limit and (state > limit or sizes["total"] > _CERTAINLY_TOO_MUCH * limit):
        parts = ", ".join(f"{name} {size / 2**30:,.1f} GiB" for name, size in sizes.items())
        raise UserError(
            f"the run needs more than the {limit / 2**30:,.1f} GiB of memory here: {parts}; make the model, "
            "model.context or batch.microbatch smaller (`lmjax plan` shows the memory of a configuration)"
        )


def _needed(config: Config, mesh: Mesh) -> tuple[dict[str, float], int | None]:
    """Return the bytes that a device (a CPU: all of its devices) needs, and those it has."""
    share = 1 if machine.device_memory() else mesh.size  # devices of one CPU share its memory
    return {name: size * share for name, size in _memory(config, mesh.shape).items()}, _limit()


def _limit() -> int | None:
    return machine.device_memory().get("limit") or machine.total_memory()


def _accumulates(config: Config) -> bool:
    objective, microbatch = config.objective, config.batch.microbatch * registry.tokens(config.model)
    if isinstance(objective, PolicyConfig):  # the microbatches of one optimizer step
        microbatch *= objective.group * objective.minibatches
    return max(tokens for _, tokens in config.batch.tokens) > microbatch


def _run(run: Run, update: int = 0) -> list[tuple[str, str]]:
    config, plan = run.config, run.plan
    every, evaluate_every = config.checkpoint.every, config.train.evaluate_every
    saves = _times(update, plan.updates - 1, every) + 1
    evaluations = _times(update, plan.updates - 1, evaluate_every) + 1
    remaining = plan.updates - update
    return [
        ("updates", f"{remaining:,}" + (f" of {plan.updates:,}" if update else "")),
        *_tokens(run, update),
        *_rounded(run),
        ("FLOPs", f"{pace.flops(run, update):.3g} ({quantity(run.flops_per_token)} a token)"),
        ("devices", f"{run.mesh.size}, together {quantity(run.peak_flops, 'FLOP/s')} at most"),
        ("expected time", pace.describe(run, update)),
        ("checkpoints", f"{saves}: {_when(every)}"),
        ("evaluations", f"{evaluations}: {_when(evaluate_every)}"),
        *_average(config, plan.updates),
    ]


def _tokens(run: Run, update: int) -> list[tuple[str, str]]:
    """Return the rows of the tokens, and of the epochs: those of each source, for a mixture."""
    tokens, epoch = run.plan.tokens, run.tokens_per_epoch
    if update:
        remaining = tokens - run.tokens_after(update)
        epochs = f" ({remaining / epoch:.2f} epochs of {quantity(epoch)})" if epoch else ""
        return [("tokens", f"{remaining:,} of {tokens:,}{epochs}")]
    by_source = run.samples.epochs(int(run.plan.sequences.sum())) if epoch else {}
    if not by_source:
        return [("tokens", f"{tokens:,}" + (f" ({tokens / epoch:.2f} epochs of {quantity(epoch)})" if epoch else ""))]
    rows = [("tokens", f"{tokens:,}")]
    rows.append(("epochs", ", ".join(f"{name} {epochs:.2f}" for name, epochs in by_source.items())))
    if unread := [name for name, epochs in by_source.items() if epochs == 0]:
        advice = "the run ends before data.mixture_changes raise its weight, but the vocabulary and val_loss have it"
        rows.append(("never read", f"{', '.join(unread)}: {advice}"))
    return rows


def _rounded(run: Run) -> list[tuple[str, str]]:
    """Return a row if a batch is not the size that was asked for, by more than a percent."""
    microbatch = run.config.batch.microbatch
    unit = microbatch * run.plan.context
    asked = {tokens: microbatches_of(tokens, unit) * unit for _, tokens in run.config.batch.tokens}
    changed = [f"{size:,} not {tokens:,}" for tokens, size in asked.items() if abs(size - tokens) > 0.01 * tokens]
    if not changed:
        return []
    why = f"a batch is a multiple of batch.microbatch={microbatch} times {run.plan.context} tokens"
    return [("batch", f"{', '.join(changed)}: {why}")]


def _average(config: Config, updates: int) -> list[tuple[str, str]]:
    """Return a row if the average of the parameters still has initial values at the end."""
    ema, start = config.optimizer.ema, config.optimizer.ema**updates
    if config.optimizer.ema_warmup or start < NEGLIGIBLE:
        return []
    advice = "for a new run set optimizer.ema_warmup=true"
    return [("average", f"optimizer.ema={ema:g}: {start:.0%} of it are the initial parameters at the end; {advice}")]


def _when(every: int) -> str:
    return f"every {every:,} updates and at the end" if every else "at the end"


def _times(before: int, updates: int, every: int) -> int:
    """Count the multiples of `every` after `before` and up to `updates`."""
    return max(updates // every - before // every, 0) if every else 0


def _milestones(run: Run, first: int, *, most: int = 8) -> list[tuple[str, ...]]:
    """Return the updates from `first` on at which the schedule or the batch changes.

    Of a batch growth with more than `most` steps, only `most` are shown.
    """
    plan, rates = run.plan, run.rates
    grows = plan.changes[plan.changes >= first]
    if len(grows) > most:
        grows = grows[np.linspace(0, len(grows) - 1, most).astype(int)]
    events: dict[int, list[str]] = {first: ["next update" if first else "first update"]}
    for update in grows.tolist():
        up = plan.sequences[update] > plan.sequences[update - 1]
        events.setdefault(update, []).append("batch grows" if up else "batch shrinks")
    at_peak = np.flatnonzero(rates == rates.max())
    events.setdefault(int(at_peak[0]), []).append("warm-up ends")
    if run.config.schedule.shape == "wsd" and at_peak[-1] < plan.updates - 1:
        events.setdefault(int(at_peak[-1]) + 1, []).append("decay begins")
    for share in (0.25, 0.5, 0.75):
        events.setdefault(int(plan.updates * share), []).append(f"{share:.0%} of the updates")
    events.setdefault(plan.updates - 1, []).append("last update")
    return [
        (
            f"{update + 1:,}",
            quantity(float(plan.tokens_before[update])),
            f"{plan.sequences[update] * plan.context:,}",
            f"{rates[update]:.3g}",
            ", ".join(names),
        )
        for update, names in sorted(events.items())
        if update >= first
    ]
