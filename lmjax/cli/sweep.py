"""`lmjax sweep`."""

import argparse
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.cli.train import config_arguments, words_of
from lmjax.config import Config, UserError, grid, presets


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax sweep`."""
    config_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/sweep)")
    what = "field of summary.json to compare (default: bits per byte, else loss, else reward)"
    parser.add_argument("--metric", default="", metavar="NAME", help=what)
    what = "one run whose learning rate rises to LARGEST by the same factor in each update, and the loss at each rate"
    parser.add_argument("--lr-range", type=float, metavar="LARGEST", help=what)
    parser.epilog = (
        "key=a,b,c is an axis of the grid, key=0:3 the integers 0, 1 and 2; a list in brackets is one value\n\n"
        "  lmjax sweep quickstart schedule.peak=3e-4,1e-3,3e-3 seed=0:3 train.updates=200\n"
        "  lmjax sweep quickstart --lr-range 1 train.updates=200\n"
    )
    parser.set_defaults(function=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    name, changes = words_of(options.words)
    if options.lr_range is not None:
        return _lr_range(options, presets.load(name, changes))
    axes, fixed = grid.axes_of(changes)
    config = presets.load(name, fixed)
    start_jax(config.runtime)
    from lmjax.studies import sweep

    sweep.run_sweep(config, axes, options.out or Path("runs/sweep"), metric=options.metric)
    return 0


def _lr_range(options: argparse.Namespace, config: Config) -> int:
    if options.metric:
        raise UserError("--metric does not apply to --lr-range, which compares training losses; leave it out")
    start_jax(config.runtime)
    from lmjax.studies import lr_range

    lr_range.run_range(config, options.out or Path("runs/lr_range"), largest=options.lr_range)
    return 0
