"""The time of an update on CPU by part: products with their rates, attention, elementwise parts, optimizer, waiting.

Run: python benchmarks/breakdown.py [--shape baby] [--dtype bfloat16] [key.path=value ...]

A profile of `UPDATES` updates, as benchmarks/speed.py trains them, is read with the text of the compiled program. The
milliseconds of a part are those of all cores together, of one update; the last line is what the cores waited.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

from contender import SHAPES, lmjax

from lmjax.topology.collectives import Instruction, computations

UPDATES = {"cpu": 40, "baby": 3, "gpt2": 2}
PARTS = (  # the first whose pattern is in the name of an operation
    ("optimizer", r"/optimizer/"),
    ("guard", r"/guard/"),
    ("attention", r"/(scores|softmax|mix)\b|attention/(dot_general|exp|concatenate|cond|mul|sub|reduce)"),
    ("loss", r"\(?loss\)?/"),
    ("embedding", r"/embed/"),
    ("norms", r"norm/"),
    ("MLP, elementwise", r"/mlp/"),
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="The time of an update on CPU by part.")
    parser.add_argument("--shape", default="baby", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("changes", nargs="*")
    options = parser.parse_args()
    train, count = lmjax(SHAPES[options.shape], options.dtype, options.changes), UPDATES[options.shape]
    import jax

    for _ in range(2):
        train(count)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun = time.perf_counter()
            train(count)
            seconds = (time.perf_counter() - begun) / count
        spent = durations(Path(folder))
    names = operations()
    by_part: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, (duration, times) in spent.items():
        if name not in names:
            continue
        part, work = names[name]
        by_part[part] += duration / count
        flops[part] += work * times / count
        calls[part] += times / count
    cores = len(os.sched_getaffinity(0))
    print(f"{options.shape}, {options.dtype}: {1000 * seconds:.1f} ms an update on {cores} cores\n")
    print("| part | calls | core ms | share | GFLOP/s of all cores |\n|---|---|---|---|---|")
    for part, taken in by_part.most_common():
        rate = f"{flops[part] / taken * cores / 1e9:.0f}" if flops[part] else ""
        print(f"| {part} | {calls[part]:.0f} | {1000 * taken:.1f} | {taken / seconds / cores:.1%} | {rate} |")
    idle = seconds * cores - sum(by_part.values())
    print(f"| waiting | | {1000 * idle:.1f} | {idle / seconds / cores:.1%} | |")


def durations(folder: Path) -> dict[str, tuple[float, int]]:
    """Return seconds and number of the events by name, of all threads."""
    from jax.profiler import ProfileData

    (file,) = folder.rglob("*.xplane.pb")
    seconds: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                times[event.name] += 1
    return {name: (seconds[name], times[name]) for name in seconds}


def operations() -> dict[str, tuple[str, float]]:
    """Return part and FLOPs of each instruction of the largest program of this process."""
    import jax

    programs = [one.hlo_modules()[0].to_string() for one in jax.devices()[0].client.live_executables()]
    program, _ = computations(max(programs, key=len))
    found = {}
    for instructions in program.values():
        for one in instructions:
            called = re.search(r"\bcalls=%?([\w.-]+)", one.arguments)
            inside = program.get(called[1], []) if called else []
            dots = list(_dots(instructions, [one])) + list(_dots(inside, inside))
            where = (re.search(r'op_name="([^"]*)"', one.arguments) or ["", ""])[1]
            found[one.name] = (_part(where, dots), float(sum(flops for flops, _ in dots)))
    return found


def _part(where: str, dots: list[tuple[int, str]]) -> str:
    part = next((name for name, pattern in PARTS if re.search(pattern, where)), "other")
    if not dots:
        return part
    if part == "attention":
        return "attention, products"
    return "products " + " + ".join(sorted({text for _, text in dots}))


def _dots(named: list[Instruction], chosen: list[Instruction]) -> Iterator[tuple[int, str]]:
    """Yield the FLOPs and the sizes of the products among instructions."""
    shapes = {one.name: _sizes(one.shape) for one in named}
    for one in chosen:
        if one.operation != "dot":
            continue
        operands = re.findall(r"%([\w.-]+)", one.arguments)
        axes = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", one.arguments)[0]
        left, result = shapes.get(operands[0], ()), _sizes(one.shape)
        inner = prod(left[int(axis)] for axis in axes.split(",")) if left else 0
        yield 2 * inner * prod(result), f"{'x'.join(map(str, result))} over {inner}"


def _sizes(shape: str) -> tuple[int, ...]:
    match = re.match(r"\w+\[([\d,]*)\]", shape)
    return tuple(int(size) for size in match[1].split(",") if size) if match else ()


if __name__ == "__main__":
    sys.exit(main())
