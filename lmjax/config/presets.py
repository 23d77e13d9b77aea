"""Named configurations: each public function in `configs/*.py` is a preset.

A configuration file is source code and is executed; a saved `config.json` is data and is only parsed.
"""

import ast
import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lmjax.config import extensions, trust, user_files
from lmjax.config.checks import check
from lmjax.config.codec import LARGEST_CONFIG, apply_overrides, differences, from_tree
from lmjax.config.errors import CLOSE, UserError, nearest, one_line
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.config.schema import Config, TrainConfig

# Prefixes of the keys that leave the results of a run within its expected range.
_SAME_RESULTS = ("name:", "seed:", "data.cache:", "parallel.", "runtime.", "track.", "checkpoint.", "guard.")
_SAME_RESULTS += ("evaluate.", "train.log_", "train.sample_", "train.profile:", "train.callbacks:", "train.metrics:")
_SAME_RESULTS += ("train.baselines:", "train.evaluate_every:", "train.evaluate_batches:", "train.expect:")


#: Keys of which one gives the length of a run.
LENGTHS = ("train.updates", "train.tokens", "train.epochs")


def print_to_stderr(line: str) -> None:
    """Print a line next to the output of a command."""
    print(line, file=sys.stderr)


def folder() -> Path:
    """Return the folder of the presets: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names() -> dict[str, tuple[Path, str]]:
    """Return the file and the docstring's first line of each preset, without running its file."""
    return {name: (path, doc.split("\n")[0]) for name, (path, doc) in _documented().items()}


def docstring(name: str) -> str:
    """Return the docstring of a preset; empty for other names."""
    return _documented()[name][1] if name in _documented() else ""


