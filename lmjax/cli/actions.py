"""Actions of the commands on trained models: generate, evaluate, compare, export.

Each function returns an exit status.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.data.chat_tokens import chat_form
from lmjax.display.console import Console
from lmjax.inference import generation_settings
from lmjax.inference.generate import generate, unread
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.interop.huggingface.folder import export_model, is_model
from lmjax.models.classifier import Classifier
from lmjax.models.scalar import Scalar
from lmjax.objectives.assistant import Assistant
from lmjax.objectives.next_token import NextToken
from lmjax.run import build, pretrained, saved


def generate_texts(
    path: Path,
    prompts: Sequence[str],
    *,
    checkpoint: str = "newest",
    dtype: Any,
    special_tokens: bool = False,
    **settings: Any,
) -> int:
    """Continue, translate, fill in or classify each prompt, and print the result.

    A single continuation is streamed.

    Args:
        path: the model.
        prompts: the texts.
        checkpoint: checkpoint of a run.
        dtype: dtype of the matrix products of a model that is not a run.
        special_tokens: read the text of a special token as this token.
        **settings: the settings of `Sampling`.

    Raises:
        UserError: There is no such model, or a setting is out of range.
    """
    sampling = Sampling(**settings)
    lm = pretrained.foreign(path, dtype=dtype)
    if lm is None:
        run = pretrained.trained(path, checkpoint=checkpoint)
        if not isinstance(run.objective, NextToken) or isinstance(run.objective, Assistant):
            if special_tokens:
                raise UserError(f"--special-tokens is for models that continue a text; {path} is none")
            for prompt in prompts:
                print(run.objective.answer(run.params, prompt, tokenizer=run.tokenizer, **settings))
            return 0
        lm = pretrained.language_model(run, name=str(path))
    lm = pretrained.causal(lm)
    ids = [_ids(lm, prompt, special=special_tokens) for prompt in prompts]  # refused before anything is printed
    for line in _notes(lm, ids, sampling):
        print(line, file=sys.stderr)
    if len(prompts) > 1:
        for prompt, text in zip(prompts, generate(lm, ids, sampling=sampling), strict=True):
            print(prompt + text, end="\n\n")
        return 0
    print(prompts[0], end="", flush=True)
    generate(lm, ids, sampling=sampling, show=lambda _, piece: print(piece, end="", flush=True))
    print()
    return 0


def _notes(lm: LanguageModel, prompts: Sequence[list[int]], sampling: Sampling) -> Iterator[str]:
    """Say which settings of the model are not used, and what of the prompts is not read."""
    if unused := generation_settings.unused(lm.generation, sampling):
        listed = ", ".join(f"{name}={str(value)[:40]}" for name, value in unused.items())
        yield f"generation_config.json has {listed}; lmjax generate uses its own options"
    unknown = lm.tokenizer.unknown
    for number, prompt in enumerate(prompts, 1):
        if unknown in prompt:
            count = prompt.count(unknown)
            yield f"prompt {number}: the tokenizer cannot represent {count} of its {len(prompt)} tokens"
        if left_out := unread(lm, prompt):
            yield f"prompt {number}: its first {left_out} of {len(prompt)} tokens exceed the context"


def _ids(lm: LanguageModel, prompt: str, *, special: bool) -> list[int]:
    """Encode a prompt; one that begins with the token that precedes every text keeps it once."""
    if not special:
        return lm.ids(prompt)
    ids = lm.tokenizer.encode(prompt, special=True)
    first = [] if lm.first is None or ids[:1] == [lm.first] else [lm.first]
    return first + ids or list(lm.before())


def evaluate_model(
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
    allow_hub: bool = False,
) -> int:
    """Evaluate a model on tasks and print the table.

    A run that was trained on tasks is evaluated only on the items that it held out.

    Args:
        path: the model.
        tasks: names of the tasks.
        settings: the fields of `lmjax.evaluation.settings.Settings`.
        checkpoint: checkpoint of a run.
        dtype: dtype of the matrix products of a model that is not a run.
        json: file for the result.
        samples: also write every prompt and response, next to `json`.
        plot: file for the curves.
        show: number of prompts of each task to print with their responses.
        cached: store answers, so that an interrupted evaluation can continue.
        allow_hub: download a dataset of the hub that a task.json names.

    Raises:
        UserError: There is no such model or task, or a file cannot be written.
    """
    from lmjax.evaluation import cache, evaluator, in_training, report
    from lmjax.evaluation.settings import Settings

    chosen = Settings(**settings)
    is_run = path.is_dir() and not is_model(path) and (path / "config.json").is_file()
    trained_on = build.trained_in_context(saved.saved_config(path)) if is_run else None
    loaded = in_training.load(tasks, trained_on, allow_hub=allow_hub)
    for file in filter(None, (json, plot)):
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    draw = _drawing(plot) if plot else None
    lm = pretrained.load(path, checkpoint=checkpoint, dtype=dtype)
    with Console() as console:
        progress = _Counter(console)
        answer_cache = cache.of_model(lm) if cached else cache.Cache(None)
        result = evaluator.evaluate(lm, loaded, chosen, cache=answer_cache, progress=progress)
        for name in result.tasks if show else ():
            for sample in [sample for sample in result.samples if sample.task == name][:show]:
                console.text(f"{name}, document {sample.id}, {sample.shots} examples{_cut(sample)}", sample.prompt)
                console.text("answer: " + sample.target, "model: " + _response(sample))
        report.print_report(result, console)
        written = report.write_json(result, json, samples=samples) if json else []
        for file in [*written, *([draw([result])] if draw else [])]:
            console.event(f"written: {file}")
    return 0


def _drawing(path: Path) -> Callable[[Sequence[Any]], Path]:
    """Return the function that draws the curves of results into a file.

    Raises:
        UserError: A picture cannot have this name.
    """
    from lmjax.display.figures import check_name  # imports matplotlib, which is slow
    from lmjax.evaluation.shot_curves import draw

    check_name(path)
    return lambda results: draw(results, path)


def _cut(sample: Any) -> str:
    return f" (truncated: without its first {sample.truncated} tokens)" if sample.truncated else ""


def _response(sample: Any) -> str:
    parts = (r if isinstance(r, str) else f"{r[0]:.3f}{' (greedy)' * r[1]}" for r in sample.responses)
    return ", ".join(parts)


class _Counter:
    """The number of answered requests, on one changing line if the terminal allows it."""

    def __init__(self, console: Console) -> None:
        self.console, self.live, self.last = console, sys.stdout.isatty(), -1

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if self.live and total:
            print(f"\r{done:,} of {total:,} requests", end="\n" if done == total else "", flush=True)
        elif tenth != self.last and total:
            self.console.event(f"{done:,} of {total:,} requests")
        self.last = tenth


def compare_evaluations(paths: Sequence[Path], *, plot: Path | None = None) -> int:
    """Print two results of `evaluate` with paired tests, and draw their curves together."""
    from lmjax.evaluation import compare
    from lmjax.evaluation.report import notes, read_json

    draw = _drawing(plot) if plot else None
    a, b = (read_json(path) for path in paths)
    with Console() as console:
        compare.print_comparison(compare.compare_results(a, b), console, names=(a.model, b.model))
        for line in compare.differences(a, b):
            console.event(line)
        for name, result in (("a", a), ("b", b)):
            for line in notes(result):
                console.event(f"{name}: {line}")
        if draw:
            console.event(f"written: {draw([a, b])}")
    return 0


def export_run(path: Path, folder: Path, *, checkpoint: str = "newest") -> int:
    """Write a run as a folder that `transformers` loads.

    Raises:
        UserError: A setting has no counterpart in `transformers`.
    """
    lm = pretrained.foreign(path)
    if lm is None:
        run = pretrained.trained(path, checkpoint=checkpoint)
        if isinstance(run.model, Classifier | Scalar):
            raise UserError(
                f"{path} was trained for objective.family={run.config.objective.family}: an export is a language "
                "model, without the layer that this run learned; export the run that it started from"
            )
        known = run.tokenizer
        stops = run.objective.stops(known) if isinstance(run.objective, NextToken) else ()
        if isinstance(run.objective, Assistant):
            known = chat_form(known).with_template()
        bos, eos = (known.id_of_token(known.config.get(name, "")) for name in ("bos_token", "eos_token"))
        lm = LanguageModel(run.model, run.params, known, name=str(path), stops=stops, bos=bos, eos=eos)
    export_model(lm, folder)
    print(f"{folder}: config.json, model.safetensors and the tokenizer")
    return 0
