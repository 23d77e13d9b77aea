"""The command line. Heavy modules are imported only after the arguments are checked."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lmjax import __version__
from lmjax.cli import models
from lmjax.cli.data import data_arguments
from lmjax.cli.entry import HelpFormatter, extensions_argument, finish, parse
from lmjax.cli.explain import HelpAction, explain_arguments
from lmjax.cli.inspect import (
    audit_arguments,
    ladder_arguments,
    plan_arguments,
    plot_arguments,
    rehearse_arguments,
)
from lmjax.cli.report import report_arguments
from lmjax.cli.sweep import sweep_arguments
from lmjax.cli.tokenizers import tokenizer_arguments
from lmjax.cli.train import train_arguments

# Commands that read a configuration, which may list Python files.
_EXTENSIBLE = ("train", "sweep", "plan", "data", "generate", "evaluate", "export", "audit", "rehearse")

# Commands with `--help KEY`.
_EXPLAINING = ("train", "plan")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `lmjax` command."""
    parser = argparse.ArgumentParser(
        prog="lmjax",
        description="Pretrain language models in JAX. A run is a pure function of (config, seed, journal).",
        epilog="`lmjax COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, add, summary in (
        ("train", train_arguments, "train a model, or resume a run"),
        ("plan", plan_arguments, "what a run will do and need; nothing is trained"),
        ("data", data_arguments, "lengths, duplicates and losses of prepared text, and its overlap with tasks"),
        ("explain", explain_arguments, "what a configuration key, a group of keys or a configuration means"),
        (
            "generate",
            models.generate_arguments,
            "continue, translate, fill in or classify a text with a trained model",
        ),
        ("evaluate", models.evaluate_arguments, "measure zero-, one- and few-shot prompting"),
        ("compare", models.compare_arguments, "two results of evaluate, with paired tests"),
        ("export", models.export_arguments, "write a run as a folder for transformers"),
        ("report", report_arguments, "one HTML page about one or several runs"),
        ("plot", plot_arguments, "draw the curves of one or several runs"),
        ("audit", audit_arguments, "check a run and print its history"),
        ("rehearse", rehearse_arguments, "prove on a small copy of a configuration that its run survives faults"),
        ("sweep", sweep_arguments, "a grid of runs one after the other, or a range test of the learning rate"),
        ("ladder", ladder_arguments, "the history of language models, side by side at equal compute"),
        ("tokenizer", tokenizer_arguments, "train a tokenizer, report on one, show the tokens of a text"),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=HelpFormatter, add_help=name not in _EXPLAINING
        )
        if name in _EXPLAINING:
            command.add_argument("-h", "--help", action=HelpAction)
        add(command)
        if name in _EXTENSIBLE:
            extensions_argument(command)
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.exit(2, parser.format_help())
    finish(parse(parser, arguments))


def train_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command of train.py."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a language model, or resume a run.",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpAction)
    train_arguments(parser, program="python train.py")
    extensions_argument(parser)
    finish(parse(parser, arguments))


if __name__ == "__main__":
    main()
