"""The real update, compiled for devices that need not be there: its memory, what it sends, and how fast it can be.

The roofline (Williams et al. 2009) is the best case: products at the peak, all links busy, everything at the same time.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lmjax import machine, plan
from lmjax import run as runs
from lmjax.chips import Target, target
from lmjax.collectives import Collective, collectives
from lmjax.config import ClassificationConfig, Config, UserError
from lmjax.console import Console, duration, quantity
from lmjax.models import families
from lmjax.parallel import describe
from lmjax.plan import Table
from lmjax.run import Run

_GiB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """The compiler found no room. needed: bytes of a device."""

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


class Program(NamedTuple):
    """A compiled update: bytes of a device, and its optimised HLO.

    temporaries: what is there beside the arguments at most, with the results that do not take their place.
    """

    arguments: float
    temporaries: float
    text: str

    @property
    def needed(self) -> float:
        """All that is there at once."""
        return self.arguments + self.temporaries


def compile_update(run: Run, target: Target) -> Program:
    """Compiles the update of a run that was put together for the devices of `target`. TooLarge: it does not fit."""
    lowered = runs.update_function(run).lower(runs.abstract(run), runs.abstract_batch(run))
    try:
        program = lowered.compile(compiler_options=target.options or None)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_of(str(error))
        if needed is None:
            raise
        raise TooLarge(needed) from None
    sizes = program.memory_analysis()
    given = sizes.argument_size_in_bytes
    beside = sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.generated_code_size_in_bytes
    if target.chip.is_tpu:  # whose compiler compares the peak of everything with the memory
        return Program(given, sizes.peak_memory_in_bytes - given, program.as_text())
    return Program(given, sizes.temp_size_in_bytes + beside, program.as_text())


def needed_of(message: str) -> float | None:
    """The bytes that a program would need, from the compiler's message that there are fewer; None: another message."""
    number = r"([\d.]+)([KMGT])"
    found = re.search(rf"\({number}\) exceeds available|Used {number} of", message)
    if not found:
        return None
    size, unit = [group for group in found.groups() if group]
    return float(size) * _UNITS[unit]


# ---- The microbatch -------------------------------------------------------------------------------------------------


def search(
    measure: Callable[[int], float], candidates: Sequence[int], *, first: int, floor: float, limit: float, most: int
) -> dict[int, float]:
    """The sizes of the microbatches that were compiled on the way to the largest that fits, by microbatch.

    A size is nearly linear in the microbatch, so each compilation but the first tries the largest candidate of which
    that is `expected`. floor: the size at 0.
    """
    sizes = {first: measure(first)}
    while len(sizes) < most and (left := open_ones(sizes, candidates, limit)):
        fitting = [m for m in left if expected(sizes, m, floor=floor, limit=limit) <= limit]
        choice = fitting[-1] if fitting else left[0]
        sizes[choice] = measure(choice)
    return sizes


def open_ones(sizes: dict[int, float], candidates: Sequence[int], limit: float) -> list[int]:
    """The candidates above the largest that is known to fit, and below the smallest that is known not to."""
    below = max((m for m, size in sizes.items() if size <= limit), default=0)
    above = min((m for m, size in sizes.items() if size > limit), default=max(candidates) + 1)
    return sorted(m for m in candidates if below < m < above)


def expected(sizes: dict[int, float], microbatch: int, *, floor: float, limit: float) -> float:
    """The size of a microbatch by the line through the two known ones nearest the limit, or one and the floor."""
    known = sorted(sizes.items(), key=lambda item: abs(item[1] - limit))
    (m, size), (other, its_size) = known[0], known[1] if len(known) > 1 else (0, floor)
    return size + (size - its_size) / (m - other) * (microbatch - m)


def microbatches(run: Run) -> list[int]:
    """The microbatches that divide the rows among the devices and the largest batch among themselves."""
    rows, batch = run.mesh.shape["data"] * run.mesh.shape["fsdp"], int(run.plan.sequences.max())
    return [m for m in range(rows, batch + 1, rows) if batch % m == 0]


# ---- The roofline ---------------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """What an update needs of something, and how much of it there is a second, on a device."""

    name: str
    amount: float
    rate: float
    unit: str

    @property
    def seconds(self) -> float:
        """The least time."""
        return self.amount / self.rate


def roofline(run: Run, target: Target, sent: Sequence[Collective]) -> list[Bound]:
    """The bounds of the largest update: products, memory (both closed forms), and what the program sends."""
    chip, peak = target.chip, machine.peak_flops(run.config.model.dtype, devices=target.devices[:1])
    near = sum(c.sent * c.times for c in sent if not c.far)
    far = sum(c.sent * c.times for c in sent if c.far)
    bounds = [
        Bound("products", flops(run, again=True) / run.mesh.size, peak, "FLOP"),
        Bound("memory", traffic(run), chip.bandwidth, "B"),
        Bound("ICI" if chip.is_tpu else "NVLink", near, chip.near, "B"),
        Bound("network", far, chip.far, "B"),
    ]
    return [bound for bound in bounds if bound.amount]


