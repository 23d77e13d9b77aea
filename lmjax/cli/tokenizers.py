"""`lmjax tokenizer`: train a tokenizer, report on one, show the tokens of a text."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmjax.cli.entry import start_jax
from lmjax.cli.train import config_arguments, words_of
from lmjax.config import UserError, presets

if TYPE_CHECKING:
    from lmjax.data.tokenizer import Tokenizer

_LARGEST = 1 << 24  # characters of a text of a report
_SHOWN = 10_000  # characters of a text whose tokens are shown


def tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `lmjax tokenizer`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="train a tokenizer on the data of a configuration")
    config_arguments(train)
    train.add_argument("--out", type=Path, default=Path("tokenizer.json"), metavar="FILE", help="the file to write")
    train.set_defaults(function=_train)
    what = "a tokenizer.json, a run, a Hugging Face folder, or a .gguf file"
    report = actions.add_parser("report", help="what a tokenizer is, and how it divides a text")
    report.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help=what)
    report.add_argument("--text", type=Path, metavar="FILE", help="the text (default: English that comes with Python)")
    report.set_defaults(function=_report)
    show = actions.add_parser("show", help="the tokens of a text, one in each line")
    show.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help=what)
    show.add_argument("text", metavar="TEXT", help="the text")
    show.set_defaults(function=_show)


def _train(options: argparse.Namespace) -> int:
    from lmjax.data import tokenizer
    from lmjax.data.sources import streams
    from lmjax.data.store import preparation
    from lmjax.system.runtime import prepare

    if options.out.is_dir() or not options.out.parent.is_dir():
        raise UserError(f"cannot write --out {options.out}: give the name of a file in a folder that exists")
    prepare()
    name, changes = words_of(options.words)
    data, dropped = presets.load(name, changes).data, streams.Dropped()

    def texts() -> Iterator[str]:
        dropped.reset()
        return preparation.tokenizer_texts(data, dropped=dropped)

    trained = tokenizer.build_tokenizer(data.tokenizer, texts)
    trained.save(options.out)
    for line in filter(None, [*preparation.file_notes(data), dropped.note()]):
        print(line)
    print(f"{options.out}: {trained.vocab_size} entries, sha256 {trained.sha256}")
    return 0


def _report(options: argparse.Namespace) -> int:
    text = _text(options.text)
    known = _tokenizer(options.tokenizer)
    from lmjax.data import tokenizer_report
    from lmjax.display.console import Console

    with Console() as console:
        console.table("Tokenizer", tokenizer_report.facts(known))
        name = options.text or "English that comes with Python"
        console.table(f"Text: {name}", tokenizer_report.measures(known, text))
    return 0


def _show(options: argparse.Namespace) -> int:
    if len(options.text) > _SHOWN:
        raise UserError(f"the text has {len(options.text):,} characters, more than {_SHOWN:,}; use tokenizer report")
    known = _tokenizer(options.tokenizer)
    from lmjax.data import tokenizer_report
    from lmjax.display.console import Console

    with Console() as console:
        rows = [(f"{row.id}", row.token, repr(row.text)) for row in tokenizer_report.rows(known, options.text)]
        console.table("Tokens", rows, ("id", "token", "text"))
    return 0


def _text(path: Path | None) -> str:
    """Return the text of a report.

    Raises:
        UserError: The file cannot be read, or has no text.
    """
    if path is None:
        from lmjax.data.sources import docstrings

        return "\n\n".join(docstrings.docstrings()["text"])[: _LARGEST // 64]
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"--text {path} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise UserError(f"--text {path} is empty; give a file with text")
    return text


def _tokenizer(path: Path) -> "Tokenizer":
    """Load the tokenizer of a file, a run or a model.

    Raises:
        UserError: There is none.
    """
    start_jax()
    from lmjax.data.tokenizer import load_tokenizer
    from lmjax.run import pretrained

    if path.suffix.lower() == ".gguf":
        model = pretrained.foreign(path)
        assert model is not None
        return model.tokenizer
    is_run = (path / "journal.jsonl").is_file()
    return load_tokenizer(path / "tokenizer.json" if is_run else path)
