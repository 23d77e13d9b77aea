"""The update of lmjax against PyTorch's on the same model, batch and optimizer, in float32 and bfloat16.

Run: python benchmarks/speed.py [--shapes cpu,baby,gpt2] [--rounds 7] [--plot FILE]  (needs the extra [parity])

Every side is a process of its own (benchmarks/contender.py), which trains one update after the other on a batch that
is ready; they take turns, another one beginning each round, and ratios are medians over the rounds. `best` is the
fastest of PyTorch's forms, eager and compiled, `of any type` in both types of numbers. Compilation is not counted: each
side has made a turn before. Peak memory is the process', libraries included: PyTorch's best, then lmjax.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from contender import SHAPES
from turns import Worker, fastest, ratio, rounds

UPDATES = {"cpu": 40, "baby": 2, "gpt2": 1}  # of a turn
FRAMEWORKS, DTYPES = ("torch", "torch.compile", "lmjax"), ("float32", "bfloat16")
TOGETHER = {"gpt2": ((DTYPES[0],), (DTYPES[1],))}  # more of them would not fit into 24 GB
Row = tuple[str, ...]
HEAD = ("shape", "numbers", "PyTorch eager", "compiled", "lmjax", "x eager", "x best", "x best of any type", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description="The update of lmjax against PyTorch's.")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="draw the ratios")
    options = parser.parse_args()
    rows: list[Row] = []
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for shape in options.shapes.split(","):
        for dtypes in TOGETHER.get(shape, (DTYPES,)):
            for row in measure(shape, dtypes, options.rounds):
                print("| " + " | ".join(row) + " |", flush=True)
                rows.append(row)
    if options.plot:
        draw(rows, options.plot)


def measure(shape: str, dtypes: tuple[str, ...], count: int) -> list[Row]:
    """A row for each type of numbers."""
    here, names = Path(__file__).parent, [(framework, dtype) for dtype in dtypes for framework in FRAMEWORKS]
    with ExitStack() as stack:
        workers = {}
        for framework, dtype in names:
            command = [str(here / "contender.py"), framework, shape, dtype]
            if framework == "lmjax":  # a program that the process has compiled itself may be slower than one it reads
                with Worker(command):
                    pass
            workers[f"{framework} {dtype}"] = stack.enter_context(Worker(command))
        rounds(workers, str(UPDATES[shape]), 1)
        answers = rounds(workers, str(UPDATES[shape]), count)
    seconds = {name: [answer["seconds"] / UPDATES[shape] for answer in found] for name, found in answers.items()}
    peaks = {name: found[-1]["peak_memory_bytes"] for name, found in answers.items()}
    theirs = {name: times for name, times in seconds.items() if not name.startswith("lmjax")}
    rows = []
    for dtype in dtypes:
        ours = seconds[f"lmjax {dtype}"]
        best = fastest({name: times for name, times in theirs.items() if name.endswith(dtype)})
        faster = [ratio(theirs[name], ours) for name in (f"torch {dtype}", best)]
        of_any = f"{ratio(theirs[fastest(theirs)], ours):.2f}" if len(dtypes) > 1 and dtype == "bfloat16" else ""
        times = [f"{1000 * median(seconds[f'{name} {dtype}']):.1f} ms" for name in FRAMEWORKS]
        memory = [f"{peaks[name] / 1e9:.1f}" for name in (best, f"lmjax {dtype}")]
        rows.append((shape, dtype, *times, *(f"{x:.2f}" for x in faster), of_any, " / ".join(memory) + " GB"))
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Bars of how many times faster lmjax is than the best of PyTorch, in the same type of numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    names = [f"{shape}\n{dtype}" for shape, dtype, *_ in rows]
    bars = axes.bar(
        names, [float(row[6]) for row in rows], color=["C0" if row[1] == "float32" else "C1" for row in rows]
    )
    axes.bar_label(bars, fmt="%.2f")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("times as fast as PyTorch's best")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
