"""One side of a comparison, in a process of its own: trains a shape, as many updates as it is told, and says how long.

Started by benchmarks/speed.py: python benchmarks/contender.py FRAMEWORK SHAPE DTYPE [key.path=value ...]
FRAMEWORK: lmjax, torch (eager) or torch.compile. It reads numbers of updates, a line each, and answers each with a JSON
object: seconds, loss, peak memory.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = {
    "cpu": {"layers": 4, "width": 128, "heads": 4, "context": 64, "batch": 12, "vocab_size": 65},
    "baby": {"layers": 6, "width": 384, "heads": 6, "context": 256, "batch": 16, "vocab_size": 65},
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "context": 256, "batch": 4, "vocab_size": 50304},
}
RATE, BETA2 = 1e-3, 0.95


def main() -> None:
    framework, shape, dtype, *changes = sys.argv[1:]
    begun = time.perf_counter()
    if framework == "lmjax":
        train = lmjax(SHAPES[shape], dtype, changes)
    else:
        train = pytorch(SHAPES[shape], dtype, compiled=framework == "torch.compile")
    answer({"ready": time.perf_counter() - begun, "loss": train(1)})
    for line in sys.stdin:
        begun = time.perf_counter()
        loss = train(int(line))
        answer({"seconds": time.perf_counter() - begun, "loss": loss})


def answer(what: dict[str, Any]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**what, "peak_memory_bytes": peak}), flush=True)


def tokens(shape: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (B, T)."""
    size = shape["batch"], shape["context"] + 1
    ids = np.random.default_rng(0).integers(shape["vocab_size"], size=size, dtype=np.int32)
    return ids[:, :-1], ids[:, 1:]


def lmjax(shape: dict[str, int], dtype: str, changes: list[str]) -> Callable[[int], float]:
    """The update of a run, with its guard and its metrics, the batch ready; sent off as the loop does."""
    from lmjax.config import presets
    from lmjax.config.codec import apply_overrides
    from lmjax.system import runtime

    batch, preset = shape["batch"], "shakespeare_char_cpu" if shape == SHAPES["cpu"] else "shakespeare_char"
    words = [f"model.{key}={value}" for key, value in shape.items() if key != "batch"]
    words += ["model.dropout=0", f"model.dtype={dtype}", f"schedule.peak={RATE}", f"optimizer.beta2={BETA2}"]
    words += [f"batch.tokens=((0,{batch * shape['context']}),)", f"batch.microbatch={batch}"]
    config = apply_overrides(presets.load(preset), [*words, *changes])
    runtime.prepare(config.runtime)
    import jax

    from lmjax.parallel import mesh
    from lmjax.run import build
    from lmjax.training.step import fetch

    made = build.without_data(config)
    update, state, dispatch = build.step_function(made), build.init(made), made.dispatch
    inputs, targets = tokens(shape)
    arrays = {"inputs_BT": inputs, "targets_BT": targets, "weights_BT": np.ones(inputs.shape, np.float32)}
    batch: dict[str, Any] = {"arrays": {name: array[None] for name, array in arrays.items()}}
    batch |= {"microbatches": np.int32(1), "learning_rate": np.float32(RATE), "regime": np.int32(0)}
    if not mesh.on_host(made.mesh):
        batch = jax.device_put(batch)
    number = 0

    def train(count: int) -> float:
        nonlocal state, number
        on_their_way: list[tuple[dict[str, Any], int]] = []
        loss = math.nan
        while count or on_their_way:
            if count:
                size = min(dispatch.updates_per_dispatch, count)
                batches = [batch | {"update": np.int32(number + i)} for i in range(size)]
                state, metrics = update(state, batches)
                on_their_way.append((metrics, size))
                number, count = number + size, count - size
            if len(on_their_way) > (0 if dispatch.serialize else bool(count)):
                loss = fetch(*on_their_way.pop(0))[-1]["loss"]
        return loss

    return train


def pytorch(shape: dict[str, int], dtype: str, *, compiled: bool) -> Callable[[int], float]:
    """The same in PyTorch."""
    import torch
    from torch_gpt import GPT, Trainer

    torch.manual_seed(0)
    model = GPT(**{key: value for key, value in shape.items() if key != "batch"})
    trainer = Trainer(model, rate=RATE, beta2=BETA2, bfloat16=dtype == "bfloat16", compiled=compiled)
    inputs, targets = (torch.from_numpy(array).long() for array in tokens(shape))

    def train(count: int) -> float:
        loss = torch.tensor(math.nan)
        for _ in range(count):
            loss = trainer.update(inputs, targets)
        return loss.item()

    return train


if __name__ == "__main__":
    main()
