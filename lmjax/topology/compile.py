"""Compile the real update for absent devices: memory, communication, and best speed.

The roofline (Williams et al. 2009) is the best case: products at the peak, all links busy, and complete overlap.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lmjax.config import ClassificationConfig, Config, UserError
from lmjax.display.console import Console
from lmjax.display.format import duration, quantity
from lmjax.models import registry
from lmjax.parallel.mesh import describe_mesh
from lmjax.run import build, episodes, plan
from lmjax.run.build import Run
from lmjax.run.plan import Table
from lmjax.system import machine
from lmjax.topology.chips import Target, target
from lmjax.topology.collectives import Collective, collectives
from lmjax.topology.roofline import Bound, flops, roofline
from lmjax.topology.search import expected, microbatches, open_ones, search

_GiB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """The program does not fit in memory; `needed` is the number of bytes on a device."""

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


class Program(NamedTuple):
    """A compiled update."""

    #: Bytes of the arguments on a device.
    arguments: float
    #: Largest number of bytes on a device besides the arguments, with results that do not alias them.
    temporaries: float
    #: The optimised HLO.
    text: str

    @property
    def needed(self) -> float:
        """Largest number of bytes on a device."""
        return self.arguments + self.temporaries


def compile_update(run: Run, target: Target) -> Program:
    """Compile the update of a run that was built for the devices of `target`.

    Of an episode it is the part that learns.

    Raises:
        TooLarge: The update does not fit.
    """
    if run.objective.episodic:
        lowered = episodes.lower_learning(run)
    else:
        lowered = build.update_function(run).lower(run.abstract_state, run.abstract_batch)
    try:
        program = lowered.compile(compiler_options=target.options or None)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_of(str(error))
        if needed is None:
            raise
        raise TooLarge(needed) from None
    sizes = program.memory_analysis()
    arguments = sizes.argument_size_in_bytes
    results_and_code = sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.generated_code_size_in_bytes
    if target.chip.is_tpu:  # the TPU compiler compares the total peak with the memory
        return Program(arguments, sizes.peak_memory_in_bytes - arguments, program.as_text())
    return Program(arguments, sizes.temp_size_in_bytes + results_and_code, program.as_text())


def needed_of(message: str) -> float | None:
    """Parse the bytes that a program needs from an out-of-memory message; None for others."""
    number = r"([\d.]+)([KMGT])"
    match = re.search(rf"\({number}\) exceeds available|Used {number} of", message)
    if not match:
        return None
    size, unit = [group for group in match.groups() if group]
    return float(size) * _UNITS[unit]


# ---- The command ----------------------------------------------------------------------------------------------------


def show(config: Config, topology: str, *, largest: bool = True) -> int:
    """Print what a run of `config` would do and need on the devices of `topology`.

    Args:
        config: The configuration of the run.
        topology: The devices, as in `chips.parse`.
        largest: Also compile other microbatches, to find the largest that fits.

    Returns:
        The exit status.

    Raises:
        UserError: There is no such topology, its compiler is missing, or the configuration does not fit.
    """
    compile_target = target(topology)
    run = build.without_data(config, devices=compile_target.devices)
    with Console() as console:
        for table in plan.tables(run):
            console.table(*table)
        compiled = report(run.config, compile_target, most=3 if largest else 1, phase=console.phase)
        for table in compiled.tables:
            console.table(*table)
    if compiled.problem:
        raise UserError(compiled.problem)
    return 0


# ---- Tables ---------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """The result of `report`."""

    #: Tables to print.
    tables: list[Table]
    #: Error message for the user if the configuration does not fit; else empty.
    problem: str = ""


def report(config: Config, target: Target, *, most: int = 3, phase: Callable[[str], Any]) -> Report:
    """Plan a resolved configuration for the devices of `target`.

    Args:
        config: The resolved configuration.
        target: The devices to compile for.
        most: Largest number of compilations.
        phase: Returns a context manager that is active during a compilation.

    Raises:
        UserError: The mesh does not fit the devices.
    """
    if config.parallel.form == "pmap":
        raise UserError("--topology compiles for parallel.form=mesh; leave parallel.form=pmap out")
    if isinstance(config.objective, ClassificationConfig) and not config.objective.labels:
        raise UserError("--topology reads no data: name the labels, as in objective.labels=[cat,dog]")
    first, programs = config.batch.microbatch, {}
    run = build.without_data(config, devices=target.devices)

    def measure(microbatch: int) -> float:
        changed = config
        if microbatch != first:  # the search ignores that the run begins with smaller batches
            most_tokens = max(tokens for _, tokens in config.batch.tokens)
            batch = dataclasses.replace(config.batch, microbatch=microbatch, tokens=((0, most_tokens),))
            changed = dataclasses.replace(config, batch=batch)
        with phase(f"compiling for {target.topology}, batch.microbatch={microbatch}"):
            try:
                programs[microbatch] = compile_update(build.without_data(changed, devices=target.devices), target)
            except TooLarge as error:
                return error.needed
        return programs[microbatch].needed

    state = registry.memory(config.model, 0, optimizer=config.optimizer)
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
        ("mesh", describe_mesh(run.mesh)),
        ("microbatch", f"{microbatch:,} sequences, up to {most:,} an update"),
        *[("program", "learning from the answers; their sampling is not compiled")] * run.objective.episodic,
    ]
    return Table(f"Compiled for {target.topology}", rows)


def _memory(program: Program, limit: float) -> Table:
    sizes = {"arguments": program.arguments, "temporaries": program.temporaries, "together": program.needed}
    rows = [(name, f"{size / _GiB:.2f} GiB", f"{size / limit:.0%}") for name, size in sizes.items()]
    return Table("Memory of a device", rows, ("", "compiled", f"of {limit / _GiB:.2f} GiB"))


def _searched(run: Run, sizes: dict[int, float], *, floor: float, limit: float) -> Table:
    """Tabulate the compiled microbatches, and the expected memory of the next larger one."""
    rows_by_microbatch = {m: (size, "") for m, size in sizes.items()}
    if left := open_ones(sizes, microbatches(run), limit):
        rows_by_microbatch[left[0]] = expected(sizes, left[0], floor=floor, limit=limit), ", by extrapolation"
    smallest, rows = int(run.plan.sequences.min()), []
    for m, (size, how) in sorted(rows_by_microbatch.items()):
        verdict = "does not fit" if size > limit else "fits"
        beyond = f", but batch.tokens begins with {smallest:,}" if size <= limit and m > smallest else ""
        rows.append((f"{m:,}", f"{size / _GiB:.2f} GiB", verdict + how + beyond))
    return Table("batch.microbatch", rows, ("", "needs", f"of {limit / _GiB:.2f} GiB"))


def _sent(sent: Sequence[Collective]) -> Table:
    kinds: dict[str, list[Collective]] = {}
    for collective in sent:
        kind = collective.kind + (" between slices or nodes" if collective.far else "")
        kinds.setdefault(kind, []).append(collective)
    rows = [
        (
            kind,
            f"{sum(c.times for c in group):,.0f}",
            quantity(sum(c.size * c.times for c in group), "B"),
            quantity(sum(c.sent * c.times for c in group), "B"),
        )
        for kind, group in sorted(kinds.items())
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
    """Say by how much the configuration does not fit, and what may help; empty if it fits."""
    config, limit, mesh = run.config, target.limit, run.mesh.shape
    if sizes[config.batch.microbatch] <= limit:
        return ""
    fitting = max((m for m, size in sizes.items() if size <= limit), default=0)
    untried = [m for m in microbatches(run) if m < min(sizes)]
    suggestions = [f"batch.microbatch={fitting}"] if fitting else [f"batch.microbatch={untried[-1]}"] if untried else []
    if not fitting and floor > limit:
        suggestions = [f"more devices (parameters and optimizer alone take {floor / _GiB:.1f} GiB)"]
    if not fitting and mesh["fsdp"] * mesh["tensor"] * mesh["sequence"] < len(target.devices):
        suggestions.append("parallel.mesh=(data=1, fsdp=-1)")
    if not fitting and floor <= limit and getattr(config.model, "remat", "full") != "full":
        suggestions.append("model.remat=full")
    words = " / ".join(suggestions) or "more devices, or parallel.mesh.tensor"
    sizes_ = f"{sizes[config.batch.microbatch] / _GiB:.1f} GiB of {limit / _GiB:.2f} GiB on each {target.chip.name}"
    return f"does not fit: {sizes_}: try {words}" + (" (it fits)" if fitting else "")
