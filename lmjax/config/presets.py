"""Named configurations: each public function in `configs/*.py` is a preset.

A configuration file is source code and is executed; a saved `config.json` is data and is only parsed.
"""

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lmjax.config import extensions, user_files
from lmjax.config.codec import from_json, parse_json
from lmjax.config.errors import UserError, nearest, one_line
from lmjax.config.schema import Config


def folder() -> Path:
    """Return the folder of the presets: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names() -> dict[str, tuple[Path, str]]:
    """Return the file and the docstring's first line of each preset, without running its file."""
    presets = {}
    for path in sorted(folder().glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").split("\n")[0]
                presets[node.name] = (path, summary)
    return presets


def load(name: str) -> Config:
    """Load a configuration.

    Args:
        name: A preset, the path of a .py file (or `file.py:function`), or the path of a config.json.

    Raises:
        UserError: The preset or file does not exist, or the file defines no configuration.
    """
    if name.endswith(".json"):
        return read(Path(name))
    stem, _, function = name.partition(":")
    if stem.endswith(".py") or "/" in stem:
        path = Path(stem)
        _read(path)
        functions = _functions(path)
        function = function or (path.stem if path.stem in functions else next(iter(functions), ""))
        if function not in functions:
            raise UserError(f"{path}: no function '{function or path.stem}' that returns a Config")
        return _call(functions[function], path)
    presets = names()
    if name not in presets:
        raise UserError(f"unknown config '{name}'{nearest(name, presets)}")
    path = presets[name][0]
    return _call(_functions(path)[name], path)


def read(path: Path, *, exact: bool = False) -> Config:
    """Read a config.json, after the extensions that it lists.

    Args:
        path: The file; the copies of extensions that are gone are next to it.
        exact: Import the extensions of the run also where their files have changed since.

    Raises:
        UserError: The file is missing or malformed, or an extension cannot be imported.
    """
    text = _read(path)
    tree = parse_json(text)
    entries = tree.get("extensions", []) if isinstance(tree, dict) else []
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):  # else `from_json` refuses
        user_files.load(entries, path.parent / user_files.FOLDER, exact=exact)
    return from_json(text, Config)


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    return path.read_text(encoding="utf-8")


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
    except Exception as error:
        where = f"{path}: {function.__name__}()"
        raise UserError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(result, Config):
        raise UserError(f"{path}: {function.__name__}() returned {type(result).__name__}, not a Config")
    return replace(result, extensions=extensions.recorded(result))