def flops(run: Run, *, again: bool = False) -> float:
    """FLOPs of the largest update. again: with what `model.remat=full` computes twice, the blocks' forward pass."""
    model = run.config.model
    per_token = families.flops_per_token(model)
    if again and getattr(model, "remat", "none") == "full":
        per_token += max(per_token - 6.0 * model.vocab_size * model.width, 0.0) / 3
    return per_token * int(run.plan.sequences.max()) * families.tokens(model)


def traffic(run: Run) -> float:
    """Bytes that the largest update moves between memory and processor of a device, at least.

    Weights are read by each pass, activations and logits written and read once, sums of gradients read and written for
    each microbatch, and the state once.
    """
    config, mesh = run.config, run.mesh.shape
    kept, narrow = mesh["fsdp"] * mesh["tensor"], 2 if config.model.dtype == "bfloat16" else 4
    count = int(run.plan.microbatches.max())
    rows = config.batch.microbatch // (mesh["data"] * mesh["fsdp"])
    sizes = families.memory(config.model, rows, optimizer=config.optimizer)
    passes = 3 if getattr(config.model, "remat", "none") == "full" else 2
    weights = passes * sizes["parameters"] / 4 * narrow / mesh["tensor"]
    gone = 2 * (sizes["activations"] + sizes["logits"]) / (mesh["sequence"] * mesh["tensor"])
    state = sizes["parameters"] + sizes.get("optimizer", 0.0) + sizes.get("average", 0.0)
    return count * (weights + gone + 2 * sizes["gradients"] / kept) + 2 * state / kept


# ---- The command ----------------------------------------------------------------------------------------------------


def show(config: Config, topology: str, *, largest: bool = True) -> int:
    """Prints what a run of `config` would do and need on the devices of `topology`; the exit status.

    largest: compile other microbatches, too, for the largest that fits. UserError: there is no such topology or nothing
    to compile for it, or the configuration does not fit it.
    """
    found = target(topology)
    families.check(config.model)
    config = runs.resolve(config, plan.expected_vocabulary(config))
    mesh = runs.without_data(config, devices=found.devices).mesh
    peak = machine.peak_flops(config.model.dtype, devices=list(mesh.devices.flat))
    with Console() as console:
        for table in plan.tables(config, peak_flops=peak, devices=mesh.size, mesh=mesh.shape):
            console.table(*table)
        made = report(config, found, most=3 if largest else 1, phase=console.phase)
        for table in made.tables:
            console.table(*table)
    if made.problem:
        raise UserError(made.problem)
    return 0


# ---- Tables ---------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """What `report` found. problem: a line for the user, if the configuration does not fit."""

    tables: list[Table]
    problem: str = ""


def report(config: Config, target: Target, *, most: int = 3, phase: Callable[[str], Any]) -> Report:
    """The plan of a resolved configuration for the devices of `target`, from at most `most` compilations.

    phase: a context manager to be in while something is compiled. UserError: the mesh does not fit the devices.
    """
    if config.parallel.form == "pmap":
        raise UserError("--topology compiles for parallel.form=mesh; leave parallel.form=pmap out")
    if isinstance(config.objective, ClassificationConfig) and not config.objective.labels:
        raise UserError("--topology reads no data: name the labels, as in objective.labels=[cat,dog]")
    first, programs = config.batch.microbatch, {}
    run = runs.without_data(config, devices=target.devices)

    def measure(microbatch: int) -> float:
        changed = config
        if microbatch != first:  # what fits is asked for, also where the run begins with smaller batches
            most_tokens = max(tokens for _, tokens in config.batch.tokens)
            batch = dataclasses.replace(config.batch, microbatch=microbatch, tokens=((0, most_tokens),))
            changed = dataclasses.replace(config, batch=batch)
        with phase(f"compiling for {target.topology}, batch.microbatch={microbatch}"):
            try:
                programs[microbatch] = compile_update(runs.without_data(changed, devices=target.devices), target)
            except TooLarge as error:
                return error.needed
        return programs[microbatch].needed

    state = families.memory(config.model, 0, optimizer=config.optimizer)
    floor = (state["total"] - state["gradients"]) / (run.mesh.shape["fsdp"] * run.mesh.shape["tensor"])
    sizes = search(measure, microbatches(run), first=first, floor=floor, limit=target.limit, most=most)
    tables = [_devices(run, target)]
    if first in programs:
        tables += _of_program(run, target, programs[first])
    if most > 1:
        tables.append(_searched(run, sizes, floor=floor, limit=target.limit))
    return Report(tables, _problem(run, target, sizes, floor=floor))


