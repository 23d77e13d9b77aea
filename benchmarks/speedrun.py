"""How soon a loss is reached: `python benchmarks/speedrun.py PATH/TO/input.txt [--seeds N] [--torch SETTING]`.

On Tiny Shakespeare, characters: nanoGPT's recipe for a CPU in PyTorch, and the preset `speedrun_char` by train.py, each
in a process of its own, one after the other. Prints the validation loss of both (the whole split, the last tenth),
their seconds of training, and those of PyTorch until its loss is first at most 1.92 nats a character.

Training is the time of all updates; the first one, which compiles, counts as the median of the others and is shown
apart. PyTorch is evaluated every 100 updates, which counts nowhere; lmjax once, at the end. The whole process is
everything from its start: imports, compilation (with an empty cache for the first seed), data, training, and for lmjax
its journal, checkpoints, evaluation and plots.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.92
SETTINGS = ("bfloat16", "float32", "bfloat16-compiled", "float32-compiled")
LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 4, 128, 4, 64, 12  # nanoGPT's recipe for a CPU
UPDATES, WARMUP, PEAK, FINAL, BETA2 = 2000, 100, 1e-3, 1e-4, 0.99
EVALUATE_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="PATH/TO/input.txt")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train each N times, with seeds 0, 1, ...")
    parser.add_argument("--torch", choices=SETTINGS, default=SETTINGS[0], help="how PyTorch computes (%(default)s)")
    parser.add_argument("--side", type=int, metavar="SEED", help=argparse.SUPPRESS)  # the process of PyTorch
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(pytorch(options.text, options.side, options.torch)))
        return
    print("| | seed | updates | first update, s | training, s | whole process, s | loss | training until 1.92, s |")
    print("|---|---|---|---|---|---|---|---|")
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            theirs.append(row(f"PyTorch, {options.torch}", seed, start_pytorch(options.text, seed, options.torch)))
            ours.append(row("lmjax, speedrun_char", seed, start_lmjax(options.text, seed, Path(folder))))
    slow, fast = (statistics.median(side) for side in (theirs, ours))
    print(f"\nMedian training time until {TARGET}: PyTorch {slow:.1f} s, lmjax {fast:.1f} s: {slow / fast:.1f} times")


@dataclass(frozen=True)
class Side:
    """What one process did. seconds: of each update. scores: (update, validation loss). process: seconds in all."""

    seconds: list[float]
    scores: list[tuple[int, float]]
    process: float


def row(name: str, seed: int, side: Side) -> float:
    """Prints a line of the table; returns the seconds until the target, of all updates where it was not reached."""
    updates, loss = side.scores[-1]
    reached = next((update for update, loss in side.scores if loss <= TARGET), None)
    until = training(side.seconds[:reached])
    shown = f"{until:.1f} ({reached} updates)" if reached else "not reached"
    cells = [name, seed, updates, f"{side.seconds[0]:.1f}", f"{training(side.seconds):.1f}", f"{side.process:.1f}"]
    print("|", " | ".join(map(str, [*cells, f"{loss:.3f}", shown])), "|", flush=True)
    return until


def training(seconds: list[float]) -> float:
    """Seconds of training without compilation."""
    return sum(seconds[1:]) + statistics.median(seconds[1:])


# ---- lmjax ----------------------------------------------------------------------------------------------------------


def start_lmjax(text: Path, seed: int, folder: Path) -> Side:
    run = folder / f"run-{seed}"
    words = ["speedrun_char", f"data.files=[{text.resolve()}]", f"seed={seed}", "--run-dir", str(run)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    begun = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "train.py", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    process = time.perf_counter() - begun
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records if "seconds" in record]
    summary = json.loads((run / "summary.json").read_text())
    return Side(seconds, [(summary["updates"], summary["val_loss"])], process)


# ---- PyTorch --------------------------------------------------------------------------------------------------------


def start_pytorch(text: Path, seed: int, setting: str) -> Side:
    words = [text.resolve(), "--side", str(seed), "--torch", setting]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE)
    process = time.perf_counter() - begun
    found = json.loads(done.stdout)
    return Side(found["seconds"], found["scores"], process - found["evaluating"])


def pytorch(text: Path, seed: int, setting: str) -> dict[str, Any]:
    """Trains; returns the seconds of each update, the scores, and the seconds that all evaluations took."""
    import torch
    import torch.nn.functional as F
    from torch_gpt import GPT, Trainer

    characters = text.read_text()
    numbers = {character: number for number, character in enumerate(sorted(set(characters)))}
    ids = torch.tensor([numbers[character] for character in characters])
    train, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    torch.manual_seed(seed)
    model = GPT(layers=LAYERS, width=WIDTH, heads=HEADS, context=CONTEXT, vocab_size=len(numbers))
    bfloat16, compiled = setting.startswith("bfloat16"), setting.endswith("compiled")
    trainer = Trainer(model, rate=PEAK, beta2=BETA2, bfloat16=bfloat16, compiled=compiled)

    inputs, targets = pieces(validation[:-1]), pieces(validation[1:])

    @torch.no_grad()
    def evaluate() -> float:
        total = 0.0
        for inputs_BT, targets_BT in zip(inputs, targets, strict=True):
            logits_BTV = F.linear(model.features(inputs_BT), model.tokens.weight)
            total += F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum").item()
        return total / (len(validation) - 1)

    seconds, scores, evaluating = [], [], 0.0
    for update in range(1, UPDATES + 1):
        begun = time.perf_counter()
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate(update)
        starts = torch.randint(len(train) - CONTEXT, (BATCH, 1))
        windows = train[starts + torch.arange(CONTEXT + 1)]
        trainer.update(windows[:, :-1], windows[:, 1:])
        seconds.append(time.perf_counter() - begun)
        if update % EVALUATE_EVERY == 0:
            begun = time.perf_counter()
            scores.append((update, evaluate()))
            evaluating += time.perf_counter() - begun
    return {"seconds": seconds, "scores": scores, "evaluating": evaluating}


def pieces(ids: Any) -> list[Any]:
    """All of them in rows of the context, 64 at a time; the last row may be shorter, if it is not empty."""
    whole = len(ids) // CONTEXT * CONTEXT
    return [*ids[:whole].view(-1, CONTEXT).split(64), *ids[None, whole:].split(1)[: whole < len(ids)]]


def rate(update: int) -> float:
    """Rising linearly, then a half cosine from the peak to a tenth of it."""
    if update <= WARMUP:
        return PEAK * update / WARMUP
    spent = (update - WARMUP) / (UPDATES - WARMUP)
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * spent)) / 2


if __name__ == "__main__":
    main()
