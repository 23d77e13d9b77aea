"""`lmjax report`."""

import argparse
from pathlib import Path

from lmjax.cli.entry import start_jax
from lmjax.config import UserError


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax report`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; several are overlaid")
    what = "the page (default: report.html in RUN; of several runs, compared.html in the first)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=what)
    parser.set_defaults(function=_report)


def _report(options: argparse.Namespace) -> int:
    if options.out and (options.out.suffix.lower() not in (".html", ".htm") or options.out.is_dir()):
        raise UserError(f"--out {options.out}: give the name of a file that ends in .html")
    start_jax()
    from lmjax.run import html_report

    print(html_report.write(options.runs, options.out))
    return 0