def _of_program(run: Run, target: Target, program: Program) -> list[Table]:
    islands = [target.islands[device] for device in run.mesh.devices.flat]
    sent = collectives(program.text, dynamic=int(run.plan.microbatches.max()), islands=islands)
    return [_memory(program, target.limit), _sent(sent), _time(run, target, roofline(run, target, sent))]


def _devices(run: Run, target: Target) -> Table:
    count = len({target.islands[device] for device in run.mesh.devices.flat})
    each = f" in {count} {'slices' if target.chip.is_tpu else 'nodes'}" if count > 1 else ""
    microbatch, most = run.config.batch.microbatch, int(run.plan.microbatches.max())
    rows = [
        ("devices", f"{run.mesh.size} x {target.chip.name}{each}"),
        ("mesh", describe(run.mesh)),
        ("microbatch", f"{microbatch:,} sequences, up to {most:,} an update"),
    ]
    return Table(f"Compiled for {target.topology}", rows)


def _memory(program: Program, limit: float) -> Table:
    sizes = {"arguments": program.arguments, "temporaries": program.temporaries, "together": program.needed}
    rows = [(name, f"{size / _GiB:.2f} GiB", f"{size / limit:.0%}") for name, size in sizes.items()]
    return Table("Memory of a device", rows, ("", "compiled", f"of {limit / _GiB:.2f} GiB"))


def _searched(run: Run, sizes: dict[int, float], *, floor: float, limit: float) -> Table:
    """What was compiled, and what the next larger microbatch is expected to need."""
    found = {m: (size, "") for m, size in sizes.items()}
    if left := open_ones(sizes, microbatches(run), limit):
        found[left[0]] = expected(sizes, left[0], floor=floor, limit=limit), ", by extrapolation"
    smallest, rows = int(run.plan.sequences.min()), []
    for m, (size, how) in sorted(found.items()):
        verdict = "does not fit" if size > limit else "fits"
        beyond = f", but batch.tokens begins with {smallest:,}" if size <= limit and m > smallest else ""
        rows.append((f"{m:,}", f"{size / _GiB:.2f} GiB", verdict + how + beyond))
    return Table("batch.microbatch", rows, ("", "needs", f"of {limit / _GiB:.2f} GiB"))


def _sent(found: Sequence[Collective]) -> Table:
    kinds: dict[str, list[Collective]] = {}
    for one in found:
        kinds.setdefault(one.kind + (" between slices or nodes" if one.far else ""), []).append(one)
    rows = [
        (
            kind,
            f"{sum(c.times for c in some):,.0f}",
            quantity(sum(c.size * c.times for c in some), "B"),
            quantity(sum(c.sent * c.times for c in some), "B"),
        )
        for kind, some in sorted(kinds.items())
    ]
    return Table("Collectives of an update", rows, ("of a device", "number", "results", "sent"))


def _time(run: Run, target: Target, bounds: Sequence[Bound]) -> Table:
    seconds = max(bound.seconds for bound in bounds)
    peak = machine.peak_flops(run.config.model.dtype, devices=target.devices[:1]) * run.mesh.size
    updates = run.plan.tokens / (int(run.plan.sequences.max()) * run.plan.context)
    rows = [(b.name, quantity(b.amount, b.unit), f"{quantity(b.rate, b.unit)}/s", f"{b.seconds:.3g} s") for b in bounds]
    rows += [
        ("an update, at best", "", "", f"{seconds:.3g} s"),
        ("MFU, at most", "", "", f"{flops(run) / (peak * seconds):.1%}"),
        ("the run, at best", "", "", duration(updates * seconds)),
    ]
    return Table("Roofline of an update", rows, ("of a device", "needs", "has", "time"))


def _problem(run: Run, target: Target, sizes: dict[int, float], *, floor: float) -> str:
    """A line that says by how much the configuration does not fit, and what may help; empty: it fits."""
    config, limit, mesh = run.config, target.limit, run.mesh.shape
    if sizes[config.batch.microbatch] <= limit:
        return ""
    fitting = max((m for m, size in sizes.items() if size <= limit), default=0)
    untried = [m for m in microbatches(run) if m < min(sizes)]
    ways = [f"batch.microbatch={fitting}"] if fitting else [f"batch.microbatch={untried[-1]}"] if untried else []
    if not fitting and floor > limit:
        ways = [f"more devices (parameters and optimizer alone take {floor / _GiB:.1f} GiB)"]
    if not fitting and mesh["fsdp"] * mesh["tensor"] * mesh["sequence"] < len(target.devices):
        ways.append("parallel.mesh=(data=1, fsdp=-1)")
    if not fitting and floor <= limit and getattr(config.model, "remat", "full") != "full":
        ways.append("model.remat=full")
    words = " / ".join(ways) or "more devices, or parallel.mesh.tensor"
    sizes_ = f"{sizes[config.batch.microbatch] / _GiB:.1f} GiB of {limit / _GiB:.2f} GiB on each {target.chip.name}"
    return f"does not fit: {sizes_}: try {words}" + (" (it fits)" if fitting else "")