@cache
def _documented() -> dict[str, tuple[Path, str]]:
    """The file and the docstring of each preset."""
    return {
        node.name: (path, ast.get_docstring(node) or "")
        for path in sorted(folder().glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def load(
    name: str,
    changes: Sequence[str] = (),
    *,
    resuming: bool = False,
    allow: Sequence[str] = (),
    restrict: Callable[[Config], tuple[Config, list[str]]] = trust.for_training,
    report: trust.Report = print_to_stderr,
) -> Config:
    """Load a configuration to train, and apply changes.

    A .json file is data: `restrict` says which of its settings are used.

    Args:
        name: A preset, the path of a .py file (or `file.py:function`), or the path of a config.json.
        changes: Changes of the user, such as `train.updates=20`.
        resuming: The file is that of a run to resume: its extensions are imported if they are unchanged.
        allow: With `resuming`, the keys that the user allows to differ from the run.
        restrict: `trust.for_training` or `trust.for_reading`.
        report: Receives the lines about settings of a .json file that are not used.

    Raises:
        UserError: The preset or file does not exist, the file defines no configuration, or a change is invalid.
    """
    if not name.endswith(".json"):
        return _changed(_by_name(name), changes)
    path = Path(name)
    config, ignored = restrict(_parse(path, exact=False, resuming=resuming, allow=allow))
    if resuming:  # the resume itself decides on data.cache
        ignored = [change for change in ignored if not change.startswith("data.cache=")]
    trust.report(config, ignored, changes, where=name, show=report)
    return _changed(config, changes)


def _changed(config: Config, changes: Sequence[str]) -> Config:
    """Apply changes; the expected results are removed if a change makes others possible."""
    changed = with_changes(config, changes)
    others = [line for line in differences(config, changed) if not line.startswith(_SAME_RESULTS)]
    if not others or changed.train.expect != config.train.expect:  # the user may state others
        return changed
    return replace(changed, train=replace(changed.train, expect=()))


def with_changes(config: Config, changes: Sequence[str]) -> Config:
    """Apply changes; one of `train.updates`, `tokens` and `epochs` replaces the others.

    Raises:
        UserError: A key or a value is invalid.
    """
    changed, default = apply_overrides(config, changes), TrainConfig()
    named = {change.partition("=")[0].strip() for change in changes}
    kinds = [key.partition(".")[2] for key in LENGTHS]
    if any(f"train.{kind}" in named and getattr(changed.train, kind) for kind in kinds):
        others = {kind: getattr(default, kind) for kind in kinds if f"train.{kind}" not in named}
        changed = replace(changed, train=replace(changed.train, **others))
    return changed


def read(path: Path, changes: Sequence[str] = (), *, report: trust.Report | None = None) -> Config:
    """Read the config.json of a run to use the run, without the settings of its machine.

    `trust.for_reading` says which settings are used.

    Args:
        path: The file; the copies of its extensions are next to it.
        changes: Changes of the user.
        report: Receives the lines about settings that are not used (None: they are not mentioned).

    Raises:
        UserError: The file is missing or malformed, a value is out of range, or extensions may not be imported.
    """
    config, ignored = trust.for_reading(_parse(path, exact=True))
    if report is not None:
        trust.report(config, ignored, changes, where=str(path), show=report)
    config = apply_overrides(config, changes)
    check(config)
    return config


def saved(path: Path) -> Config:
    """Return what a config.json says, to compare it; no extensions are imported.

    Raises:
        UserError: The file is missing or malformed.
    """
    return _typed(parse_json(read_bytes(path), str(path), largest=LARGEST_CONFIG), path)


def _parse(path: Path, *, exact: bool, resuming: bool = False, allow: Sequence[str] = ()) -> Config:
    """Parse a config.json, after the import of the extensions that it lists."""
    tree = parse_json(read_bytes(path), str(path), largest=LARGEST_CONFIG)
    entries = tree.get("extensions", []) if isinstance(tree, dict) else []
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):  # else `from_tree` refuses
        user_files.load_saved(entries, path.parent, exact=exact, resuming=resuming, allow=allow)
    return _typed(tree, path)


def _typed(tree: Any, path: Path) -> Config:
    try:
        return from_tree(tree, Config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _by_name(name: str) -> Config:
    """The configuration of a preset or of a .py file."""
    stem, _, function = name.partition(":")
    if stem.endswith(".py"):
        path = Path(stem)
        read_bytes(path)
        functions = _functions(path)
        function = function or (path.stem if path.stem in functions else next(iter(functions), ""))
        if function not in functions:
            raise UserError(f"{path}: no function '{function or path.stem}' that returns a Config")
        return _call(functions[function], path)
    if "/" in stem or "\\" in stem or Path(stem).is_file():
        problem = "it is neither a .py file nor a .json file" if Path(stem).exists() else "there is no such file"
        if (Path(stem) / "config.json").is_file():
            problem = f"it is a folder; use {Path(stem) / 'config.json'}"
        raise UserError(f"cannot read the configuration {name}: {problem}")
    presets = names()
    if name not in presets:
        raise unknown(name)
    path = presets[name][0]
    return _call(_functions(path)[name], path)


def unknown(name: str) -> UserError:
    """Return the error about an unknown preset; for `gpt2-medium` it names those of `gpt2`."""
    return UserError(
        f"unknown config '{name}'{nearest(_beginning(name), names(), '; `lmjax train --help` lists them')}"
    )


def has_similar(name: str) -> bool:
    """Return whether presets have a similar name, or its beginning."""
    return "did you mean" in nearest(_beginning(name), names())


def _beginning(name: str) -> str:
    """Return the name, or its first part if only that is known."""
    plain = name.lower().replace("-", "_")
    first = plain.partition("_")[0]
    is_close = bool(difflib.get_close_matches(plain, names(), 1, CLOSE))
    has_family = len(first) > 2 and any(preset.startswith(first) for preset in names())
    return first if has_family and not is_close else plain


def read_bytes(path: Path) -> bytes:
    """Return the content of a configuration file.

    Raises:
        UserError: There is no such file, or it is too large or cannot be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"no such config file: {path}")
        if path.stat().st_size > LARGEST_CONFIG:
            raise UserError(f"{path} is larger than {LARGEST_CONFIG:,} bytes: it is no configuration")
        return read_regular(path, largest=LARGEST_CONFIG)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {one_line(error)}") from None


def _functions(path: Path) -> dict[str, Callable[[], Config]]:
    module = user_files.import_file(path)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _call(function: Callable[[], Config], path: Path) -> Config:
    try:
        result = function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{path}: {function.__name__}()"
        raise UserError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(result, Config):
        raise UserError(f"{path}: {function.__name__}() returned {type(result).__name__}, not a Config")
    return replace(result, extensions=extensions.recorded(result))
