"""The rate of matrix products that this machine reaches, by the best of XLA and PyTorch's oneDNN.

Run: python benchmarks/limits.py [--shapes cpu,baby,gpt2] [--rounds 5]  (needs the extra [parity])

The products are those of an update at each shape of benchmarks/contender.py: forward, gradient of the input, gradient
of the weight. Each library is a process of its own, and they take turns. A product runs for at least `SECONDS` in a
turn, `AT_ONCE` in a call; its time is the median over the rounds. The limit of a shape is the rate of all its products,
each by its faster library. So it counts neither attention nor what is no product.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from statistics import median

from contender import SHAPES
from turns import Worker, rounds

LIBRARIES, DTYPES = ("xla", "onednn"), ("float32", "bfloat16")
SECONDS, AT_ONCE = 0.2, 8
Product = tuple[str, int, int, int]  # form, rows, inner size, columns


def products(shape: Mapping[str, int]) -> dict[Product, int]:
    """The products of an update and how often it computes each.

    Forms: `nn` x (m, k) w (k, n); `nt` g (m, k) w (n, k), the gradient of the input; `tn` x (k, m) g (k, n), the
    gradient of the weight.
    """
    rows, width, layers = shape["batch"] * shape["context"], shape["width"], shape["layers"]
    maps = {(width, width): 4 * layers, (width, 4 * width): layers, (4 * width, width): layers}
    maps[width, shape["vocab_size"]] = 1
    found: dict[Product, int] = {}
    for (inner, outer), count in maps.items():
        for product in (("nn", rows, inner, outer), ("nt", rows, outer, inner), ("tn", inner, rows, outer)):
            found[product] = found.get(product, 0) + count
    return found


def limits(shape: Mapping[str, int], count: int = 5) -> dict[str, float]:
    """Return the FLOPs a second of the products of a shape, by dtype and by "library dtype"."""
    counts = products(shape)
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker([__file__, "--worker", name])) for name in LIBRARIES}
        for dtype in DTYPES:
            answers = rounds(workers, json.dumps([dtype, list(counts)]), count)
            for library, turns in answers.items():
                seconds[f"{library} {dtype}"] = [
                    median(times) for times in zip(*(turn["seconds"] for turn in turns), strict=True)
                ]
            both = (seconds[f"{library} {dtype}"] for library in LIBRARIES)
            seconds[dtype] = [min(pair) for pair in zip(*both, strict=True)]
    flops = sum(2.0 * m * k * n * times for (_, m, k, n), times in counts.items())
    total = {
        name: sum(one * times for one, times in zip(taken, counts.values(), strict=True))
        for name, taken in seconds.items()
    }
    return {name: flops / taken for name, taken in total.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="The rate of matrix products of this machine.")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| shape | dtype | XLA, GFLOP/s | oneDNN, GFLOP/s | limit, GFLOP/s |\n|---|---|---|---|---|")
    for name in options.shapes.split(","):
        found = limits(SHAPES[name], options.rounds)
        for dtype in DTYPES:
            rates = (found[f"xla {dtype}"], found[f"onednn {dtype}"], found[dtype])
            print(f"| {name} | {dtype} | " + " | ".join(f"{rate / 1e9:.0f}" for rate in rates) + " |", flush=True)


# ---- One side ---------------------------------------------------------------------------------------------------


def work(library: str) -> None:
    """Answer each line, a dtype and products, with the seconds of each product."""
    prepared = xla if library == "xla" else onednn
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        dtype, asked = json.loads(line)
        print(json.dumps({"seconds": [timed(prepared(tuple(product), dtype)) for product in asked]}), flush=True)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a product; `call` computes `AT_ONCE` of them."""
    call()
    begun, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < SECONDS or count < 2:
        call()
        count += 1
    return taken / count / AT_ONCE


def sizes(product: Product) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of both factors."""
    form, m, k, n = product
    return ((k, m) if form == "tn" else (m, k)), ((n, k) if form == "nt" else (k, n))


def xla(product: Product, dtype: str) -> Callable[[], object]:
    """The products of one program, as lmjax computes them: with a float32 result, weight gradients by either layout."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from lmjax.models.layers import row_major

    form, keys = product[0], jax.random.split(jax.random.key(0), AT_ONCE + 1)
    left, right = sizes(product)
    lefts = [jax.random.normal(key, left, jnp.dtype(dtype)) for key in keys[1:]]
    weight = jax.random.normal(keys[0], right, jnp.dtype(dtype))

    def compute(a: jax.Array, b: jax.Array) -> jax.Array:
        if form == "tn" and dtype == "bfloat16":
            return lax.dot_general(row_major(a.T), b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        contracted = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}[form]
        return lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)

    every = jax.jit(lambda lefts, b: [compute(a, b) for a in lefts])
    return lambda: jax.block_until_ready(every(lefts, weight))


def onednn(product: Product, dtype: str) -> Callable[[], object]:
    """The products as PyTorch computes them; a result has the dtype of its factors."""
    import torch

    form = product[0]
    a, b = (torch.randn(size).to(getattr(torch, dtype)) for size in sizes(product))
    left, right = (a.T if form == "tn" else a), (b.T if form == "nt" else b)

    def compute() -> None:
        for _ in range(AT_ONCE):
            left @ right  # pyright: ignore[reportUnusedExpression]

    return compute


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        main()
