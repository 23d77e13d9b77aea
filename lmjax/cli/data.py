"""`lmjax data`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.cli.train import config_arguments, words_of
from lmjax.config import UserError, presets, trust
from lmjax.config.checks import check


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax data`."""
    config_arguments(parser)
    what = "also count the examples of these evaluation tasks that occur in the training text"
    parser.add_argument("--tasks", metavar="A,B", default="", help=what)
    what = "also count documents with nearly the same text as an earlier one"
    parser.add_argument("--near", action="store_true", help=what)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.set_defaults(function=_data)


def _data(options: argparse.Namespace) -> int:
    name, changes = words_of(options.words)
    config = presets.load(name, changes, restrict=trust.for_reading)
    check(config)
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"cannot write {options.json}: there is no folder {options.json.parent}")
    start_jax(config.runtime)
    from lmjax.data.store.preparation import prepare
    from lmjax.diagnose import data_report
    from lmjax.display.console import Console
    from lmjax.run import build, data_warnings
    from lmjax.system.json_files import write_json
    from lmjax.tasks import catalog

    tasks = [catalog.load(task) for task in filter(None, options.tasks.split(","))]
    with Console() as console:
        run = build.build(config, prepare(config.data, report=console.report))
        for line in [*build.describe_data(run), *data_warnings.warnings(run)]:
            console.event(line)
        with console.phase("reading the documents"):
            found = data_report.streams(run.store, context=run.plan.context, near=options.near)
        header, rows = data_report.table(found)
        console.table("Documents", rows, header)
        results = {"streams": [asdict(report) for report in found]}
        if tasks:
            with console.phase("reading the training text"):
                overlap = data_report.contamination(run.store, tasks)
            lines = [(o.task, f"{o.words}", f"{o.examples:,}", f"{o.short:,}", f"{o.contaminated:,}") for o in overlap]
            console.table("Tasks in the training text", lines, ("task", "words", "examples", "too short", "found"))
            results["tasks"] = [asdict(one) for one in overlap]
        if options.json:
            write_json(options.json, results)
            console.event(f"written: {options.json}")
    return 0
