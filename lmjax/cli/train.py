"""`lmjax train` and train.py."""

import argparse
import inspect
import re
import shlex
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lmjax.cli.entry import start_jax
from lmjax.cli.explain import commented
from lmjax.config import Config, UserError, presets
from lmjax.config.checks import check
from lmjax.config.codec import to_json
from lmjax.config.json_text import decode_utf8

EXAMPLES = """\
examples:
  {train}                                         the quickstart: no file, no download, no accelerator
  {train} shakespeare_char_cpu data.files=[shakespeare.txt]
  {train} quickstart model.layers=6 schedule.peak=1e-3 --run-dir runs/deeper
  {train} --resume runs/quickstart                resume a run; the result is bit-identical
  {train} --resume runs/quickstart train.updates=2000 --allow-change train.updates
  {train} quickstart --print-config               every key with its value
  {train} --help schedule.peak                    what a key means
"""


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a configuration and changes to it."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key.path=value | @FILE",
        help="a configuration (a name below, a .py file or a config.json; default: quickstart), changes to it, and "
        "files of changes",
    )


def train_arguments(parser: argparse.ArgumentParser, program: str = "lmjax train") -> None:
    """Add the arguments of `lmjax train`."""
    config_arguments(parser)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to write the run (default: runs/NAME)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="resume the run in DIR")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="with --resume: let this key differ from the run's configuration (journaled)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration as JSON and stop")
    parser.add_argument(
        "--comments",
        action="store_true",
        help="with --print-config: one key=value a line, each with its meaning; to edit, and to use as @FILE",
    )
    parser.epilog = f"{preset_table()}\n{_key_table()}\n{EXAMPLES.format(train=program)}"
    parser.set_defaults(function=_train)


def preset_table() -> str:
    """Return the table of configurations, for the help text."""
    width = max(map(len, presets.names()), default=0)
    lines = (f"  {name:<{width}}  {summary}" for name, (_, summary) in presets.names().items())
    return "configurations:\n" + "\n".join(lines) + "\n"


def _key_table() -> str:
    """Return the table of the groups of keys, for the help text."""
    groups = [
        (name if i == 0 else "", member)
        for name, hint in get_type_hints(Config).items()
        for i, member in enumerate(get_args(hint) or (hint,))
        if is_dataclass(member) and not getattr(member, "__name__", "").startswith("Custom")  # a base class
    ]
    lines = (
        f"  {name + '.*' if name else '  or':<13} {(inspect.getdoc(hint) or '').splitlines()[0]}"
        for name, hint in groups
    )
    return "keys (`lmjax explain KEY` explains them, --print-config shows all values):\n" + "\n".join(lines) + "\n"


def _load(words: Sequence[str], *, default: str = "quickstart", **settings: Any) -> Config:
    """Load the configuration that words name, with changes; `settings`: of `presets.load`."""
    name, changes = words_of(words, default=default)
    return presets.load(name, changes, **settings)


def words_of(words: Sequence[str], *, default: str = "quickstart") -> tuple[str, list[str]]:
    """Return the configuration that words name, and the changes among them.

    Raises:
        UserError: There are several configurations.
    """
    words = [part for word in words for part in _words_of(word)]
    names = [word for word in words if not _is_change(word)]
    if len(names) > 1:
        raise UserError(f"one configuration at a time, got {' and '.join(names)} (a change is written key.path=value)")
    return names[0] if names else default, [word for word in words if _is_change(word)]


def _words_of(word: str) -> list[str]:
    """Return the words of `@FILE`: quoted as for a shell, with comments after `#`."""
    if not word.startswith("@"):
        return [word]
    text = decode_utf8(presets.read_bytes(Path(word[1:])), word)
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise UserError(f"{word}: {error}; quote values as for a shell") from None


def _is_change(word: str) -> bool:
    """Whether a word is `key.path=value`; a path may have an equals sign, too."""
    return re.match(r"[\w.\s]*=", word) is not None


def _saved(run_dir: Path) -> str:
    """Return the configuration file of a run; raise a UserError if it is not a run."""
    saved = run_dir / "config.json"
    if not saved.is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.json")
    return str(saved)


def _train(options: argparse.Namespace) -> int:
    if options.resume is not None:
        if options.run_dir is not None:
            raise UserError("--resume DIR continues in DIR; leave out --run-dir")
        allow = tuple(options.allow_change)
        config = _load(options.words, default=_saved(options.resume), resuming=True, allow=allow)
    else:
        if options.allow_change:
            raise UserError("--allow-change needs --resume DIR")
        config = _load(options.words)
    check(config)
    if options.print_config:
        print(commented(config) if options.comments else to_json(config), end="")
        return 0
    if options.comments:
        raise UserError("--comments needs --print-config")

    start_jax(config.runtime)
    from lmjax.run import launch, resume

    if options.resume is None:
        return launch.start(config, options.run_dir or Path("runs") / config.name)
    return resume.resume(config, options.resume, allow=tuple(options.allow_change))
