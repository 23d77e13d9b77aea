"""Commands on trained models: generate, evaluate, compare, export."""

import argparse
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.config import UserError
from lmjax.config.defaults import DRAWN

_LARGEST = 2**31 - 1  # of the integers that a model computes with
_LARGEST_FILE = 16_000_000  # characters of prompts


def _model_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    what = "a run, a Hugging Face folder, or a .gguf file"
    parser.add_argument("model", type=Path, metavar="MODEL", help=what, nargs="?" if optional else None)
    what = "checkpoint of a run: newest, best, or the number of an update"
    parser.add_argument("--checkpoint", default="newest", metavar="C", help=what)


def _dtype_argument(parser: argparse.ArgumentParser) -> None:
    what = "dtype of the matrix products of a model that is not a run (a run has its own)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=what)


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax generate`."""
    _model_arguments(parser)
    _dtype_argument(parser)
    what = "the text to continue, translate or classify, or with a [MASK] for each word to fill in (BERT); "
    what += "repeatable; - reads it from the standard input"
    parser.add_argument("--prompt", action="append", default=[], help=what)
    parser.add_argument("--prompt-file", metavar="FILE", help="a text file with a prompt in each line")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="new tokens at most")
    what = "divides the logits; 0: always the most likely token"
    parser.add_argument("--temperature", type=float, default=DRAWN["temperature"], metavar="T", help=what)
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most likely tokens; 0: all")
    what = "only the most likely tokens with total probability P; 1: all"
    parser.add_argument("--top-p", type=float, default=DRAWN["top_p"], metavar="P", help=what)
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens with at least P times the highest probability",
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: fewer repetitions")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")
    parser.add_argument(
        "--special-tokens",
        action="store_true",
        help="read the text of a special token in a prompt, such as <|endoftext|>, as this token (without the option: "
        "as ordinary text)",
    )
    parser.add_argument("--past-end", action="store_true", help="continue after the end of a document")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="from 0 to 2^64 - 1")
    parser.set_defaults(function=_generate)


def _generate(options: argparse.Namespace) -> int:
    names = ("checkpoint", "dtype", "max_tokens", "temperature", "top_k", "top_p", "min_p", "past_end", "seed")
    settings = {name: getattr(options, name) for name in (*names, "repetition_penalty", "special_tokens")}
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "max_tokens", "top_k"):
        _check_number(name, settings[name])
    prompts = _prompts(options)
    _check_text("prompt", prompts)
    _check_text("stop", options.stop)
    start_jax()
    from lmjax.cli import actions

    return actions.generate_texts(options.model, prompts, stop=tuple(options.stop), **settings)


def _prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts of the options, of the standard input and of a file.

    Raises:
        UserError: There is none, or the file cannot be read.
    """
    prompts = [_standard_input() if prompt == "-" else prompt for prompt in options.prompt]
    if options.prompt_file is not None:
        try:
            with Path(options.prompt_file).open(encoding="utf-8") as file:
                lines = file.read(_LARGEST_FILE + 1)
        except (OSError, ValueError) as error:
            raise UserError(f"--prompt-file {options.prompt_file} cannot be read as UTF-8 text: {error}") from None
        if len(lines) > _LARGEST_FILE:
            raise UserError(f"--prompt-file {options.prompt_file} has more than {_LARGEST_FILE:,} characters")
        prompts += [line for line in lines.splitlines() if line.strip()]
    if not prompts:
        found = "has no line with a prompt" if options.prompt_file is not None else "is missing"
        name = f"--prompt-file {options.prompt_file}" if options.prompt_file is not None else "--prompt TEXT"
        raise UserError(f"{name} {found}: give --prompt TEXT, --prompt - (the standard input) or --prompt-file FILE")
    return prompts


def _standard_input() -> str:
    try:
        text = sys.stdin.buffer.read(_LARGEST_FILE + 1).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt -: the standard input is not UTF-8: {error}") from None
    if len(text) > _LARGEST_FILE:
        raise UserError(f"--prompt -: the standard input has more than {_LARGEST_FILE:,} characters")
    return text.removesuffix("\n")


def _check_number(name: str, number: float, *, least: float = 0) -> None:
    """Raise UserError if the number of an option is negative, too large or not finite."""
    largest = _LARGEST if isinstance(number, int) else float("inf")
    if not (isfinite(number) and least <= number <= largest):
        limits = f"an integer from {least} to {largest}" if isinstance(number, int) else f"a finite number >= {least}"
        raise UserError(f"--{name.replace('_', '-')} {number}: give {limits}")


def _check_text(name: str, texts: Sequence[str]) -> None:
    """Raise UserError if a text is not UTF-8, of which the command line keeps the bytes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            byte = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "half a character"
            raise UserError(f"--{name}: the text is not UTF-8: {byte} at character {error.start}") from None


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

    _model_arguments(parser, optional=True)
    _dtype_argument(parser)
    add = parser.add_argument
    what = "bundled tasks (below), folders, tables (.jsonl, .csv, .parquet, ...), BIG-bench tasks, hub:NAME"
    add("--tasks", type=_names, default=[], metavar="A,B", help=what)
    add("--list", action="store_true", help="print the bundled tasks; no model is needed")
    add("--explain", metavar="TASK", help="print the settings, counts and a prompt of a task; no model is needed")
    add("--allow-hub", action="store_true", help="download a dataset of the hub that a task.json names")
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
    what = "what precedes a text without context: the model's rule (BOS, else EOS), its BOS, its EOS, or nothing"
    add("--first-token", choices=("model", "bos", "end", "none"), default="model", help=what)
    add(
        "--window", type=int, default=0, metavar="N", help="tokens of a window of a perplexity (0: the model's context)"
    )
    add("--max-tokens", type=int, default=0, metavar="N", help="generated tokens at most (0: as each task says)")
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
    if options.list or options.explain is not None:
        return _describe(options)
    if options.model is None or not options.tasks:
        raise UserError("evaluate needs a MODEL and --tasks A,B (or --list, or --explain TASK)")
    if options.samples and not options.json:
        raise UserError("--samples are written next to --json FILE: give --json, too")
    settings = {name: getattr(options, name) for name in ("limit", "balanced")}
    settings |= {"shots": _numbers(options.shots), "seeds": options.shot_seeds, "described": options.describe}
    settings |= {"mutual_info": options.mutual_info, "calibrated": options.calibrate}
    settings |= {name: getattr(options, name) for name in ("first_token", "window", "max_tokens")}
    for name in ("limit", "show", "window", "max_tokens"):
        _check_number(name, getattr(options, name))
    names = ("checkpoint", "dtype", "json", "samples", "plot", "show", "allow_hub")
    named = {name: getattr(options, name) for name in names}
    start_jax()
    from lmjax.cli import actions

    cached = not options.no_cache
    return actions.evaluate_model(options.model, options.tasks, settings=settings, cached=cached, **named)


def _describe(options: argparse.Namespace) -> int:
    """Print the bundled tasks, or what a task consists of."""
    from lmjax.cli import task_help

    if options.list:
        return task_help.list_tasks()
    draw = {"balanced": options.balanced, "described": options.describe, "allow_hub": options.allow_hub}
    return task_help.explain_task(options.explain, max(_numbers(options.shots)), **draw)


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
