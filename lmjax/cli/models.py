"""Commands on trained models: generate, evaluate, compare, export."""

import argparse
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.config import UserError


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, a Hugging Face folder, or a .gguf file")
    what = "checkpoint of a run: newest, best, or the number of an update"
    parser.add_argument("--checkpoint", default="newest", metavar="C", help=what)


def _dtype_argument(parser: argparse.ArgumentParser) -> None:
    what = "dtype of the matrix products of a model that is not a run (a run has its own)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=what)


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax generate`."""
    _model_arguments(parser)
    _dtype_argument(parser)
    what = "the text to continue, translate or classify, or with a [MASK] for each word to fill in (BERT); repeatable"
    parser.add_argument("--prompt", required=True, action="append", help=what)
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the most likely token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most likely tokens (0: all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the most likely tokens with total probability P"
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens with at least P times the highest probability",
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: fewer repetitions")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    parser.add_argument("--past-end", action="store_true", help="continue after the end of a document")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.set_defaults(function=_generate)


def _generate(options: argparse.Namespace) -> int:
    names = ("checkpoint", "dtype", "max_tokens", "temperature", "top_k", "top_p", "min_p", "past_end", "seed")
    settings = {name: getattr(options, name) for name in (*names, "repetition_penalty")}
    start_jax()
    from lmjax.cli import actions

    return actions.generate_texts(options.model, options.prompt, stop=tuple(options.stop), **settings)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of names: write a,b")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"--shots {text}: give numbers of examples, as in 0,1,5") from None


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax evaluate`."""
    from lmjax.tasks.catalog import names

    _model_arguments(parser)
    _dtype_argument(parser)
    add = parser.add_argument
    what = "bundled tasks (below), folders, tables (.jsonl, .csv, .parquet, ...), BIG-bench tasks, hub:NAME"
    add("--tasks", required=True, type=_names, metavar="A,B", help=what)
    add("--shots", default="0", metavar="0,1,5", help="numbers of examples in the prompt")
    add("--shot-seeds", type=int, default=1, metavar="N", help="draws of the examples, for the spread")
    add("--limit", type=int, default=0, metavar="N", help="documents of each task (0: all)")
    add("--balanced", action="store_true", help="examples cycle through the labels")
    add("--describe", action="store_true", help="begin the prompt with the task's description")
    add(
        "--mutual-info",
        action="store_true",
        help="also score choices relative to their probability after an empty prompt",
    )
    add(
        "--calibrate",
        action="store_true",
        help="also score choices relative to their probability after empty questions",
    )
    add("--show", type=int, default=0, metavar="N", help="print N prompts of each task with the answers")
    add(
        "--json", type=Path, metavar="FILE", help="write the result (in the formats of lm-evaluation-harness and lmjax)"
    )
    add("--samples", action="store_true", help="with --json: also write every prompt and response")
    add("--plot", type=Path, metavar="FILE", help="draw accuracy against the number of examples")
    add("--no-cache", action="store_true", help="neither use nor store cached answers")
    width = max(map(len, names()))
    parser.epilog = "bundled tasks:\n" + "".join(f"  {name:<{width}}  {what}\n" for name, what in names().items())
    parser.set_defaults(function=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.samples and not options.json:
        raise UserError("--samples are written next to --json FILE: give --json, too")
    settings = {name: getattr(options, name) for name in ("limit", "balanced")}
    settings |= {"shots": _numbers(options.shots), "seeds": options.shot_seeds, "described": options.describe}
    settings |= {"mutual_info": options.mutual_info, "calibrated": options.calibrate}
    named = {name: getattr(options, name) for name in ("checkpoint", "dtype", "json", "samples", "plot", "show")}
    start_jax()
    from lmjax.cli import actions

    cached = not options.no_cache
    return actions.evaluate_model(options.model, options.tasks, settings=settings, cached=cached, **named)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax compare`."""
    parser.add_argument("results", type=Path, nargs=2, metavar="FILE", help="what `lmjax evaluate --json` wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both curves")
    parser.set_defaults(function=_compare)


def _compare(options: argparse.Namespace) -> int:
    start_jax()
    from lmjax.cli import actions

    return actions.compare_evaluations(options.results, plot=options.plot)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax export`."""
    _model_arguments(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    parser.set_defaults(function=_export)


def _export(options: argparse.Namespace) -> int:
    start_jax()
    from lmjax.cli import actions

    return actions.export_run(options.model, options.folder, checkpoint=options.checkpoint)
