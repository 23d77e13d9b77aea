"""The doors to trained models: generate, evaluate, compare, export."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.doors import with_jax


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, a Hugging Face folder, or a .gguf file")
    what = "of a run: newest, best, or the number of an update"
    parser.add_argument("--checkpoint", default="newest", metavar="C", help=what)


def _dtype_argument(parser: argparse.ArgumentParser) -> None:
    what = "of the matrix products of a model that is not a run (a run's are its own)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=what)


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _dtype_argument(parser)
    what = "the text to continue, translate or classify, or with a [MASK] for each word to fill in (BERT); repeatable"
    parser.add_argument("--prompt", required=True, action="append", help=what)
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the most likely token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most likely tokens (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only the most likely share P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="only P times as likely as the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: less of the same")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends there; repeatable")
    parser.add_argument("--past-end", action="store_true", help="go on behind the end of a document")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.set_defaults(function=_generate)


def _generate(options: argparse.Namespace) -> int:
    names = ("checkpoint", "dtype", "max_tokens", "temperature", "top_k", "top_p", "min_p", "past_end", "seed")
    settings = {name: getattr(options, name) for name in (*names, "repetition_penalty")}
    return _with_commands(
        lambda commands: commands.generate(options.model, options.prompt, stop=tuple(options.stop), **settings)
    )


def _with_commands(call: Callable[[Any], int]) -> int:
    def use(_: Any) -> int:
        from lmjax import commands

        return call(commands)

    return with_jax(use)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of names: write a,b")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"--shots {text}: give numbers of examples, as in 0,1,5") from None


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from lmjax.prompting.task import names

    _model_arguments(parser)
    _dtype_argument(parser)
    add = parser.add_argument
    what = "bundled tasks (below), folders, .jsonl/.json/.parquet files, BIG-bench tasks, hub:NAME"
    add("--tasks", required=True, type=_names, metavar="A,B", help=what)
    add("--shots", default="0", metavar="0,1,5", help="numbers of examples in the prompt")
    add("--shot-seeds", type=int, default=1, metavar="N", help="draws of the examples, for the spread")
    add("--limit", type=int, default=0, metavar="N", help="documents of each task (0: all)")
    add("--balanced", action="store_true", help="examples take the labels in turn")
    add("--describe", action="store_true", help="begin the prompt with the task in words")
    add("--mutual-info", action="store_true", help="also score choices against their chance after nothing")
    add("--calibrate", action="store_true", help="also score choices against their chance after empty questions")
    add("--show", type=int, default=0, metavar="N", help="print N prompts of each task with the answers")
    add("--json", type=Path, metavar="FILE", help="write the result (in lm-evaluation-harness's shape, and our own)")
    add("--samples", action="store_true", help="with --json: every prompt and response beside it")
    add("--plot", type=Path, metavar="FILE", help="draw accuracy against the number of examples")
    add("--no-cache", action="store_true", help="neither use nor keep answers of before")
    width = max(map(len, names()))
    parser.epilog = "bundled tasks:\n" + "".join(f"  {name:<{width}}  {what}\n" for name, what in names().items())
    parser.set_defaults(function=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.samples and not options.json:
        raise UserError("--samples are written beside --json FILE: give it, too")
    settings = {name: getattr(options, name) for name in ("limit", "balanced")}
    settings |= {"shots": _numbers(options.shots), "seeds": options.shot_seeds, "described": options.describe}
    settings |= {"mutual_info": options.mutual_info, "calibrated": options.calibrate}
    named = {name: getattr(options, name) for name in ("checkpoint", "dtype", "json", "samples", "plot", "show")}
    return _with_commands(
        lambda commands: commands.evaluate(
            options.model, options.tasks, settings=settings, cached=not options.no_cache, **named
        )
    )


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs=2, metavar="FILE", help="what `lmjax evaluate --json` wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both curves")
    parser.set_defaults(function=lambda o: _with_commands(lambda commands: commands.compare(o.results, plot=o.plot)))


def export_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    parser.set_defaults(
        function=lambda o: _with_commands(lambda commands: commands.export(o.model, o.folder, checkpoint=o.checkpoint))
    )
