"""What the doors call to use a trained model: to continue texts, to be evaluated, compared, and handed on.

Each function returns an exit status.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax import pretrained
from lmjax import run as runs
from lmjax.config import CausalConfig, UserError
from lmjax.console import Console
from lmjax.generate import LanguageModel, Sampling
from lmjax.generate import generate as continued
from lmjax.interop import huggingface


def generate(path: Path, prompts: Sequence[str], *, checkpoint: str = "newest", dtype: Any, **settings: Any) -> int:
    """Prints what a model makes of each prompt: continued (as it comes), translated, filled in or classified.

    settings: those of `Sampling`. UserError: no such model, a setting out of range.
    """
    sampling = Sampling(**settings)
    lm = pretrained.foreign(path, dtype=dtype)
    if lm is None:
        run = pretrained.trained(path, checkpoint=checkpoint)
        if not isinstance(run.config.objective, CausalConfig):
            for prompt in prompts:
                print(run.task.answer(run.params, prompt, tokenizer=run.tokenizer, **settings))
            return 0
        lm = LanguageModel(run.model, run.params, run.tokenizer, name=str(path))
    lm = pretrained.causal(lm)
    if len(prompts) > 1:
        for prompt, text in zip(prompts, continued(lm, prompts, sampling=sampling), strict=True):
            print(prompt + text, end="\n\n")
        return 0
    print(prompts[0], end="", flush=True)
    continued(lm, prompts, sampling=sampling, show=lambda _, piece: print(piece, end="", flush=True))
    print()
    return 0


def evaluate(
    path: Path,
    tasks: Sequence[str],
    *,
    settings: dict[str, Any],
    checkpoint: str = "newest",
    dtype: Any = "float32",
    json: Path | None = None,
    samples: bool = False,
    plot: Path | None = None,
    show: int = 0,
    cached: bool = True,
) -> int:
    """Measures a model on tasks and prints the table; a run that learned from tasks only on the items that it held out.

    settings: those of `evaluator.Settings`. json, plot: where to write the result, and draw its curves. samples: every
    prompt and response too, beside `json`. show: prints so many prompts of each task with what came of them. cached:
    keeps answers, so that an evaluation that was stopped goes on. UserError: no such model or task, a file that cannot
    be written.
    """
    from lmjax.evaluate import cache, emergence, evaluator, picture, report

    chosen = evaluator.Settings(**settings)
    is_run = path.is_dir() and not huggingface.is_model(path) and (path / "config.json").is_file()
    trained_on = runs.trained_in_context(runs.saved_config(path)) if is_run else None
    loaded = emergence.load(tasks, trained_on)
    for file in filter(None, (json, plot)):
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    lm = pretrained.load(path, checkpoint=checkpoint, dtype=dtype)
    with Console() as console:
        progress = _Counter(console)
        kept = cache.of_model(lm) if cached else cache.Cache(None)
        result = evaluator.evaluate(lm, loaded, chosen, cache=kept, progress=progress)
        for name in result.tasks if show else ():
            for sample in [sample for sample in result.samples if sample.task == name][:show]:
                console.text(f"{name}, document {sample.id}, {sample.shots} examples", sample.prompt)
                console.text("answer: " + sample.target, "model: " + _response(sample))
        report.show(result, console)
        written = report.write_json(result, json, samples=samples) if json else []
        for file in [*written, *([picture.draw([result], plot)] if plot else [])]:
            console.event(f"written: {file}")
    return 0


def _response(sample: Any) -> str:
    parts = (r if isinstance(r, str) else f"{r[0]:.3f}{' (greedy)' * r[1]}" for r in sample.responses)
    return ", ".join(parts)


class _Counter:
    """Says on the console how many requests have been answered, a line that changes in place where it can."""

    def __init__(self, console: Console) -> None:
        self.console, self.live, self.last = console, sys.stdout.isatty(), -1

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if self.live and total:
            print(f"\r{done:,} of {total:,} requests", end="\n" if done == total else "", flush=True)
        elif tenth != self.last and total:
            self.console.event(f"{done:,} of {total:,} requests")
        self.last = tenth


def compare(paths: Sequence[Path], *, plot: Path | None = None) -> int:
    """Prints two results of `evaluate` side by side with paired tests, and draws their curves together."""
    from lmjax.evaluate import compare as comparison
    from lmjax.evaluate import picture, report

    a, b = (report.read_json(path) for path in paths)
    with Console() as console:
        comparison.show(comparison.compare(a, b), console, names=(a.model, b.model))
        if plot:
            console.event(f"written: {picture.draw([a, b], plot)}")
    return 0


def export(path: Path, folder: Path, *, checkpoint: str = "newest") -> int:
    """Writes a run as a folder that `transformers` loads. UserError: settings that have no counterpart there."""
    lm = pretrained.foreign(path)
    if lm is None:
        run = pretrained.trained(path, checkpoint=checkpoint)
        lm = LanguageModel(run.model, run.params, run.tokenizer, name=str(path))
    huggingface.export(lm, folder)
    print(f"{folder}: config.json, model.safetensors and the tokenizer")
    return 0
