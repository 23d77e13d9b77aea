"""The Python files that a configuration lists: import, identify and copy them.

An entry is `PATH#sha256=HASH`: a resume compares the hash, and every later command imports the file again. Imports no
JAX.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from lmjax.config.errors import UserError

#: The folder of the copies in a run directory.
FOLDER = "extensions"

#: Imported files: path -> (hash of the imported content, module).
_imported: dict[Path, tuple[str, ModuleType]] = {}
#: Copies of files, which register under the path of the original: copy -> original.
_originals: dict[Path, Path] = {}


def import_file(path: Path, original: Path | None = None) -> ModuleType:
    """Import a Python file, once for each content.

    Its folder is at the front of `sys.path` meanwhile.

    A file of a package (next to an `__init__.py`) is imported by its dotted name.

    Args:
        path: The file.
        original: The path under which it registers, if `path` is a copy.

    Raises:
        UserError: The file does not exist, or raises an error.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    digest = sha256(path)
    if path in _imported and _imported[path][0] == digest:
        return _imported[path][1]
    if original is not None:
        _originals[path] = original
    root, name = _root(path)
    sys.path.insert(0, str(root))
    try:
        module = importlib.import_module(name) if "." in name else _execute(path, f"lmjax_file_{name}_{digest[:12]}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}{_line(path, error)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(root))
    _imported[path] = (digest, module)
    return module


class _SourceLoader(SourceFileLoader):
    """Compiles the file at each import.

    Cached bytecode is identified by size and second of change, which two contents may share.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(path: Path, error: Exception) -> str:
    """The last line of the file that the error passed, as `, line N`."""
    lines = [error.lineno] if isinstance(error, SyntaxError) else []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""


def _root(path: Path) -> tuple[Path, str]:
    """The folder for `sys.path` and the dotted name of a file."""
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def original_of(path: Path) -> Path:
    """Return the absolute path under which a file registers."""
    return _originals.get(path.resolve(), path.resolve())


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- The files of a configuration -----------------------------------------------------------------------------------


def split(entry: str) -> tuple[Path, str]:
    """Return the path and the hash (or '') of an entry of `extensions`."""
    path, _, digest = entry.partition("#sha256=")
    return Path(path).expanduser(), digest


def load(entries: Iterable[str], copies: Path | None = None, *, exact: bool = False) -> None:
    """Import the files that a configuration lists.

    Args:
        entries: The entries.
        copies: Folder of the run's copies, used for a file that is gone.
        exact: Use the copy also for a file that has changed.

    Raises:
        UserError: A file is missing, has changed without a copy (`exact`), or cannot be imported.
    """
    for entry in entries:
        path, digest = split(entry)
        copy = None if copies is None else copies / _relative(path)
        changed = not path.is_file() or (exact and bool(digest) and sha256(path) != digest)
        if not changed:
            import_file(path)
        elif copy is not None and copy.is_file():
            import_file(copy, original=path.resolve())
        elif not path.is_file():
            raise UserError(f"extensions: {path} does not exist; bring it back")
        else:
            raise UserError(f"extensions: {path} is not the file of the run (sha256 {digest}); bring that one back")


def digest_of(path: Path) -> str:
    """The hash of a file: of the content that was imported, else of the content now."""
    if path in _imported:
        return _imported[path][0]
    copies = [copy for copy, original in _originals.items() if original == path]
    return sha256(path if path.is_file() or not copies else copies[-1])


def _relative(path: Path) -> Path:
    """The path of a file among the copies, where each original folder has a folder."""
    root, _ = _root(path)
    return Path(hashlib.sha256(str(root).encode()).hexdigest()[:8], path.relative_to(root))


def local_imports(path: Path) -> set[Path]:
    """Return the files of the same folder or package that a file imports.

    Imports of imports and the `__init__.py` files of packages are included.
    """
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        root, name = _root(file)
        todo += [root.joinpath(*name.split(".")[:n], "__init__.py") for n in range(1, name.count(".") + 1)]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            todo += _files_of(node, root, name)
    return seen - {path}


def _files_of(node: ast.AST, root: Path, name: str) -> list[Path]:
    """The files below `root` that an import statement of the module `name` may read."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = ".".join([*name.split(".")[: -node.level], *([node.module] if node.module else [])])
        base = base if node.level else node.module or ""
        modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return []
    package = {name.split(".")[0]} if "." in name else {path.stem for path in root.glob("*")} - {"lmjax"}
    places = [root.joinpath(*module.split(".")) for module in modules if module.split(".")[0] in package]
    return [file for place in places for file in (place.with_name(place.name + ".py"), place / "__init__.py")]


def save_copies(entries: Iterable[str], run_dir: Path) -> None:
    """Copy the files of a configuration into a run directory."""
    for path, _ in map(split, entries):
        copy = run_dir / FOLDER / _relative(path)
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
