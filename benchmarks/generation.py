"""Tokens a second of generation, lmjax and a cached loop in PyTorch in turn, each in a process of its own.

    python benchmarks/generation.py [--shape baby] [--rows 1,16] [--rounds 7] [--sides lmjax-float32,...]

Prompts of 16 tokens are continued by 200, drawn at temperature 1, through `lmjax.inference.generate.continue_ids` and
`torch_gpt.GPT.generate`. A side is a framework and a dtype: torch-bfloat16 has bfloat16 weights, torch-autocast float32
ones; torch.compile compiles the model for sizes that vary. The first round is not counted (it compiles). The ratio:
the median over the rounds of lmjax's tokens a second by those of the PyTorch side that is fastest with so many rows.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from contender import SHAPES
from turns import Worker, fastest, ratio, rounds

PROMPT, NEW = 16, 200
SIDES = (
    "lmjax-float32,lmjax-bfloat16,torch-float32,torch-bfloat16,torch-autocast,"
    "torch.compile-float32,torch.compile-bfloat16"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="baby")
    parser.add_argument("--rows", default="1,16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", default=SIDES)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker([__file__, "--worker", side, options.shape]))
            for side in options.sides.split(",")
        }
        print("| rows | side | tokens/s | first token, ms | lmjax / fastest PyTorch |\n|---|---|---|---|---|")
        for rows in map(int, options.rows.split(",")):
            for worker in workers.values():
                worker.ask(f"{rows}")
            table(rows, rounds(workers, f"{rows}", options.rounds))


def table(rows: int, answers: dict[str, list[dict[str, float]]]) -> None:
    """The lines of one count of rows."""
    seconds = {side: [each["seconds"] for each in found] for side, found in answers.items()}
    theirs = {side: taken for side, taken in seconds.items() if side.startswith("torch")}
    best = fastest(theirs) if theirs else None
    for side, taken in seconds.items():
        against = f"{ratio(theirs[best], taken):.2f} ({best})" if best and side.startswith("lmjax") else ""
        first = median(each["first"] for each in answers[side])
        print(f"| {rows} | {side} | {rows * NEW / median(taken):.0f} | {first * 1e3:.1f} | {against} |", flush=True)


# ---- One side ---------------------------------------------------------------------------------------------------


def work(side: str, shape: str) -> None:
    """Answers each line, a count of rows, with the seconds of all tokens and of the first."""
    framework, dtype = side.split("-")
    sizes = {key: value for key, value in SHAPES[shape].items() if key != "batch"}
    generate = lmjax(sizes, dtype) if framework == "lmjax" else pytorch(sizes, dtype, framework == "torch.compile")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        prompts = np.random.default_rng(0).integers(sizes["vocab_size"], size=(int(line), PROMPT))
        times = {}
        for name, count in (("first", 1), ("seconds", NEW)):
            begun = time.perf_counter()
            generate(prompts, count)
            times[name] = time.perf_counter() - begun
        print(json.dumps(times), flush=True)


def lmjax(sizes: dict[str, int], dtype: str) -> Callable[[np.ndarray, int], None]:
    """The path that `lmjax generate` takes, of a model that scans its layers as by default."""
    from lmjax.system import runtime

    runtime.prepare()
    from lmjax.config import GPTConfig
    from lmjax.inference.generate import continue_ids
    from lmjax.inference.sampling import Sampling
    from lmjax.models import gpt, registry

    config = GPTConfig(**sizes, bias=False, dtype=dtype)  # pyright: ignore[reportArgumentType]
    model = registry.build(config)
    params = gpt.init_params(model, 0)

    def generate(prompts: np.ndarray, count: int) -> None:
        *_, found = continue_ids(model, params, prompts.tolist(), sampling=Sampling(max_tokens=count))
        assert all(len(ids) == count for ids in found)

    return generate


def pytorch(sizes: dict[str, int], dtype: str, compiled: bool) -> Callable[[np.ndarray, int], None]:
    """The same in PyTorch."""
    import torch
    from torch_gpt import GPT

    torch.manual_seed(0)
    model = GPT(**sizes).eval()
    if dtype == "bfloat16":
        model = model.bfloat16()
    features = torch.compile(model.features, dynamic=True) if compiled else model.features

    def generate(prompts: np.ndarray, count: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            model.generate(torch.from_numpy(prompts), count, features)

    return generate


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
